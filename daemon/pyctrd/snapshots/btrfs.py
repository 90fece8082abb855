"""Btrfs snapshots: each a subvolume that begins as a snapshot of its parent's and shares its blocks.

<root>/<id>/fs          the subvolume                                   0755

Source: btrfs-subvolume(8).
"""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from pyctr_sys import btrfs
from pyctrd.core.mounts import Mount
from pyctrd.core.snapshots import Kind, Usage
from pyctrd.snapshots.directories import Note
from pyctrd.snapshots.driver import Driver, Unusable

_BLOCK: Final = 512  # bytes, of st_blocks; see stat(2)


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
            # From the inside out, and by descriptors: what is below may be as deep, and lead where, a container likes.
            for _, directories, _, fd in os.fwalk(directory, topdown=False):
                for name in directories:
                    if btrfs.is_subvolume(os.stat(name, dir_fd=fd, follow_symlinks=False)):
                        btrfs.destroy(fd, name)
        super().remove(directory)


def _walk(top: str) -> "list[tuple[str, os.stat_result]]":
    """Return the path and status of a directory and all below it, a file of several names once."""
    found = [(top, os.lstat(top))]
    pending, linked = [top], set[int]()
    while pending:
        with suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(entry.path)
                    elif status.st_nlink > 1:
                        if status.st_ino in linked:
                            continue
                        linked.add(status.st_ino)
                    found.append((entry.path, status))
    return found
