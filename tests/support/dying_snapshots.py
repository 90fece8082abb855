"""A program that prepares and commits a snapshot and dies, by SIGKILL, right after a step of that.

python -m support.dying_snapshots ROOT DRIVER PLACE STEP
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyctrd.core.snapshotter_settings import Blockfile as BlockfileSettings
from pyctrd.core.snapshotter_settings import Devmapper as DevmapperSettings
from pyctrd.snapshots.blockfile import Blockfile
from pyctrd.snapshots.btrfs import Btrfs
from pyctrd.snapshots.devmapper import Devmapper
from pyctrd.snapshots.driver import Driver
from pyctrd.snapshots.erofs import Erofs
from pyctrd.snapshots.snapshotter import Snapshotter
from support.stores import NS, open_stores

STEPS = {
    "files made": (Driver, "create"),
    "row stored": (Snapshotter, "_store"),
    "files frozen": (Driver, "commit"),
    "row frozen": (Snapshotter, "_freeze"),
}
MAKERS: dict[str, Callable[[str], Driver]] = {
    "btrfs": lambda place: Btrfs(Path(place)),
    "erofs": lambda place: Erofs(),
    "blockfile": lambda place: Blockfile(Path(place), BlockfileSettings(scratch_size=32 << 20)),
    "devmapper": lambda place: Devmapper(
        Path(place), DevmapperSettings(os.environ["PYCTR_TEST_POOL"], base_image_size="32MB", async_remove=True)
    ),
}


def _dying_after(step: Callable[..., Any]) -> Callable[..., Any]:
    def dying(*args: Any, **kwargs: Any) -> None:
        step(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    return dying


def main() -> None:
    root, name, place, step = sys.argv[1:]
    driver = MAKERS[name](place)
    driver.root = Path(place)
    owner, method = STEPS[step]
    owner = type(driver) if owner is Driver else owner
    with open_stores(Path(root), None, driver) as stores:
        snapshotter = stores.snapshots.named(name)
        setattr(owner, method, _dying_after(getattr(owner, method)))
        snapshotter.prepare(NS, "key", "base")
        snapshotter.commit(NS, "above", "key")


if __name__ == "__main__":
    main()
