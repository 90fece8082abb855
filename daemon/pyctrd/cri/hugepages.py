"""Limits of huge pages, which not every kernel has: kubelet sends them whether or not there is anything to limit."""

import os
from functools import cache
from pathlib import Path

from pyctr_sys.cgroups import cgroups_of

_UNIFIED = Path("/sys/fs/cgroup/cgroup.controllers")


@cache
def can_be_limited() -> bool:
    """Whether this kernel has the hugetlb controller, in either version of cgroups. Source: cgroups(7)."""
    unified = _UNIFIED.read_text().split() if _UNIFIED.exists() else []
    return "hugetlb" in unified or "hugetlb" in cgroups_of(os.getpid())
