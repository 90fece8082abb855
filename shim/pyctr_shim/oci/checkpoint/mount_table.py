"""What is mounted for a process, as /proc/PID/mountinfo tells. Source: proc_pid_mountinfo(5)."""

from collections.abc import Iterable
from typing import NamedTuple

from pyctr_sys.proc_lines import read_lines, unescaped


class Mounted(NamedTuple):
    """One mount: `device` is "major:minor", `root` the path within that file system, `where` the mount point.

    `propagation` is "shared:GROUP", "master:GROUP" and the like; empty for a private mount.
    """

    id: int
    device: str
    root: str
    where: str
    options: frozenset[str]
    kind: str
    propagation: tuple[str, ...] = ()

    @property
    def is_slave(self) -> bool:
        """Whether it only sees what is mounted elsewhere, and nobody sees what is mounted on it."""
        kinds = {name.partition(":")[0] for name in self.propagation}
        return "master" in kinds and "shared" not in kinds


def of(pid: int | str) -> list[Mounted]:
    """Return the mounts of a process, lower ones first. Raises FileNotFoundError, or OSError if it has ended."""
    return parse(read_lines(f"/proc/{pid}/mountinfo"))


def parse(lines: Iterable[str]) -> list[Mounted]:
    """Return what the lines of a mountinfo file say."""
    found = []
    for line in lines:
        before, _, after = line.partition(" - ")
        id_, _, device, root, where, options, *propagation = before.split(" ")
        names, kind = frozenset(options.split(",")), after.partition(" ")[0]
        found.append(Mounted(int(id_), device, unescaped(root), unescaped(where), names, kind, tuple(propagation)))
    return found


def is_below(path: str, directory: str) -> bool:
    """Whether `path` is the directory or in it; both are absolute and normal."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")
