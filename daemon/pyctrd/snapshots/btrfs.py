"""Btrfs snapshots: each a subvolume that begins as a snapshot of its parent's and shares its blocks.

<root>/<id>/fs          the subvolume                                   0755

Source: btrfs-subvolume(8).
"""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from pyctr_sys import btrfs
from pyctrd.core.mounts import Mount
from pyctrd.core.snapshots import Kind, Usage
from pyctrd.snapshots.directories import Note
from pyctrd.snapshots.driver import Driver, Unusable

_BLOCK: Final = 512  # bytes, of st_blocks; see stat(2)
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Btrfs(Driver):
    """The subvolumes of btrfs snapshots."""

    name = "btrfs"

    def __init__(self, root: Path) -> None:
        """Keep them below `root`. Raises Unusable if that is not on btrfs."""
        if not btrfs.is_btrfs(root):
            raise Unusable(f"{root} is not on a btrfs file system")

    def create(self, directory: Path, parents: Sequence[Path], note: Note) -> Sequence[Mount]:
        """Make a subvolume, a snapshot of the nearest of `parents`."""
        tree = directory / "fs"
        if parents:
            btrfs.snapshot(parents[0] / "fs", tree)
        else:
            btrfs.create(tree)
            tree.chmod(0o755)
        return self.mounts(directory, parents, Kind(note.kind))

    def mounts(self, directory: Path, parents: Sequence[Path], kind: Kind) -> Sequence[Mount]:
        """Return the mount that shows a snapshot."""
        return [Mount("bind", f"{directory}/fs", options=("ro" if kind is Kind.VIEW else "rw", "rbind"))]

    def usage(self, directory: Path, parents: Sequence[Path], kind: Kind) -> Usage:
        """Measure the files that are not as they are in the parent: a snapshot keeps inode numbers and times."""
        size, inodes = 0, 0
        below = str(parents[0] / "fs") if parents else ""
        top = str(directory / "fs")
        for path, status in _walk(top):
            if below:
                with suppress(OSError):
                    before = os.lstat(below + path.removeprefix(top))
                    if (before.st_ino, before.st_ctime_ns, before.st_size) == (
                        status.st_ino, status.st_ctime_ns, status.st_size
                    ):  # fmt: skip
                        continue
            size += status.st_blocks * _BLOCK
            inodes += 1
        return Usage(size, inodes)

    def remove(self, directory: Path) -> None:
        """Remove the subvolume, with those that a container has made in it, and the directory."""
        with suppress(FileNotFoundError):
            fd = os.open(directory, _DIRECTORY)
            try:
                _destroy_below(fd)
            finally:
                os.close(fd)
        super().remove(directory)


def _walk(top: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the path and status of a directory and all below it, a file of several names once.

    What vanishes meanwhile, or cannot be reached, is left out. Subvolumes are entered, each a device of its own; other
    file systems are not.
    """
    status = os.lstat(top)
    yield top, status
    pending, linked = [(top, status.st_dev)], set[tuple[int, int]]()
    while pending:
        directory, device = pending.pop()
        with suppress(OSError), os.scandir(directory) as entries:
            for entry in entries:
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    key = (status.st_dev, status.st_ino)
                    if stat.S_ISDIR(status.st_mode):
                        if status.st_dev != device and not btrfs.is_subvolume(status):
                            continue
                        pending.append((entry.path, status.st_dev))
                    elif status.st_nlink > 1:
                        if key in linked:
                            continue
                        linked.add(key)
                    yield entry.path, status


def _destroy_below(top_fd: int) -> None:
    """Remove the subvolumes below an open directory, from the inside out.

    As deep as a container likes, with one descriptor at a time and no path; links are not followed. Raises OSError.
    """
    fd = os.dup(top_fd)
    try:
        levels = [_Level("", os.fstat(fd), _directories(fd))]
        while True:
            level = levels[-1]
            if level.pending:
                name = level.pending.pop()
                fd = _moved(fd, name)
                status = os.fstat(fd)
                if btrfs.is_subvolume(status):
                    btrfs.make_writable(fd)
                levels.append(_Level(name, status, _directories(fd)))
                continue
            levels.pop()
            if not levels:
                return
            fd = _moved(fd, "..")
            if not os.path.samestat(os.fstat(fd), levels[-1].status):
                raise OSError(errno.EBUSY, "a directory was moved meanwhile", level.name)
            if btrfs.is_subvolume(level.status):
                btrfs.destroy(fd, level.name)
    finally:
        os.close(fd)


class _Level(NamedTuple):
    """A directory on the way down: its name, its status, and what is still to be looked at below it."""

    name: str
    status: os.stat_result
    pending: list[str]


def _moved(fd: int, name: str) -> int:
    """Open a directory from another one, which is closed."""
    opened = os.open(name, _DIRECTORY, dir_fd=fd)
    os.close(fd)
    return opened


def _directories(fd: int) -> list[str]:
    with os.scandir(fd) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
