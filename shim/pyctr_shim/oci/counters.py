"""A container's counters as runc's `events` prints them, which is what scripts and exporters read."""

from collections.abc import Callable, Iterable
from typing import Any, Final

from pyctr_wire.containerd.cgroups.v1 import metrics_pb2 as v1
from pyctr_wire.containerd.cgroups.v2 import metrics_pb2 as v2

_BLKIO: Final = {
    "io_service_bytes_recursive": "ioServiceBytesRecursive",
    "io_serviced_recursive": "ioServicedRecursive",
    "io_queued_recursive": "ioQueueRecursive",
    "io_service_time_recursive": "ioServiceTimeRecursive",
    "io_wait_time_recursive": "ioWaitTimeRecursive",
    "io_merged_recursive": "ioMergedRecursive",
    "io_time_recursive": "ioTimeRecursive",
    "sectors_recursive": "sectorsRecursive",
}
_MICROSECOND: Final = 1000  # v2 counts in it, runc prints nanoseconds


def document(type_url: str, value: bytes) -> dict[str, Any]:
    """Return the `data` of a stats event from a metrics message of either version of cgroups."""
    if type_url.endswith("v1.Metrics"):
        first = v1.Metrics()
        first.ParseFromString(value)
        return _of_v1(first)
    second = v2.Metrics()
    second.ParseFromString(value)
    return _of_v2(second)


def _of_v1(message: v1.Metrics) -> dict[str, Any]:
    usage, throttling, memory = message.cpu.usage, message.cpu.throttling, message.memory
    return {
        "cpu": {
            "usage": {
                "total": usage.total,
                "percpu": list(usage.per_cpu),
                "kernel": usage.kernel,
                "user": usage.user,
            },
            "throttling": {
                "periods": throttling.periods,
                "throttledPeriods": throttling.throttled_periods,
                "throttledTime": throttling.throttled_time,
            },
        },
        "memory": {
            "cache": memory.cache,
            "usage": _entry(memory.usage),
            "swap": _entry(memory.swap),
            "kernel": _entry(memory.kernel),
            "kernelTCP": _entry(memory.kernel_tcp),
            "raw": _numbers(memory),
        },
        "pids": _pids(message.pids),
        "blkio": {
            name: [
                {"major": item.major, "minor": item.minor, "op": item.op, "value": item.value}
                for item in getattr(message.blkio, field)
            ]
            for field, name in _BLKIO.items()
            if getattr(message.blkio, field)
        },
        "hugetlb": _hugetlb(message.hugetlb, lambda item: item.failcnt),
        "intel_rdt": {},
        "network_interfaces": None,
    }


def _of_v2(message: v2.Metrics) -> dict[str, Any]:
    cpu, memory = message.cpu, message.memory
    return {
        "cpu": {
            "usage": {
                "total": cpu.usage_usec * _MICROSECOND,
                "kernel": cpu.system_usec * _MICROSECOND,
                "user": cpu.user_usec * _MICROSECOND,
            },
            "throttling": {
                "periods": cpu.nr_periods,
                "throttledPeriods": cpu.nr_throttled,
                "throttledTime": cpu.throttled_usec * _MICROSECOND,
            },
        },
        "memory": {
            "cache": memory.file,
            "usage": {
                "limit": memory.usage_limit,
                "usage": memory.usage,
                "max": 0,
                "failcnt": message.memory_events.max,
            },
            "swap": {"limit": memory.swap_limit, "usage": memory.swap_usage, "max": 0, "failcnt": 0},
            "kernel": {"limit": 0, "failcnt": 0},
            "kernelTCP": {"limit": 0, "failcnt": 0},
            "raw": _numbers(memory),
        },
        "pids": _pids(message.pids),
        "blkio": {
            name: [
                {"major": item.major, "minor": item.minor, "op": op, "value": getattr(item, field)}
                for item in message.io.usage
                for op, field in operations
            ]
            for name, operations in (
                ("ioServiceBytesRecursive", (("Read", "rbytes"), ("Write", "wbytes"))),
                ("ioServicedRecursive", (("Read", "rios"), ("Write", "wios"))),
            )
            if message.io.usage
        },
        "hugetlb": _hugetlb(message.hugetlb, lambda item: item.failcnt if hasattr(item, "failcnt") else 0),
        "intel_rdt": {},
        "network_interfaces": None,
    }


def _pids(message: Any) -> dict[str, int]:
    return {"current": message.current, **({"limit": message.limit} if message.limit else {})}


def _entry(message: Any) -> dict[str, int]:
    return {"limit": message.limit, "usage": message.usage, "max": message.max, "failcnt": message.failcnt}


def _numbers(message: Any) -> dict[str, int]:
    """Return the fields that are numbers, by the kernel's names in memory.stat."""
    return {field.name: value for field, value in message.ListFields() if isinstance(value, int)}


def _hugetlb(items: Iterable[Any], failures: Callable[[Any], int]) -> dict[str, dict[str, int]]:
    found = {}
    for item in items:
        usage = item.usage if hasattr(item, "usage") else item.current
        found[item.pagesize] = {"usage": usage, "max": item.max, "failcnt": failures(item)}
    return found
