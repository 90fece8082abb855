"""Devmapper snapshots: each a thin device of a pool that the administrator has made, with a file system in it.

    <root>/pool                  the pool's name: whatever is in it is ours
    <root>/<id>/device           the device's size, in sectors; written when it is complete
    /dev/mapper/<pool>-snap-<id> the device, there while somebody needs it

The number of a device in the pool is its snapshot's. The pool's own metadata are transactional, and a message to it is
on disk when it is answered; the directory, made before and removed after the device, says what a crash has left. A
device without a directory, which only a power cut leaves, is replaced by the next one of its number: so a pool that
somebody else has filled is refused.

Source: kernel Documentation/admin-guide/device-mapper/thin-provisioning.rst; dmsetup(8).
"""

import re
import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from pyctr_sys.namespaces import in_user_namespace
from pyctr_wire.errors import DataLoss, FailedPrecondition, Internal, ResourceExhausted
from pyctrd.core.idmaps import Maps
from pyctrd.core.mounts import Mount
from pyctrd.core.snapshots import Kind, Usage
from pyctrd.core.snapshotter_settings import Devmapper as Settings
from pyctrd.metadata.durable import replacing
from pyctrd.snapshots.block import PATIENCE, give_tree, options_for_copies
from pyctrd.snapshots.directories import Note
from pyctrd.snapshots.driver import Driver, Unusable
from pyctrd.snapshots.programs import run

_SECTOR: Final = 512  # bytes
_MOST: Final = 1 << 24  # numbers of devices in a pool
_UNITS: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
# MKFS reads the whole device where it cannot discard, and a new thin device has nothing to discard.
_MKFS: Final = {"ext4": ("-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"), "xfs": ("-q", "-K")}


class Devmapper(Driver):
    """The devices of devmapper snapshots; what one takes has its parent's part in it."""

    name = "devmapper"

    def __init__(self, root: Path, settings: Settings) -> None:
        """Use the pool that is configured, for the snapshots of `root` alone. Raises Unusable."""
        if not settings.pool_name:
            raise Unusable("snapshotters.devmapper.pool_name is not set; docs/snapshotters.md tells how a pool is made")
        if in_user_namespace():
            raise Unusable("devices are for root of the machine only")
        for program in ("dmsetup", f"mkfs.{settings.fs_type}"):
            if shutil.which(program) is None:
                raise Unusable(f"there is no {program} in $PATH")
        self._settings = settings
        self._sectors = size_of(settings.base_image_size) // _SECTOR
        self._least_free = percentage_of(settings.min_free_space)
        self._pool = settings.pool_name
        self._messaging = threading.Lock()
        self.removes_at_once = not settings.async_remove
        try:
            self._require_space()
        except ResourceExhausted:
            pass  # what is there can be used and removed
        except Internal as error:
            raise Unusable(f"snapshotters.devmapper.pool_name: {self._pool}: {error}") from None
        self._take(root)

    def create(self, directory: Path, parents: Sequence[Path], note: Note) -> Sequence[Mount]:
        """Make a device: a snapshot of the nearest of `parents`, or a new one with an empty file system."""
        self._require_space()
        number = int(directory.name)
        if number >= _MOST:
            raise ResourceExhausted(f"a thin pool has no device {number}: {_MOST} is the most")
        if parents:
            sectors = int((parents[0] / "device").read_text())
            self._snapshot(parents[0], number)
        else:
            sectors = self._sectors
            self._message("create_thin", number)
        self._activate(directory, sectors)
        if not parents:
            options = (*_MKFS.get(self._settings.fs_type, ()), *self._settings.fs_options.split())
            run(f"mkfs.{self._settings.fs_type}", *options, self._path(directory))
        (directory / "device").write_text(f"{sectors}\n")
        return self.mounts(directory, parents, Kind(note.kind))

    def mounts(self, directory: Path, parents: Sequence[Path], kind: Kind) -> Sequence[Mount]:
        """Return the mount that shows a snapshot, whose device is there from now on."""
        self._activate(directory, int((directory / "device").read_text()))
        options = ("ro" if kind is Kind.VIEW else "rw", *options_for_copies(self._settings.fs_type))
        return [Mount(self._settings.fs_type, self._path(directory), options=options)]

    def usage(self, directory: Path, parents: Sequence[Path], kind: Kind) -> Usage:
        """Return what the pool has of the device."""
        self._activate(directory, int((directory / "device").read_text()))
        fields = run("dmsetup", "status", self._device(directory)).split()
        return Usage(int(fields[3]) * _SECTOR, 1)  # "start length thin MAPPED HIGHEST"

    def kept(self, directory: Path, kind: Kind) -> Path:
        """Return the file that says that the device is complete."""
        return directory / "device"

    def give(self, directory: Path, parents: Sequence[Path], maps: Maps) -> None:
        """Change the owners of all files in it."""
        give_tree(self.mounts(directory, parents, Kind.ACTIVE)[0], maps, is_filled=bool(parents))

    def commit(self, directory: Path, parents: Sequence[Path], note: Note) -> Note:
        """Measure a device that nobody has mounted any more. Raises FailedPrecondition if somebody has."""
        deadline = monotonic() + PATIENCE
        while self._is_open(directory):
            if monotonic() > deadline:
                path = self._path(directory)
                raise FailedPrecondition(f"{path} is mounted: unmount it before its snapshot is committed")
            sleep(0.05)
        return super().commit(directory, parents, note)

    def committed(self, directory: Path) -> None:
        """Let the device go: only what is on top of it needs one."""
        self._deactivate(directory)

    def remove(self, directory: Path) -> None:
        """Remove the device, here and from the pool, and the directory."""
        if self._settings.discard_blocks and (directory / "device").exists():
            with suppress(DataLoss):
                self._activate(directory, int((directory / "device").read_text()))
                run("blkdiscard", self._path(directory))
        self._deactivate(directory)
        try:
            self._send(f"delete {directory.name}")
        except Internal as error:
            if "No data available" not in str(error):  # it has never been made, or is gone
                raise
        super().remove(directory)

    def _snapshot(self, parent: Path, number: int) -> None:
        """Make a snapshot of a device. If that is active, as after a crash, it must be quiet meanwhile."""
        with self._messaging:
            active = Path(self._path(parent)).exists()
            if active:
                run("dmsetup", "suspend", self._device(parent))
            try:
                self._message("create_snap", number, parent.name)
            finally:
                if active:
                    run("dmsetup", "resume", self._device(parent))

    def _message(self, verb: str, number: int, *more: str) -> None:
        """Have a device made, in the place of one that nobody knows."""
        message = " ".join((verb, str(number), *more))
        try:
            self._send(message)
        except Internal as error:
            if "File exists" not in str(error):
                raise
            self._send(f"delete {number}")
            self._send(message)

    def _send(self, message: str) -> None:
        run("dmsetup", "message", self._pool, "0", message)

    def _activate(self, directory: Path, sectors: int) -> None:
        """See that the device is there. Raises DataLoss if the pool does not have it."""
        if not Path(self._path(directory)).exists():
            table = f"0 {sectors} thin /dev/mapper/{self._pool} {directory.name}"
            try:
                run("dmsetup", "create", self._device(directory), "--table", table)
            except Internal as error:
                if not Path(self._path(directory)).exists():  # somebody else was faster
                    raise DataLoss(f"the pool {self._pool} has no device {directory.name}: {error}") from None

    def _deactivate(self, directory: Path) -> None:
        if Path(self._path(directory)).exists():
            run("dmsetup", "remove", "--retry", self._device(directory))

    def _is_open(self, directory: Path) -> bool:
        if not Path(self._path(directory)).exists():
            return False
        return run("dmsetup", "info", "-c", "--noheadings", "-o", "open", self._device(directory)).strip() != "0"

    def _take(self, root: Path) -> None:
        """Note that the pool is for the snapshots of `root`. Raises Unusable if somebody else has something in it."""
        note = root / "pool"
        if note.exists() and note.read_text() == self._pool:
            return
        # Earlier versions made no note.
        is_ours = not note.exists() and any(path.name.isdecimal() for path in root.iterdir())
        used, _ = self._use()["data"]
        if used and not is_ours:
            raise Unusable(
                f"snapshotters.devmapper.pool_name: {self._pool} holds devices that are not of {root}: a pool is for"
                " one daemon, so make another one"
            )
        with replacing(note) as temporary:
            temporary.write_text(self._pool)

    def _use(self) -> dict[str, tuple[int, int]]:
        """Return how much of its metadata and data the pool has in use, and has at all. Raises Internal without one."""
        fields = run("dmsetup", "status", "--target", "thin-pool", self._pool).split()
        if len(fields) < 6:
            raise Internal("it is not a thin pool")
        # "start length thin-pool TRANSACTION USED/ALL USED/ALL ..."
        found = {}
        for what, field in (("metadata", fields[4]), ("data", fields[5])):
            used, _, total = field.partition("/")
            found[what] = int(used), int(total)
        return found

    def _require_space(self) -> None:
        """Raise ResourceExhausted if less data or metadata are free than there must be, Internal without a pool."""
        for what, (used, total) in self._use().items():
            if (total - used) * 100 < total * self._least_free:
                raise ResourceExhausted(
                    f"the pool {self._pool} has {(total - used) * 100 // total} % of its {what} free, less than the"
                    f" {self._least_free} % of snapshotters.devmapper.min_free_space: remove snapshots, or enlarge it"
                )

    def _device(self, directory: Path) -> str:
        return f"{self._pool}-snap-{directory.name}"

    def _path(self, directory: Path) -> str:
        return f"/dev/mapper/{self._device(directory)}"


def size_of(text: str) -> int:
    """Return the bytes that a text like 10GB or 512m means, in powers of two as containerd's. Raises Unusable."""
    found = re.fullmatch(r"(\d+)\s*([kmgt]?)i?b?", text.strip().lower())
    if found is None or not int(found[1]):
        raise Unusable(f'snapshotters.devmapper.base_image_size: "{text}" is not a size like 10GB')
    return int(found[1]) << _UNITS[found[2]]


def percentage_of(text: str) -> int:
    """Return the number in a text like 10%. Raises Unusable."""
    found = re.fullmatch(r"(\d{1,2})\s*%", text.strip())
    if found is None:
        raise Unusable(f'snapshotters.devmapper.min_free_space: "{text}" is not a percentage like 10%')
    return int(found[1])
