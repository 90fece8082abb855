"""What is mounted for a process, as /proc/PID/mountinfo tells. Source: proc_pid_mountinfo(5)."""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


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
    with open(f"/proc/{pid}/mountinfo") as file:
        return parse(file)


def parse(lines: Iterable[str]) -> list[Mounted]:
    """Return what the lines of a mountinfo file say."""
    found = []
    for line in lines:
        before, _, after = line.rstrip("\n").partition(" - ")
        id_, _, device, root, where, options, *propagation = before.split()
        names, kind = frozenset(options.split(",")), after.split()[0]
        found.append(Mounted(int(id_), device, _plain(root), _plain(where), names, kind, tuple(propagation)))
    return found


def is_below(path: str, directory: str) -> bool:
    """Whether `path` is the directory or in it; both are absolute and normal."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _plain(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)
