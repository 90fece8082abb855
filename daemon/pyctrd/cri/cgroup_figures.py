"""What a cgroup's files say: processor time, memory and processes of a container or a pod, versions 1 and 2.

Source: kernel Documentation/admin-guide/cgroup-v2.rst; cgroup-v1/memory.rst, cpuacct.rst.
"""

from pathlib import Path
from typing import Final, NamedTuple

from pyctr_sys.cgroups import cgroups_of

_MOUNT: Final = Path("/sys/fs/cgroup")
_UNLIMITED: Final = 1 << 60  # version 1 has a number near 2^63 for it


class Figures(NamedTuple):
    """One look: times in nanoseconds, memory in bytes; `limit` 0 is none."""

    taken_at: int
    cpu: int
    memory: int
    limit: int
    working_set: int
    rss: int
    page_faults: int
    major_page_faults: int
    swap: int
    processes: int


class CgroupDirectories(NamedTuple):
    """Where the files of one cgroup are; on version 2 it is one directory."""

    cpu: Path
    memory: Path
    pids: Path
    is_v2: bool

    @property
    def parent(self) -> "CgroupDirectories":
        """The cgroup above."""
        return CgroupDirectories(self.cpu.parent, self.memory.parent, self.pids.parent, self.is_v2)


def directories_of(pid: int) -> CgroupDirectories:
    """Return the cgroup of a process. Raises OSError if it has ended."""
    paths = {controller: path.lstrip("/") for controller, path in cgroups_of(pid).items()}
    if "memory" in paths:
        cpu, memory, pids = (_MOUNT / name / paths.get(name, "") for name in ("cpuacct", "memory", "pids"))
        return CgroupDirectories(cpu, memory, pids, is_v2=False)
    unified = _MOUNT / paths[""]
    return CgroupDirectories(unified, unified, unified, is_v2=True)


def read(where: CgroupDirectories, taken_at: int) -> Figures:
    """Return a cgroup's figures. Raises OSError if it is gone."""
    memory = table(where.memory / "memory.stat")
    if where.is_v2:
        used = number(where.memory / "memory.current")
        return Figures(
            taken_at,
            cpu=table(where.cpu / "cpu.stat").get("usage_usec", 0) * 1000,
            memory=used,
            limit=number(where.memory / "memory.max"),
            working_set=max(0, used - memory.get("inactive_file", 0)),
            rss=memory.get("anon", 0),
            page_faults=memory.get("pgfault", 0),
            major_page_faults=memory.get("pgmajfault", 0),
            swap=number(where.memory / "memory.swap.current"),
            processes=number(where.pids / "pids.current"),
        )
    used = number(where.memory / "memory.usage_in_bytes")
    with_swap = number(where.memory / "memory.memsw.usage_in_bytes")
    limit = number(where.memory / "memory.limit_in_bytes")
    return Figures(
        taken_at,
        cpu=number(where.cpu / "cpuacct.usage"),
        memory=used,
        limit=limit if limit < _UNLIMITED else 0,
        working_set=max(0, used - memory.get("total_inactive_file", 0)),
        rss=memory.get("total_rss", 0),
        page_faults=memory.get("total_pgfault", 0),
        major_page_faults=memory.get("total_pgmajfault", 0),
        swap=max(0, with_swap - used),
        processes=number(where.pids / "pids.current"),
    )


def oom_kills(where: CgroupDirectories) -> int:
    """Return how many of a cgroup's processes were killed for want of memory. Raises OSError if it is gone."""
    name = "memory.events" if where.is_v2 else "memory.oom_control"
    return table(where.memory / name).get("oom_kill", 0)


def number(path: Path) -> int:
    """Return a file's number, 0 for "max" and where there is no such file."""
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return 0
    return int(text) if text.isdecimal() else 0


def table(path: Path) -> dict[str, int]:
    """Return a file's numbers by their names. Raises OSError."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {name: int(value) for name, value in rows}
