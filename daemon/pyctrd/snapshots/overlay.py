"""Overlay snapshots: one directory each, stacked by the kernel when mounted.

    <root>/<id>/fs          what this snapshot adds (overlayfs "upper")      0755
    <root>/<id>/work        overlayfs scratch space, of active snapshots     0711

Source: kernel Documentation/filesystems/overlayfs.rst.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final

from pyctrd.core.mounts import Mount
from pyctrd.core.snapshots import Kind
from pyctrd.snapshots.directories import Note
from pyctrd.snapshots.driver import Driver

# There if the kernel can index hard links; then it must not, or a layer could not be used twice.
_INDEX_PARAMETER: Final = "/sys/module/overlay/parameters/index"


class Overlay(Driver):
    """The files of overlay snapshots."""

    name = "overlayfs"
    can_rebase: ClassVar[bool] = True
    maps_ids: ClassVar[bool] = True

    def __init__(self, *, userxattr: bool = False) -> None:
        """With `userxattr`, marks are attributes of the kind that root of a user namespace may set."""
        self._extra = ("userxattr",) if userxattr else ()

    def create(self, directory: Path, parents: Sequence[Path], note: Note) -> Sequence[Mount]:
        """Make the directories of a snapshot on top of `parents`, the nearest first."""
        upper = f"{directory}/fs"
        _make_directory(upper, 0o755)
        if parents:
            owner = os.stat(f"{parents[0]}/fs")
            os.chown(upper, owner.st_uid, owner.st_gid)
        if note.kind == Kind.ACTIVE:
            _make_directory(f"{directory}/work", 0o711)
        return self.mounts(directory, parents, Kind(note.kind))

    def mounts(self, directory: Path, parents: Sequence[Path], kind: Kind) -> Sequence[Mount]:
        """Return the mounts that show a snapshot."""
        index = ("index=off",) if os.path.exists(_INDEX_PARAMETER) else ()
        return stack(directory, parents, kind, (*self._extra, *index))


def _make_directory(path: str, mode: int) -> None:
    with suppress(FileExistsError):
        os.mkdir(path)
    os.chmod(path, mode)


def stack(directory: Path, parents: Sequence[Path], kind: Kind, extra: Sequence[str] = ()) -> Sequence[Mount]:
    """Return the mount of a snapshot on top of `parents`, the nearest first: a bind where one layer is all there is.

    An overlay has the options `extra`, too.
    """
    if kind is Kind.VIEW and len(parents) < 2:
        return [Mount("bind", f"{parents[0] if parents else directory}/fs", options=("ro", "rbind"))]
    if not parents:
        return [Mount("bind", f"{directory}/fs", options=("rw", "rbind"))]
    lower = "lowerdir=" + ":".join(f"{parent}/fs" for parent in parents)
    options = (lower,) if kind is Kind.VIEW else (f"workdir={directory}/work", f"upperdir={directory}/fs", lower)
    return [Mount("overlay", "overlay", options=(*options, *extra))]
