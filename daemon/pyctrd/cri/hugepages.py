"""Limits of huge pages, which not every kernel has: kubelet sends them whether or not there is anything to limit."""

from functools import cache
from pathlib import Path

_UNIFIED = Path("/sys/fs/cgroup/cgroup.controllers")
_OWN = Path("/proc/self/cgroup")


@cache
def can_be_limited() -> bool:
    """Whether this kernel has the hugetlb controller, in either version of cgroups. Source: cgroups(7)."""
    mounted = (line.split(":")[1].split(",") for line in _OWN.read_text().splitlines())
    unified = _UNIFIED.read_text().split() if _UNIFIED.exists() else []
    return "hugetlb" in unified or any("hugetlb" in controllers for controllers in mounted)
