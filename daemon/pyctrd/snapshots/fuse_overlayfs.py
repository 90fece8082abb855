"""Overlay snapshots that a program stacks, for kernels and file systems on which the kernel does not.

Directories as overlayfs has them: see overlay.py. Source: fuse-overlayfs(1).
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final

from pyctr_wire.errors import InvalidArgument
from pyctrd.core.idmaps import Maps
from pyctrd.core.mounts import FUSE_OVERLAY, Mount
from pyctrd.core.snapshots import Kind
from pyctrd.snapshots.driver import Unusable
from pyctrd.snapshots.overlay import Overlay, stack

PROGRAM: Final = "fuse-overlayfs"
DEVICE: Final = "/dev/fuse"


class FuseOverlayfs(Overlay):
    """The files of overlay snapshots, mounted by a program."""

    name = "fuse-overlayfs"
    maps_ids: ClassVar[bool] = False

    def __init__(self) -> None:
        """Raise Unusable where the program, or the device that it needs, is missing or for others only."""
        super().__init__()
        if shutil.which(PROGRAM) is None:
            raise Unusable(f"there is no {PROGRAM} in $PATH: install it")
        if not Path(DEVICE).exists():
            raise Unusable(f"there is no {DEVICE}")
        if not may_use_device():
            raise Unusable(f"this user may not use {DEVICE}: chmod 666, as udev does")

    def mounts(self, directory: Path, parents: Sequence[Path], kind: Kind) -> Sequence[Mount]:
        """Return the mounts that show a snapshot."""
        return [
            replace(mount, type=FUSE_OVERLAY) if mount.type == "overlay" else mount
            for mount in stack(directory, parents, kind)
        ]

    def give(self, directory: Path, parents: Sequence[Path], maps: Maps) -> None:
        """Give an empty snapshot away. Raises InvalidArgument for one on top of others: they would stay as they are."""
        if parents:
            raise InvalidArgument(f"the {self.name} snapshotter cannot show layers with other owners; native can")
        super().give(directory, parents, maps)


def may_use_device() -> bool:
    """Tell whether there is the device, and we may use it: it lets everybody, but not where udev has not seen to it."""
    return os.access(DEVICE, os.R_OK | os.W_OK)
