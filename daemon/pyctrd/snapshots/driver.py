"""What makes one kind of snapshots: the one interface between a snapshotter's rows and its files.

A driver sees directories, each a snapshot's own, and what is noted of it; names, namespaces, leases and collection are
the snapshotter's business. All methods may be called from several threads, for different snapshots.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pyctrd.core.idmaps import Maps, mapped_root
from pyctrd.core.labels import Labels
from pyctrd.core.mounts import Mount
from pyctrd.core.snapshots import Kind, Usage
from pyctrd.snapshots.directories import Note
from pyctrd.snapshots.owners import shift
from pyctrd.snapshots.removal import remove_tree
from pyctrd.snapshots.usage import measure


class Unusable(Exception):
    """Why a kind of snapshots cannot be had on this machine, or as it is configured."""


class Driver(ABC):
    """A kind of snapshots, whose files are in `<directory>/fs` unless it says otherwise; `parents`: nearest first."""

    name: str
    root: Path | None = None
    """Where its directories are, if not beside the other drivers'."""
    can_rebase: ClassVar[bool] = False
    """Whether a snapshot made without a parent may be committed on top of one."""
    maps_ids: ClassVar[bool] = False
    """Whether whoever mounts a snapshot can show what is below it with other owners; a copy is given to them."""
    is_remote: ClassVar[bool] = False
    """Whether another program keeps the snapshots: calls wait for it, and one that fails may still be under way."""

    removes_at_once: bool = False
    """Whether a snapshot's files go when it is removed, not with the next collection."""

    @abstractmethod
    def create(self, directory: Path, parents: Sequence[Path], note: Note) -> Sequence[Mount] | Note:
        """Fill a new directory, on top of `parents`, for what `note` says; return the mounts that show it.

        A note is returned instead if a committed snapshot of that note's name was there already.
        """

    @abstractmethod
    def mounts(self, directory: Path, parents: Sequence[Path], kind: Kind) -> Sequence[Mount]:
        """Return the mounts that show a snapshot; the same ones each time."""

    def usage(self, directory: Path, parents: Sequence[Path], kind: Kind) -> Usage:
        """Measure what a snapshot adds."""
        return measure(directory / "fs")

    def kept(self, directory: Path, kind: Kind) -> Path:
        """Return what must be there of a snapshot."""
        return directory / "fs"

    def give(self, directory: Path, parents: Sequence[Path], maps: Maps) -> None:
        """Let a new snapshot belong to the users of a user namespace, as far as it is a copy: all else is mapped."""
        if parents and not self.maps_ids:
            shift(directory / "fs", maps)
        else:
            os.chown(directory / "fs", *mapped_root(maps))

    def commit(self, directory: Path, parents: Sequence[Path], note: Note) -> Note:
        """Freeze an active snapshot for what `note` says; return it with its size, and what else is to be noted.

        Its row follows. If that fails, the snapshot is active still, and may be committed again.
        """
        usage = self.usage(directory, parents, Kind.ACTIVE)
        return note._replace(size=usage.size, inodes=usage.inodes)

    def committed(self, directory: Path) -> None:  # noqa: B027 - few have to
        """Let go of what an active snapshot needs: its row says now that it is committed. A crash may come before."""

    def relabel(self, directory: Path, old: Labels, new: Labels) -> None:  # noqa: B027 - few have to
        """Take note of changed labels."""

    def remove(self, directory: Path) -> None:
        """Remove a snapshot and its directory; a part that has gone before is a success. Raises OSError, ApiError."""
        remove_tree(directory)
