"""Metrics of containers and pods, of the names that a kubelet's monitoring knows: one table says what and whence.

Source: KEP-2371, cAdvisor's documentation of its metrics; kernel Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from pyctr_sys.cgroup_files import device_values
from pyctr_sys.proc_lines import read_lines
from pyctr_wire.cri import image_pb2, runtime_pb2
from pyctrd.cri.cgroup_figures import CgroupDirectories, Figures, number, read, table

COUNTER, GAUGE = runtime_pb2.COUNTER, runtime_pb2.GAUGE

_KEYS: Final = ("id", "container", "pod", "namespace")
_TICK: Final = os.sysconf("SC_CLK_TCK")
_UInt = image_pb2.UInt64Value

Values = Iterator[tuple[tuple[str, ...], int]]
"""The values of further labels, and the metric's."""


class Subject(NamedTuple):
    """A running container, as it was looked at."""

    labels: tuple[str, ...]
    figures: Figures
    cpu: Mapping[str, int]
    memory: Mapping[str, int]
    io: Mapping[tuple[str, str], int]  # (device, operation): bytes, and with "ios" in front, how often
    numbers: Mapping[str, int]
    oom_kills: int
    started_at: int
    layer: tuple[int, int]  # bytes and inodes of what it has written
    room: os.statvfs_result
    descriptors: int
    sockets: int
    processes: int
    interfaces: Mapping[str, tuple[int, ...]]  # as in /proc/net/dev


class _Metric(NamedTuple):
    help: str
    kind: "runtime_pb2.MetricType"
    value: Callable[[Subject], Values]
    keys: tuple[str, ...] = ()


def _one(pick: Callable[[Subject], int]) -> Callable[[Subject], Values]:
    def values(subject: Subject) -> Values:
        yield (), pick(subject)

    return values


def _network(column: int) -> Callable[[Subject], Values]:
    def values(subject: Subject) -> Values:
        for name, counts in subject.interfaces.items():
            yield (name,), counts[column]

    return values


def _io(operation: str) -> Callable[[Subject], Values]:
    def values(subject: Subject) -> Values:
        found = [(device, value) for (device, what), value in subject.io.items() if what == operation]
        yield from (((device,), value) for device, value in found or [("", 0)])

    return values


def _faults(subject: Subject) -> Values:
    yield ("pgfault",), subject.figures.page_faults
    yield ("pgmajfault",), subject.figures.major_page_faults


_DEVICE, _INTERFACE = ("device",), ("interface",)

METRICS: Final[Mapping[str, _Metric]] = {
    "container_blkio_device_usage_total": _Metric("Bytes by device", COUNTER, _io("Total"), _DEVICE),
    "container_cpu_cfs_periods_total": _Metric("Elapsed periods", COUNTER, _one(lambda s: s.cpu["periods"])),
    "container_cpu_cfs_throttled_periods_total": _Metric(
        "Throttled periods", COUNTER, _one(lambda s: s.cpu["throttled"])
    ),
    "container_cpu_cfs_throttled_seconds_total": _Metric(
        "Seconds of being throttled", COUNTER, _one(lambda s: s.cpu["throttled_seconds"])
    ),
    "container_cpu_system_seconds_total": _Metric("Seconds in the kernel", COUNTER, _one(lambda s: s.cpu["system"])),
    "container_cpu_usage_seconds_total": _Metric(
        "Seconds of processor time", COUNTER, _one(lambda s: s.figures.cpu // 1_000_000_000)
    ),
    "container_cpu_user_seconds_total": _Metric("Seconds in programs", COUNTER, _one(lambda s: s.cpu["user"])),
    "container_file_descriptors": _Metric("Open descriptors", GAUGE, _one(lambda s: s.descriptors)),
    "container_fs_inodes_free": _Metric("Free inodes", GAUGE, _one(lambda s: s.room.f_ffree)),
    "container_fs_inodes_total": _Metric("Inodes", GAUGE, _one(lambda s: s.room.f_files)),
    "container_fs_limit_bytes": _Metric(
        "Size of the file system", GAUGE, _one(lambda s: s.room.f_blocks * s.room.f_frsize)
    ),
    "container_fs_reads_bytes_total": _Metric("Bytes read", COUNTER, _io("Read"), _DEVICE),
    "container_fs_reads_total": _Metric("Reads", COUNTER, _io("ios Read"), _DEVICE),
    "container_fs_usage_bytes": _Metric("Bytes of what was written", GAUGE, _one(lambda s: s.layer[0])),
    "container_fs_writes_bytes_total": _Metric("Bytes written", COUNTER, _io("Write"), _DEVICE),
    "container_fs_writes_total": _Metric("Writes", COUNTER, _io("ios Write"), _DEVICE),
    "container_last_seen": _Metric(
        "When this was looked at", GAUGE, _one(lambda s: s.figures.taken_at // 1_000_000_000)
    ),
    "container_memory_cache": _Metric("Bytes of page cache", GAUGE, _one(lambda s: s.memory["cache"])),
    "container_memory_failcnt": _Metric("How often the limit was hit", COUNTER, _one(lambda s: s.memory["failures"])),
    "container_memory_failures_total": _Metric("Page faults", COUNTER, _faults, ("failure_type",)),
    "container_memory_kernel_usage": _Metric("Bytes of the kernel", GAUGE, _one(lambda s: s.memory["kernel"])),
    "container_memory_mapped_file": _Metric("Bytes of mapped files", GAUGE, _one(lambda s: s.memory["mapped"])),
    "container_memory_max_usage_bytes": _Metric("Most bytes so far", GAUGE, _one(lambda s: s.memory["peak"])),
    "container_memory_rss": _Metric("Bytes of anonymous memory", GAUGE, _one(lambda s: s.figures.rss)),
    "container_memory_swap": _Metric("Bytes of swap", GAUGE, _one(lambda s: s.figures.swap)),
    "container_memory_usage_bytes": _Metric("Bytes in all", GAUGE, _one(lambda s: s.figures.memory)),
    "container_memory_working_set_bytes": _Metric("Bytes in use", GAUGE, _one(lambda s: s.figures.working_set)),
    "container_network_receive_bytes_total": _Metric("Bytes received", COUNTER, _network(0), _INTERFACE),
    "container_network_receive_packets_total": _Metric("Packets received", COUNTER, _network(1), _INTERFACE),
    "container_network_receive_errors_total": _Metric("Errors of receiving", COUNTER, _network(2), _INTERFACE),
    "container_network_receive_packets_dropped_total": _Metric(
        "Received packets dropped", COUNTER, _network(3), _INTERFACE
    ),
    "container_network_transmit_bytes_total": _Metric("Bytes sent", COUNTER, _network(8), _INTERFACE),
    "container_network_transmit_packets_total": _Metric("Packets sent", COUNTER, _network(9), _INTERFACE),
    "container_network_transmit_errors_total": _Metric("Errors of sending", COUNTER, _network(10), _INTERFACE),
    "container_network_transmit_packets_dropped_total": _Metric(
        "Packets dropped instead of sent", COUNTER, _network(11), _INTERFACE
    ),
    "container_oom_events_total": _Metric("Processes killed for memory", COUNTER, _one(lambda s: s.oom_kills)),
    "container_processes": _Metric("Processes", GAUGE, _one(lambda s: s.processes)),
    "container_sockets": _Metric("Open sockets", GAUGE, _one(lambda s: s.sockets)),
    "container_spec_cpu_period": _Metric("Microseconds of a period", GAUGE, _one(lambda s: s.numbers["period"])),
    "container_spec_cpu_quota": _Metric("Microseconds in a period", GAUGE, _one(lambda s: s.numbers["quota"])),
    "container_spec_cpu_shares": _Metric("Processor shares", GAUGE, _one(lambda s: s.numbers["shares"])),
    "container_spec_memory_limit_bytes": _Metric("Limit of memory", GAUGE, _one(lambda s: s.figures.limit)),
    "container_start_time_seconds": _Metric(
        "When it was started", GAUGE, _one(lambda s: s.started_at // 1_000_000_000)
    ),
    "container_threads": _Metric("Threads", GAUGE, _one(lambda s: s.figures.processes)),
    "container_threads_max": _Metric("Most threads there may be", GAUGE, _one(lambda s: s.numbers["threads_max"])),
}


def descriptors() -> list[runtime_pb2.MetricDescriptor]:
    """Return what there is."""
    return [
        runtime_pb2.MetricDescriptor(name=name, help=metric.help, label_keys=[*_KEYS, *metric.keys])
        for name, metric in METRICS.items()
    ]


def metrics_of(subject: Subject) -> list[runtime_pb2.Metric]:
    """Return all metrics of a container."""
    return [
        runtime_pb2.Metric(
            name=name,
            timestamp=subject.figures.taken_at,
            metric_type=metric.kind,
            label_values=[*subject.labels, *more],
            value=_UInt(value=max(0, value)),
        )
        for name, metric in METRICS.items()
        for more, value in metric.value(subject)
    ]


class Origin(NamedTuple):
    """Where to look for a container; `labels` are the values of the labels that all metrics have."""

    labels: tuple[str, ...]
    where: CgroupDirectories
    pid: int
    started_at: int
    layer: tuple[int, int]
    snapshots: Path


def look_at(origin: Origin, now: int) -> Subject:
    """Look at a running container. Raises OSError if it has ended."""
    where = origin.where
    pids = (where.pids / "cgroup.procs").read_text().split()
    opened = [link for pid in pids for link in _descriptors(pid)]
    memory, limits = (_memory_v2, _limits_v2) if where.is_v2 else (_memory_v1, _limits_v1)
    found, kills = memory(where.memory)
    return Subject(
        labels=origin.labels,
        figures=read(where, now),
        cpu=_cpu_v2(where.cpu) if where.is_v2 else _cpu_v1(where.cpu),
        memory=found,
        io=_io_v2(where.cpu) if where.is_v2 else _io_v1(_sibling(where.memory, "memory", "blkio")),
        numbers=limits(where),
        oom_kills=kills,
        started_at=origin.started_at,
        layer=origin.layer,
        room=os.statvfs(origin.snapshots),
        descriptors=len(opened),
        sockets=sum(link.startswith("socket:") for link in opened),
        processes=len(pids),
        interfaces=interfaces(Path(f"/proc/{origin.pid}/net/dev")),
    )


def interfaces(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the counts of each interface but the loopback. Raises OSError. Source: proc_pid_net(5), dev."""
    found = {}
    for line in read_lines(str(path))[2:]:
        name, _, rest = line.encode(errors="replace").decode().partition(":")  # it becomes a message's, which is UTF-8
        if name.strip() != "lo":
            found[name.strip()] = tuple(int(word) for word in rest.split())
    return found


def _descriptors(pid: str) -> Iterator[str]:
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                yield os.readlink(f"/proc/{pid}/fd/{name}")


def _sibling(path: Path, controller: str, other: str) -> Path:
    """Return the same cgroup in another hierarchy of version 1."""
    parts = list(path.parts)
    parts[parts.index(controller)] = other
    return Path(*parts)


def _cpu_v1(directory: Path) -> dict[str, int]:
    times, periods = table(directory / "cpuacct.stat"), table(_sibling(directory, "cpuacct", "cpu") / "cpu.stat")
    return {
        "user": times.get("user", 0) // _TICK,
        "system": times.get("system", 0) // _TICK,
        "periods": periods.get("nr_periods", 0),
        "throttled": periods.get("nr_throttled", 0),
        "throttled_seconds": periods.get("throttled_time", 0) // 1_000_000_000,
    }


def _cpu_v2(directory: Path) -> dict[str, int]:
    times = table(directory / "cpu.stat")
    return {
        "user": times.get("user_usec", 0) // 1_000_000,
        "system": times.get("system_usec", 0) // 1_000_000,
        "periods": times.get("nr_periods", 0),
        "throttled": times.get("nr_throttled", 0),
        "throttled_seconds": times.get("throttled_usec", 0) // 1_000_000,
    }


def _memory_v1(directory: Path) -> tuple[dict[str, int], int]:
    memory, kills = table(directory / "memory.stat"), table(directory / "memory.oom_control")
    found = {
        "cache": memory.get("total_cache", 0),
        "mapped": memory.get("total_mapped_file", 0),
        "failures": number(directory / "memory.failcnt"),
        "kernel": number(directory / "memory.kmem.usage_in_bytes"),
        "peak": number(directory / "memory.max_usage_in_bytes"),
    }
    return found, kills.get("oom_kill", 0)


def _memory_v2(directory: Path) -> tuple[dict[str, int], int]:
    memory, events = table(directory / "memory.stat"), table(directory / "memory.events")
    found = {
        "cache": memory.get("file", 0),
        "mapped": memory.get("file_mapped", 0),
        "failures": events.get("max", 0),
        "kernel": memory.get("kernel", 0),
        "peak": number(directory / "memory.peak"),
    }
    return found, events.get("oom_kill", 0)


def _limits_v1(where: CgroupDirectories) -> dict[str, int]:
    cpu = _sibling(where.cpu, "cpuacct", "cpu")
    return {
        "shares": number(cpu / "cpu.shares"),
        "period": number(cpu / "cpu.cfs_period_us"),
        "quota": number(cpu / "cpu.cfs_quota_us"),
        "threads_max": number(where.pids / "pids.max"),
    }


def _limits_v2(where: CgroupDirectories) -> dict[str, int]:
    quota, _, period = (where.cpu / "cpu.max").read_text().strip().partition(" ")
    weight = number(where.cpu / "cpu.weight")
    return {
        "shares": 2 + (weight - 1) * 262142 // 9999 if weight else 0,
        "period": int(period or 0),
        "quota": int(quota) if quota.isdecimal() else 0,
        "threads_max": number(where.pids / "pids.max"),
    }


def _io_v1(directory: Path) -> dict[tuple[str, str], int]:
    found = {}
    for name, prefix in (("io_service_bytes", ""), ("io_serviced", "ios ")):
        with suppress(FileNotFoundError):
            for line in (directory / f"blkio.throttle.{name}_recursive").read_text().splitlines():
                words = line.split()
                if len(words) == 3:
                    found[words[0], prefix + words[1]] = int(words[2])
    return found


def _io_v2(directory: Path) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for device, values in device_values(f"{directory}/io.stat").items():
        read_bytes, written = values.get("rbytes", 0), values.get("wbytes", 0)
        found |= {(device, "Read"): read_bytes, (device, "Write"): written, (device, "Total"): read_bytes + written}
        found |= {(device, "ios Read"): values.get("rios", 0), (device, "ios Write"): values.get("wios", 0)}
    return found
