"""A cgroup's counters as the messages that containerd's clients expect."""

import os
from collections.abc import Callable, Iterator
from typing import Final

from pyctr_shim.oci.cgroups import files
from pyctr_wire.containerd.cgroups.v1 import metrics_pb2 as v1
from pyctr_wire.containerd.cgroups.v2 import metrics_pb2 as v2

_V1_URL: Final = "io.containerd.cgroups.v1.Metrics"
_V2_URL: Final = "io.containerd.cgroups.v2.Metrics"
_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_UNLIMITED: Final = (1 << 64) - 1


def v1_metrics(directory_of: Callable[[str], str]) -> tuple[str, bytes]:
    """Return type URL and bytes of version 1's counters; `directory_of` a controller is "" where it is not mounted."""
    metrics = v1.Metrics()
    if directory := directory_of("pids"):
        metrics.pids.current = files.number(f"{directory}/pids.current")
        limit = files.number(f"{directory}/pids.max")
        metrics.pids.limit = 0 if limit == _UNLIMITED else limit
    if directory := directory_of("cpuacct"):
        _v1_cpu_usage(metrics.cpu.usage, directory)
    if directory := directory_of("cpu"):
        throttled = files.fields(f"{directory}/cpu.stat")
        metrics.cpu.throttling.periods = throttled.get("nr_periods", 0)
        metrics.cpu.throttling.throttled_periods = throttled.get("nr_throttled", 0)
        metrics.cpu.throttling.throttled_time = throttled.get("throttled_time", 0)
    if directory := directory_of("memory"):
        _v1_memory(metrics, directory)
    if directory := directory_of("blkio"):
        metrics.blkio.SetInParent()  # clients take it for granted, also of who has read and written nothing
        devices = _device_names()
        for field, name in (
            (metrics.blkio.io_service_bytes_recursive, "blkio.throttle.io_service_bytes_recursive"),
            (metrics.blkio.io_serviced_recursive, "blkio.throttle.io_serviced_recursive"),
        ):
            for major, minor, operation, value in _v1_block_lines(f"{directory}/{name}"):
                device = devices.get((major, minor), "")
                field.add(major=major, minor=minor, op=operation, value=value, device=device)
    if directory := directory_of("hugetlb"):
        for size in _huge_page_sizes(directory, ".usage_in_bytes"):
            prefix = f"{directory}/hugetlb.{size}"
            metrics.hugetlb.add(
                pagesize=size,
                usage=files.number(f"{prefix}.usage_in_bytes"),
                max=files.number(f"{prefix}.max_usage_in_bytes"),
                failcnt=files.number(f"{prefix}.failcnt"),
            )
    return _V1_URL, metrics.SerializeToString()


def _v1_cpu_usage(usage: v1.CPUUsage, directory: str) -> None:
    usage.total = files.number(f"{directory}/cpuacct.usage")
    ticks = files.fields(f"{directory}/cpuacct.stat")
    usage.user = ticks.get("user", 0) * _TICK_NS
    usage.kernel = ticks.get("system", 0) * _TICK_NS
    usage.per_cpu.extend(int(word) for word in files.read(f"{directory}/cpuacct.usage_percpu").split())


# The names in memory.stat that do not simply lack their underscores in the message.
_V1_MEMORY: Final = {
    "pgpgin": "pg_pg_in", "pgpgout": "pg_pg_out", "pgfault": "pg_fault", "pgmajfault": "pg_maj_fault",
    "hierarchical_memory_limit": "hierarchical_memory_limit", "hierarchical_memsw_limit": "hierarchical_swap_limit",
    "total_pgpgin": "total_pg_pg_in", "total_pgpgout": "total_pg_pg_out", "total_pgfault": "total_pg_fault",
    "total_pgmajfault": "total_pg_maj_fault",
}  # fmt: skip


def _v1_memory(metrics: v1.Metrics, directory: str) -> None:
    known = v1.MemoryStat.DESCRIPTOR.fields_by_name
    for name, value in files.fields(f"{directory}/memory.stat").items():
        field = _V1_MEMORY.get(name, name)
        # The message has a "swap" of its own, which is not this number.
        if field in known and known[field].message_type is None:
            setattr(metrics.memory, field, value)
    for entry, prefix in (
        (metrics.memory.usage, "memory"),
        (metrics.memory.swap, "memory.memsw"),
        (metrics.memory.kernel, "memory.kmem"),
        (metrics.memory.kernel_tcp, "memory.kmem.tcp"),
    ):
        entry.usage = files.number(f"{directory}/{prefix}.usage_in_bytes")
        entry.limit = files.number(f"{directory}/{prefix}.limit_in_bytes")
        entry.max = files.number(f"{directory}/{prefix}.max_usage_in_bytes")
        entry.failcnt = files.number(f"{directory}/{prefix}.failcnt")
    control = files.fields(f"{directory}/memory.oom_control")
    metrics.memory_oom_control.oom_kill_disable = control.get("oom_kill_disable", 0)
    metrics.memory_oom_control.under_oom = control.get("under_oom", 0)
    metrics.memory_oom_control.oom_kill = control.get("oom_kill", 0)


def _v1_block_lines(path: str) -> Iterator[tuple[int, int, str, int]]:
    for line in files.read(path).splitlines():
        words = line.split()
        if len(words) == 3:  # the last line is a total of two words
            major, _, minor = words[0].partition(":")
            yield int(major), int(minor), words[1], int(words[2])


def v2_metrics(directory: str) -> tuple[str, bytes]:
    """Return type URL and bytes of version 2's counters."""
    metrics = v2.Metrics()
    metrics.pids.current = files.number(f"{directory}/pids.current")
    limit = files.number(f"{directory}/pids.max")
    metrics.pids.limit = 0 if limit == _UNLIMITED else limit
    _copy(metrics.cpu, files.fields(f"{directory}/cpu.stat"))
    _v2_memory(metrics, directory)
    metrics.io.SetInParent()  # clients take it for granted, also of who has read and written nothing
    for line in files.read(f"{directory}/io.stat").splitlines():
        device, *pairs = line.split()
        major, _, minor = device.partition(":")
        if major.isdigit() and minor.isdigit():
            entry = metrics.io.usage.add(major=int(major), minor=int(minor))
            _copy(entry, {name: int(value) for name, _, value in (pair.partition("=") for pair in pairs)})
    for size in _huge_page_sizes(directory, ".current"):
        prefix = f"{directory}/hugetlb.{size}"
        metrics.hugetlb.add(
            pagesize=size,
            current=files.number(f"{prefix}.current"),
            max=files.number(f"{prefix}.max"),
            failcnt=files.fields(f"{prefix}.events").get("max", 0),
        )
    for pressure, name in ((metrics.cpu.psi, "cpu"), (metrics.memory.psi, "memory"), (metrics.io.psi, "io")):
        _v2_pressure(pressure, f"{directory}/{name}.pressure")
    return _V2_URL, metrics.SerializeToString()


def _v2_memory(metrics: v2.Metrics, directory: str) -> None:
    memory = metrics.memory
    _copy(memory, files.fields(f"{directory}/memory.stat"))
    memory.usage = files.number(f"{directory}/memory.current")
    memory.usage_limit = files.number(f"{directory}/memory.max")
    memory.max_usage = files.number(f"{directory}/memory.peak")
    memory.swap_usage = files.number(f"{directory}/memory.swap.current")
    memory.swap_limit = files.number(f"{directory}/memory.swap.max")
    memory.swap_max_usage = files.number(f"{directory}/memory.swap.peak")
    _copy(metrics.memory_events, files.fields(f"{directory}/memory.events"))


def _v2_pressure(pressure: v2.PSIStats, path: str) -> None:
    for line in files.read(path).splitlines():
        kind, *pairs = line.split()
        if kind in {"some", "full"}:
            values = dict(pair.partition("=")[::2] for pair in pairs)
            data = pressure.some if kind == "some" else pressure.full
            data.avg10, data.avg60 = float(values.get("avg10", 0)), float(values.get("avg60", 0))
            data.avg300, data.total = float(values.get("avg300", 0)), int(values.get("total", 0))


def _copy(message: v2.CPUStat | v2.MemoryStat | v2.MemoryEvents | v2.IOEntry, values: dict[str, int]) -> None:
    """Set the fields that have the kernel's own names."""
    for name, value in values.items():
        if name in message.DESCRIPTOR.fields_by_name:
            setattr(message, name, value)


def _huge_page_sizes(directory: str, suffix: str) -> list[str]:
    """Return the sizes (`2MB`) that a hugetlb directory has files for."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    prefix = "hugetlb."
    found = (name[len(prefix) : -len(suffix)] for name in names if name.startswith(prefix) and name.endswith(suffix))
    return sorted(size for size in found if "." not in size)


def _device_names() -> dict[tuple[int, int], str]:
    found = {}
    for line in files.read("/proc/partitions").splitlines()[2:]:
        major, minor, _, name = line.split()
        found[int(major), int(minor)] = f"/dev/{name}"
    return found
