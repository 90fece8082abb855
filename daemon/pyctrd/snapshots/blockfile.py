"""Blockfile snapshots: each a file with a file system in it, a copy of its parent's, mounted by a loop device.

<root>/scratch          an empty file system, of which snapshots without a parent are copies
<root>/<id>/disk        what a snapshot is                             0600
"""

import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from pyctr_sys import loop
from pyctr_sys.namespaces import in_user_namespace
from pyctr_wire.errors import FailedPrecondition
from pyctrd.core.idmaps import Maps
from pyctrd.core.mounts import Mount
from pyctrd.core.snapshots import Kind, Usage
from pyctrd.core.snapshotter_settings import Blockfile as Settings
from pyctrd.metadata.durable import replacing
from pyctrd.snapshots.block import PATIENCE, give_tree, options_for_copies
from pyctrd.snapshots.directories import Note
from pyctrd.snapshots.driver import Driver, Unusable
from pyctrd.snapshots.programs import run

_BLOCK: Final = 512  # bytes, of st_blocks; see stat(2)


class Blockfile(Driver):
    """The files of blockfile snapshots; what one takes has its parent's part in it."""

    name = "blockfile"

    def __init__(self, root: Path, settings: Settings) -> None:
        """Keep them below `root`. Raises Unusable."""
        if in_user_namespace():
            raise Unusable("loop devices are for root of the machine only")
        if settings.scratch_file and not Path(settings.scratch_file).is_file():
            raise Unusable(f"snapshotters.blockfile.scratch_file: {settings.scratch_file} is no file")
        if not settings.scratch_file and shutil.which(f"mkfs.{settings.fs_type}") is None:
            raise Unusable(f"there is no mkfs.{settings.fs_type} and no snapshotters.blockfile.scratch_file")
        self._scratch = root / "scratch"
        self._settings = settings
        self._making = threading.Lock()
        if settings.recreate_scratch:
            self._scratch.unlink(missing_ok=True)

    def create(self, directory: Path, parents: Sequence[Path], note: Note) -> Sequence[Mount]:
        """Copy the nearest of `parents`, or the empty file system; where the file system can, a copy shares blocks."""
        _copy(parents[0] / "disk" if parents else self._made_scratch(), directory / "disk")
        return self.mounts(directory, parents, Kind(note.kind))

    def mounts(self, directory: Path, parents: Sequence[Path], kind: Kind) -> Sequence[Mount]:
        """Return the mount that shows a snapshot; it needs a loop device."""
        fs_type = self._settings.fs_type
        mode = "ro" if kind is Kind.VIEW else "rw"
        options = ("loop", mode, *options_for_copies(fs_type), *self._settings.mount_options)
        return [Mount(fs_type, f"{directory}/disk", options=options)]

    def usage(self, directory: Path, parents: Sequence[Path], kind: Kind) -> Usage:
        """Return what the file takes."""
        return Usage((directory / "disk").stat().st_blocks * _BLOCK, 1)

    def kept(self, directory: Path, kind: Kind) -> Path:
        """Return the file."""
        return directory / "disk"

    def give(self, directory: Path, parents: Sequence[Path], maps: Maps) -> None:
        """Change the owners of all files in it."""
        give_tree(self.mounts(directory, parents, Kind.ACTIVE)[0], maps, is_filled=bool(parents))

    def commit(self, directory: Path, parents: Sequence[Path], note: Note) -> Note:
        """Measure a file that nobody has mounted any more. Raises FailedPrecondition if somebody has."""
        disk = directory / "disk"
        if not loop.wait_until_free(str(disk), PATIENCE):
            raise FailedPrecondition(f"{disk} is mounted: unmount it before its snapshot is committed")
        return super().commit(directory, parents, note)

    def _made_scratch(self) -> Path:
        """Return the file with the empty file system, made when it is first needed."""
        with self._making:
            if not self._scratch.exists():
                with replacing(self._scratch) as temporary:
                    if self._settings.scratch_file:
                        _copy(Path(self._settings.scratch_file), temporary)
                    else:
                        _make(temporary, self._settings)
        return self._scratch


def _make(path: Path, settings: Settings) -> None:
    with path.open("xb") as file:
        file.truncate(settings.scratch_size)
    run(f"mkfs.{settings.fs_type}", "-q", str(path))
    with suppress(FileNotFoundError):  # no image has this directory, and only these file systems have the program
        if settings.fs_type.startswith("ext"):
            run("debugfs", "-w", "-R", "rmdir lost+found", str(path))


def _copy(source: Path, target: Path) -> None:
    """Make a copy; one that is cut off has another name."""
    temporary = target.with_name(f"{target.name}.new")
    run("cp", "--reflink=auto", "--sparse=always", "--", str(source), str(temporary))
    temporary.chmod(0o600)
    temporary.rename(target)
