"""What a cgroup's files count, in the shape that containerd gives it: its messages, as dictionaries.

Names are those of the messages' fields; beside them are some of the kernel's that the messages do not have.
Source: kernel Documentation/admin-guide/cgroup-v1/*.rst, cgroup-v2.rst.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

from pyctr_sys.cgroup_files import UNLIMITED, device_values, fields, number, read

Counters: TypeAlias = dict[str, Any]

_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
# The names in memory.stat that do not simply lack their underscores in the message. "swap" is another number there.
_V1_MEMORY: Final = {
    "pgpgin": "pg_pg_in", "pgpgout": "pg_pg_out", "pgfault": "pg_fault", "pgmajfault": "pg_maj_fault",
    "hierarchical_memsw_limit": "hierarchical_swap_limit", "total_pgpgin": "total_pg_pg_in",
    "total_pgpgout": "total_pg_pg_out", "total_pgfault": "total_pg_fault", "total_pgmajfault": "total_pg_maj_fault",
    "swap": "",
}  # fmt: skip
_V1_CHARGES: Final = {
    "usage": "memory", "swap": "memory.memsw", "kernel": "memory.kmem", "kernel_tcp": "memory.kmem.tcp",
}  # fmt: skip
_V2_MEMORY: Final = {
    "usage": "current", "usage_limit": "max", "max_usage": "peak",
    "swap_usage": "swap.current", "swap_limit": "swap.max", "swap_max_usage": "swap.peak",
}  # fmt: skip


def version_1(directory_of: Callable[[str], str]) -> Counters:
    """Look at version 1; `directory_of` a controller is "" where it is not mounted."""
    found: Counters = {}
    if directory := directory_of("pids"):
        found["pids"] = _pids(directory)
    if directory := directory_of("cpuacct"):
        found["cpu"] = {"usage": _v1_cpu_usage(directory)}
    if directory := directory_of("cpu"):
        stat = fields(f"{directory}/cpu.stat")
        found.setdefault("cpu", {})["throttling"] = {
            "periods": stat.get("nr_periods", 0),
            "throttled_periods": stat.get("nr_throttled", 0),
            "throttled_time": stat.get("throttled_time", 0),
        }
    if directory := directory_of("memory"):
        found["memory"] = _v1_memory(directory)
        found["memory_oom_control"] = fields(f"{directory}/memory.oom_control")
    if directory := directory_of("blkio"):  # clients take it for granted, also of who has read and written nothing
        devices = _device_names()
        found["blkio"] = {
            field: list(_v1_block_lines(f"{directory}/blkio.throttle.{field}", devices))
            for field in ("io_service_bytes_recursive", "io_serviced_recursive")
        }
    if directory := directory_of("hugetlb"):
        found["hugetlb"] = [
            {
                "pagesize": size,
                "usage": number(f"{directory}/hugetlb.{size}.usage_in_bytes"),
                "max": number(f"{directory}/hugetlb.{size}.max_usage_in_bytes"),
                "failcnt": number(f"{directory}/hugetlb.{size}.failcnt"),
            }
            for size in _huge_page_sizes(directory, ".usage_in_bytes")
        ]
    return found


def version_2(directory: str) -> Counters:
    """Look at version 2."""
    memory = fields(f"{directory}/memory.stat")
    memory |= {name: number(f"{directory}/memory.{file}") for name, file in _V2_MEMORY.items()}
    return {
        "pids": _pids(directory),
        "cpu": {**fields(f"{directory}/cpu.stat"), "psi": _pressure(f"{directory}/cpu.pressure")},
        "memory": {**memory, "psi": _pressure(f"{directory}/memory.pressure")},
        "memory_events": fields(f"{directory}/memory.events"),
        # Clients take it for granted, also of who has read and written nothing.
        "io": {
            "usage": list(_v2_io_lines(f"{directory}/io.stat")),
            "psi": _pressure(f"{directory}/io.pressure"),
        },
        "hugetlb": [
            {
                "pagesize": size,
                "current": number(f"{directory}/hugetlb.{size}.current"),
                "max": number(f"{directory}/hugetlb.{size}.max"),
                "failcnt": fields(f"{directory}/hugetlb.{size}.events").get("max", 0),
            }
            for size in _huge_page_sizes(directory, ".current")
        ],
    }


def _pids(directory: str) -> Counters:
    limit = number(f"{directory}/pids.max")
    return {"current": number(f"{directory}/pids.current"), "limit": 0 if limit == UNLIMITED else limit}


def _v1_cpu_usage(directory: str) -> Counters:
    ticks = fields(f"{directory}/cpuacct.stat")
    return {
        "total": number(f"{directory}/cpuacct.usage"),
        "user": ticks.get("user", 0) * _TICK_NS,
        "kernel": ticks.get("system", 0) * _TICK_NS,
        "per_cpu": [int(word) for word in read(f"{directory}/cpuacct.usage_percpu").split()],
    }


def _v1_memory(directory: str) -> Counters:
    found: Counters = {_V1_MEMORY.get(name, name): value for name, value in fields(f"{directory}/memory.stat").items()}
    for field, prefix in _V1_CHARGES.items():
        found[field] = {
            "usage": number(f"{directory}/{prefix}.usage_in_bytes"),
            "limit": number(f"{directory}/{prefix}.limit_in_bytes"),
            "max": number(f"{directory}/{prefix}.max_usage_in_bytes"),
            "failcnt": number(f"{directory}/{prefix}.failcnt"),
        }
    return found


def _v1_block_lines(path: str, devices: dict[tuple[int, int], str]) -> Iterator[Counters]:
    for line in read(path).splitlines():
        words = line.split()
        if len(words) == 3:  # the last line is a total of two words
            major, minor = _device(words[0])
            name = devices.get((major, minor), "")
            yield {"major": major, "minor": minor, "op": words[1], "value": int(words[2]), "device": name}


def _v2_io_lines(path: str) -> Iterator[Counters]:
    for device, counters in device_values(path).items():
        if device.replace(":", "").isdigit():
            major, minor = _device(device)
            yield {"major": major, "minor": minor, **counters}


def _device(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(":")
    return int(major), int(minor)


def _pressure(path: str) -> Counters:
    found: Counters = {}
    for line in read(path).splitlines():
        kind, *pairs = line.split()
        values = dict(pair.partition("=")[::2] for pair in pairs)
        found[kind] = {name: float(values.get(name, 0)) for name in ("avg10", "avg60", "avg300")}
        found[kind]["total"] = int(values.get("total", 0))
    return found


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
    for line in read("/proc/partitions").splitlines()[2:]:
        major, minor, _, name = line.split()
        found[int(major), int(minor)] = f"/dev/{name}"
    return found
