"""The snapshotters that are built in. A new one is a driver in its own file, a line here and in config/checks.py."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from pyctr_sys.namespaces import in_user_namespace
from pyctrd.core.snapshotter_settings import Snapshotters
from pyctrd.log import Logger
from pyctrd.snapshots.blockfile import Blockfile
from pyctrd.snapshots.btrfs import Btrfs
from pyctrd.snapshots.devmapper import Devmapper
from pyctrd.snapshots.driver import Driver, Unusable
from pyctrd.snapshots.erofs import Erofs
from pyctrd.snapshots.fuse_overlayfs import FuseOverlayfs
from pyctrd.snapshots.native import Native
from pyctrd.snapshots.overlay import Overlay
from pyctrd.snapshots.probe import why_not

_AUFS: Final = "no kernel has it any more; use overlayfs, which takes the same images"

_log = Logger(__name__)


class Drivers(NamedTuple):
    """Those that can be used here, the default first, and why others cannot, by name."""

    usable: tuple[Driver, ...]
    refused: Mapping[str, str]


def built_in(root: Path, settings: Snapshotters) -> Drivers:
    """Return the snapshotters that whoever is root here can have: below `root`, each in a directory of its name.

    In a user namespace not every kernel stacks directories: copies are the default then.
    """
    rootless = in_user_namespace()
    root.mkdir(parents=True, exist_ok=True)
    reason = why_not(root) if rootless else None
    if reason is not None:
        _log.warning("overlayfs cannot be used here, snapshots are copies", error=reason)
    first: tuple[Driver, ...] = Overlay(userxattr=rootless), Native()
    makers: Mapping[str, tuple[Callable[[Path], Driver], str]] = {
        "btrfs": (Btrfs, ""),
        "erofs": (lambda place: Erofs(), ""),
        "fuse-overlayfs": (lambda place: FuseOverlayfs(), ""),
        "blockfile": (lambda place: Blockfile(place, settings.blockfile), settings.blockfile.root_path),
        "devmapper": (lambda place: Devmapper(place, settings.devmapper), settings.devmapper.root_path),
    }
    usable: list[Driver] = list(first if reason is None else reversed(first))
    refused = {"aufs": _AUFS}
    for name, (make, root_path) in makers.items():
        directory = Path(root_path) if root_path else root / name
        try:
            directory.mkdir(parents=True, exist_ok=True)
            driver = make(directory)
            driver.root = directory
            usable.append(driver)
        except (Unusable, OSError) as reason_not:
            refused[name] = str(reason_not)
    return Drivers(tuple(usable), refused)
