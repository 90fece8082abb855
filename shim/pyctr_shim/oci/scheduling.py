"""How the kernel treats the process: OOM score, scheduler, I/O priority, CPU affinity, execution domain."""

import os
from collections.abc import Mapping
from typing import Any, Final

from pyctr_shim.oci.errors import OciError
from pyctr_sys import process as kernel

_POLICIES: Final = {
    "SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_ISO": 4, "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}  # fmt: skip
_FLAGS: Final = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01, "SCHED_FLAG_RECLAIM": 0x02, "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08, "SCHED_FLAG_KEEP_PARAMS": 0x10, "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}  # fmt: skip
_DOMAINS: Final = {"LINUX": 0x0000, "LINUX32": 0x0008}


def set_oom_score(adjustment: int | None) -> list[str]:
    """Set oom_score_adj. Returns a note if the score stays higher because CAP_SYS_RESOURCE is missing."""
    if adjustment is None:
        return []
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(adjustment).encode())
    except PermissionError:
        return [f"process.oomScoreAdj: {adjustment} not set: lowering it needs CAP_SYS_RESOURCE"]
    finally:
        os.close(fd)
    return []


def apply(process: Mapping[str, Any]) -> None:
    """Set the scheduler and the I/O priority that the spec asks for. Raises OciError."""
    try:
        if scheduler := process.get("scheduler"):
            _set_scheduler(scheduler)
        if priority := process.get("ioPriority"):
            kernel.set_io_priority(kernel.IoClass[priority["class"]], priority.get("priority", 0))
    except OSError as error:
        raise OciError(f"process scheduling: {error.strerror}", error.errno or 0) from None


def set_affinity(process: Mapping[str, Any]) -> None:
    """Set the CPUs that the spec asks for; entering a cgroup afterwards would undo it. Raises OciError."""
    affinity = process.get("execCPUAffinity") or {}
    if cpus := affinity.get("final") or affinity.get("initial"):
        try:
            os.sched_setaffinity(0, parse_cpus(cpus))
        except OSError as error:
            raise OciError(f"process.execCPUAffinity: {error.strerror}", error.errno or 0) from None


def set_personality(personality: Mapping[str, Any] | None) -> None:
    """Set the execution domain, if the spec names one."""
    if personality:
        kernel.personality(_DOMAINS[personality["domain"]])


def _set_scheduler(scheduler: Mapping[str, Any]) -> None:
    flags = 0
    for name in scheduler.get("flags") or ():
        if name not in _FLAGS:
            raise OciError(f"process.scheduler.flags: unknown flag {name!r}")
        flags |= _FLAGS[name]
    kernel.sched_setattr(
        _POLICIES[scheduler["policy"]],
        flags=flags,
        nice=scheduler.get("nice") or 0,
        priority=scheduler.get("priority") or 0,
        runtime_ns=scheduler.get("runtime") or 0,
        deadline_ns=scheduler.get("deadline") or 0,
        period_ns=scheduler.get("period") or 0,
    )


def parse_cpus(text: str) -> set[int]:
    """Parse a list such as `0-3,7`. Raises OciError."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not first.isdigit() or not last.isdigit():
            raise OciError(f"{text!r} is not a list of CPUs")
        cpus.update(range(int(first), int(last) + 1))
    return cpus
