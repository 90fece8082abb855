"""How the kernel treats the process: OOM score, scheduler, I/O priority, CPUs, memory nodes, execution domain."""

import os
from collections.abc import Mapping
from typing import Any, Final

from pyctr_shim.oci.errors import OciError
from pyctr_sys import process as kernel
from pyctr_sys.steps import StepFailed, Steps

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

# Source: linux/mempolicy.h.
MEMORY_MODES: Final = {
    "MPOL_DEFAULT": 0, "MPOL_PREFERRED": 1, "MPOL_BIND": 2, "MPOL_INTERLEAVE": 3, "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5, "MPOL_WEIGHTED_INTERLEAVE": 6,
}  # fmt: skip
MEMORY_FLAGS: Final = {
    "MPOL_F_NUMA_BALANCING": 1 << 13, "MPOL_F_RELATIVE_NODES": 1 << 14, "MPOL_F_STATIC_NODES": 1 << 15,
}  # fmt: skip
_MOST_NODES: Final = 1024
_MOST_NUMBERS: Final = 1 << 16
_DIGITS: Final = 10
_SHOWN: Final = 200


def set_oom_score(adjustment: int | None, pid: int | str = "self") -> list[str]:
    """Set oom_score_adj of a process. Returns a note if the score stays higher because CAP_SYS_RESOURCE is missing."""
    if adjustment is None:
        return []
    fd = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(adjustment).encode())
    except PermissionError:
        return [f"process.oomScoreAdj: {adjustment} not set: lowering it needs CAP_SYS_RESOURCE"]
    finally:
        os.close(fd)
    return []


def apply(process: Mapping[str, Any], pid: int = 0) -> None:
    """Set the scheduler and the I/O priority of a process, by default this one, as the spec asks. Raises OciError."""
    try:
        if scheduler := process.get("scheduler"):
            _set_scheduler(pid, scheduler)
        if priority := process.get("ioPriority"):
            kernel.set_io_priority(kernel.IoClass[priority["class"]], priority.get("priority") or 0, pid)
    except OSError as error:
        raise OciError(f"process scheduling: {error.strerror}", error.errno or 0) from None


def set_affinity(process: Mapping[str, Any], when: str) -> None:
    """Set the CPUs of an exec: `initial` ones before it joins the cgroup, which may change them, then `final` ones.

    A container's first process has no such thing. Raises OciError.
    """
    if cpus := (process.get("execCPUAffinity") or {}).get(when):
        try:
            os.sched_setaffinity(0, parse_numbers(cpus))
        except OSError as error:
            raise OciError(f"process.execCPUAffinity.{when}: {error.strerror}", error.errno or 0) from None


def add_lasting(steps: Steps, linux: Mapping[str, Any]) -> None:
    """Make steps of what every process of a container begins with: execution domain and memory policy.

    Raises OciError for a list of nodes that is none.
    """
    if personality := linux.get("personality"):
        kernel.add_personality(steps, _DOMAINS[personality["domain"]])
    if policy := linux.get("memoryPolicy"):
        mode = MEMORY_MODES[policy["mode"]]
        for flag in policy.get("flags") or ():
            mode |= MEMORY_FLAGS[flag]
        nodes = parse_numbers(policy["nodes"]) if policy.get("nodes") else set()
        if max(nodes, default=0) >= _MOST_NODES:
            raise OciError(f"linux.memoryPolicy.nodes: {policy['nodes']!r} is beyond any machine's nodes")
        kernel.add_memory_policy(steps, mode, nodes)


def set_lasting(linux: Mapping[str, Any]) -> None:
    """Do `add_lasting` here and now. Raises OciError."""
    steps = Steps()
    add_lasting(steps, linux)
    try:
        steps.run()
    except StepFailed as error:
        raise OciError(error.strerror or "", error.errno or 0) from None


def _set_scheduler(pid: int, scheduler: Mapping[str, Any]) -> None:
    flags = 0
    for name in scheduler.get("flags") or ():
        if name not in _FLAGS:
            raise OciError(f"process.scheduler.flags: unknown flag {name!r}")
        flags |= _FLAGS[name]
    kernel.sched_setattr(
        pid,
        _POLICIES[scheduler["policy"]],
        flags=flags,
        nice=scheduler.get("nice") or 0,
        priority=scheduler.get("priority") or 0,
        runtime_ns=scheduler.get("runtime") or 0,
        deadline_ns=scheduler.get("deadline") or 0,
        period_ns=scheduler.get("period") or 0,
    )


def parse_numbers(text: str) -> set[int]:
    """Parse a list of CPUs or memory nodes such as `0-3,7`, beyond any machine's. Raises OciError."""
    numbers: set[int] = set()
    budget = _MOST_NUMBERS  # of what is named, again and again or once
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and len(first) < _DIGITS and len(last) < _DIGITS):
            raise OciError(f"{text[:_SHOWN]!r} is not a list of numbers and ranges")
        found = range(int(first), int(last) + 1)
        budget -= len(found)
        if budget < 0:
            raise OciError(f"{text[:_SHOWN]!r} is not a list of numbers and ranges that a machine could have")
        numbers.update(found)
    return numbers
