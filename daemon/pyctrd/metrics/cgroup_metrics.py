"""Metrics of a container's cgroup, by the names that containerd gives them, and where they are in its statistics.

A table each for versions 1 and 2: a name after "container_" and the path in the message. Names, units and types are
containerd's, so a fault counter is called bytes. Source: what containerd 2.3 serves at /v1/metrics.
"""

from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any, Final, NamedTuple

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from pyctr_wire.containerd.cgroups.v1 import metrics_pb2 as v1
from pyctr_wire.containerd.cgroups.v2 import metrics_pb2 as v2

PREFIX: Final = "container_"

_MEMORY_1: Final = (
    "cache", "rss", "rss_huge", "mapped_file", "dirty", "writeback",
    "inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable",
)  # fmt: skip
_PAGES_1: Final = {
    "pgpgin": "pg_pg_in", "pgpgout": "pg_pg_out", "pgfault": "pg_fault", "pgmajfault": "pg_maj_fault",
}  # fmt: skip
_MEMORY_2: Final = (
    "anon", "file", "kernel_stack", "slab", "sock", "shmem", "file_mapped", "file_dirty", "file_writeback", "anon_thp",
    "inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable", "slab_reclaimable",
    "slab_unreclaimable", "pgfault", "pgmajfault", "workingset_refault", "workingset_activate",
    "workingset_nodereclaim", "pgrefill", "pgscan", "pgsteal", "pgactivate", "pgdeactivate", "pglazyfree",
    "pglazyfreed", "thp_fault_alloc", "thp_collapse_alloc", "usage", "usage_limit", "swap_usage", "swap_limit",
)  # fmt: skip
_ENTRIES: Final = {"usage": "usage", "swap": "swap", "kernel": "kernel", "kerneltcp": "kernel_tcp"}
_BLOCK_IO: Final = {
    "io_merged_recursive": "total",
    "io_queued_recursive": "total",
    "io_service_bytes_recursive": "bytes",
    "io_service_time_recursive": "total",
    "io_serviced_recursive": "total",
    "io_time_recursive": "total",
    "sectors_recursive": "total",
}

# One number each: where it is, from the message down.
_PATHS_1: Final[Mapping[str, str]] = {
    "cpu_total_nanoseconds": "cpu.usage.total",
    "cpu_kernel_nanoseconds": "cpu.usage.kernel",
    "cpu_user_nanoseconds": "cpu.usage.user",
    "cpu_throttle_periods_total": "cpu.throttling.periods",
    "cpu_throttled_periods_total": "cpu.throttling.throttled_periods",
    "cpu_throttled_time_nanoseconds": "cpu.throttling.throttled_time",
    "pids_current": "pids.current",
    "pids_limit": "pids.limit",
    "memory_hierarchical_memory_limit_bytes": "memory.hierarchical_memory_limit",
    "memory_hierarchical_memsw_limit_bytes": "memory.hierarchical_swap_limit",
    "memory_oom_total": "memory_oom_control.oom_kill",
    **{
        f"memory_{total}{name}_bytes": f"memory.{total}{field}"
        for total in ("", "total_")
        for name, field in {**dict(zip(_MEMORY_1, _MEMORY_1, strict=True)), **_PAGES_1}.items()
    },
    **{
        f"memory_{name}_{key}_{unit}": f"memory.{field}.{key}"
        for name, field in _ENTRIES.items()
        for key, unit in (("limit", "bytes"), ("usage", "bytes"), ("max", "bytes"), ("failcnt", "total"))
    },
}
_PATHS_2: Final[Mapping[str, str]] = {
    "cpu_usage_usec_microseconds": "cpu.usage_usec",
    "cpu_user_usec_microseconds": "cpu.user_usec",
    "cpu_system_usec_microseconds": "cpu.system_usec",
    "cpu_nr_periods_total": "cpu.nr_periods",
    "cpu_nr_throttled_total": "cpu.nr_throttled",
    "cpu_throttled_usec_microseconds": "cpu.throttled_usec",
    "pids_current": "pids.current",
    "pids_limit": "pids.limit",
    "memory_oom_total": "memory_events.oom",
    **{f"memory_{key}_bytes": f"memory.{key}" for key in _MEMORY_2},
}


class Sample(NamedTuple):
    """One number; `labels` are those beside the container's."""

    name: str
    labels: Mapping[str, str]
    value: int


# Several numbers each: the field with a message for each, their labels, and which of its numbers it is.
_Labels = Callable[[Any], Mapping[str, str]]


def _block_labels(entry: Any) -> Mapping[str, str]:
    return {"op": entry.op, "device": entry.device, **_device_labels(entry)}


def _device_labels(entry: Any) -> Mapping[str, str]:
    return {"major": str(entry.major), "minor": str(entry.minor)}


def _page_labels(entry: Any) -> Mapping[str, str]:
    return {"page": entry.pagesize}


_LISTS_1: Final[Mapping[str, tuple[str, _Labels, str]]] = {
    "hugetlb_usage_bytes": ("hugetlb", _page_labels, "usage"),
    "hugetlb_max_bytes": ("hugetlb", _page_labels, "max"),
    "hugetlb_failcnt_total": ("hugetlb", _page_labels, "failcnt"),
    **{f"blkio_{key}_{unit}": (f"blkio.{key}", _block_labels, "value") for key, unit in _BLOCK_IO.items()},
}
_LISTS_2: Final[Mapping[str, tuple[str, _Labels, str]]] = {
    "io_rbytes_bytes": ("io.usage", _device_labels, "rbytes"),
    "io_wbytes_bytes": ("io.usage", _device_labels, "wbytes"),
    "io_rios_total": ("io.usage", _device_labels, "rios"),
    "io_wios_total": ("io.usage", _device_labels, "wios"),
}

_KINDS: Final[Mapping[str, tuple[type[Message], Mapping[str, str], Mapping[str, tuple[str, _Labels, str]]]]] = {
    v1.Metrics.DESCRIPTOR.full_name: (v1.Metrics, _PATHS_1, _LISTS_1),
    v2.Metrics.DESCRIPTOR.full_name: (v2.Metrics, _PATHS_2, _LISTS_2),
}


def samples(statistics: AnyMessage) -> Iterator[Sample]:
    """Yield what a container's statistics say; nothing of a controller that it has not, or of an unknown kind."""
    kind, paths, lists = _KINDS.get(statistics.type_url.rpartition("/")[2], (None, {}, {}))
    if kind is None:
        return
    message = kind.FromString(statistics.value)
    for name, path in paths.items():
        if message.HasField(path.partition(".")[0]):
            yield Sample(PREFIX + name, {}, attrgetter(path)(message))
    if isinstance(message, v1.Metrics):
        for number, value in enumerate(message.cpu.usage.per_cpu):
            yield Sample(f"{PREFIX}per_cpu_nanoseconds", {"cpu": str(number)}, value)
    for name, (path, labels, key) in lists.items():
        for entry in attrgetter(path)(message):
            yield Sample(PREFIX + name, labels(entry), getattr(entry, key))
