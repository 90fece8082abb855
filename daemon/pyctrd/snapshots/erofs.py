"""Erofs snapshots: a committed one is an image that cannot be changed, mounted by us, with an overlay on top.

    <root>/<id>/fs            what an active snapshot adds; of a committed one, where its image is mounted
    <root>/<id>/work          overlayfs scratch space, of active snapshots
    <root>/<id>/layer.erofs   what a committed snapshot adds

An image is mounted when it is first needed, once for all that are on top of it, and again after a reboot.
Source: kernel Documentation/filesystems/erofs.rst; mkfs.erofs(1).
"""

import errno
import os
import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pyctr_sys import loop
from pyctr_sys.mount import MNT_DETACH, MountFlag, mount, umount2
from pyctr_sys.namespaces import in_user_namespace
from pyctrd.core.mounts import Mount
from pyctrd.core.snapshots import Kind
from pyctrd.metadata.durable import replacing
from pyctrd.snapshots.directories import Note
from pyctrd.snapshots.driver import Unusable
from pyctrd.snapshots.overlay import Overlay
from pyctrd.snapshots.programs import run
from pyctrd.snapshots.removal import remove_tree


class Erofs(Overlay):
    """The files of erofs snapshots."""

    name = "erofs"

    def __init__(self) -> None:
        """Raise Unusable where the kernel or the program that makes images is missing."""
        super().__init__()
        if in_user_namespace():
            raise Unusable("images are for root of the machine only to mount")
        if "erofs" not in Path("/proc/filesystems").read_text().split():
            raise Unusable("this kernel has no erofs")
        if shutil.which("mkfs.erofs") is None:
            raise Unusable("there is no mkfs.erofs in $PATH: install erofs-utils")
        self._mounting = threading.Lock()

    def create(self, directory: Path, parents: Sequence[Path], note: Note) -> Sequence[Mount]:
        """Make the directories of a snapshot on top of `parents`."""
        self._show(parents)
        return super().create(directory, parents, note)

    def mounts(self, directory: Path, parents: Sequence[Path], kind: Kind) -> Sequence[Mount]:
        """Return the mounts that show a snapshot."""
        self._show(parents)
        return super().mounts(directory, parents, kind)

    def kept(self, directory: Path, kind: Kind) -> Path:
        """Return what must be there of a snapshot."""
        return directory / ("layer.erofs" if kind is Kind.COMMITTED else "fs")

    def commit(self, directory: Path, parents: Sequence[Path], note: Note) -> Note:
        """Make the image; the directory that it was made of stays until the snapshot is known to be committed."""
        with self._mounting, replacing(directory / "layer.erofs") as temporary:
            run("mkfs.erofs", "--quiet", str(temporary), f"{directory}/fs")
        return super().commit(directory, parents, note)

    def committed(self, directory: Path) -> None:
        """Let the image take the directory's place."""
        self._show([directory])

    def remove(self, directory: Path) -> None:
        """Unmount the image and remove everything."""
        with suppress(OSError):  # EINVAL, ENOENT: it is not mounted
            umount2(f"{directory}/fs", MNT_DETACH)
        super().remove(directory)

    def _show(self, layers: Sequence[Path]) -> None:
        """Mount the images of committed snapshots that are not mounted. The next call goes on after a crash."""
        for layer in layers:
            if not os.path.ismount(layer / "fs"):
                with self._mounting:
                    if not os.path.ismount(layer / "fs"):
                        _mount(layer)


def _mount(layer: Path) -> None:
    tree, before = layer / "fs", layer / "before"
    if tree.exists() and any(tree.iterdir()):
        remove_tree(before)
        tree.rename(before)
    tree.mkdir(mode=0o755, exist_ok=True)
    image = str(layer / "layer.erofs")
    try:
        mount(image, str(tree), "erofs", MountFlag.RDONLY)
    except OSError as error:
        if error.errno != errno.ENOTBLK:
            raise
        loop.mount_file(image, str(tree), "erofs", MountFlag.RDONLY, None)  # before Linux 6.12
    remove_tree(before)
    remove_tree(layer / "work")
