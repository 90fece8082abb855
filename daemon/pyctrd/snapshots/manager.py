"""The snapshotters by name, and what they share: one sequence of ids.

<root>/<snapshotter>/<id>/     see directories.py, overlay.py, native.py, remote.py
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

from pyctr_wire.errors import InvalidArgument
from pyctrd.metadata import snapshots as rows
from pyctrd.metadata.database import Database
from pyctrd.snapshots.directories import Directories
from pyctrd.snapshots.driver import Driver
from pyctrd.snapshots.native import Native
from pyctrd.snapshots.overlay import Overlay
from pyctrd.snapshots.recovery import adopt, recreate
from pyctrd.snapshots.snapshotter import Snapshotter


class SnapshotManager:
    """All snapshotters. Owns everything below its root."""

    def __init__(
        self,
        root: Path,
        database: Database,
        drivers: Sequence[Driver] = (Overlay(), Native()),
    ) -> None:
        """Use `root`, made if it is not there, and repair what the last stop left behind.

        The first of `drivers` is for whoever names no snapshotter.
        """
        self.default = drivers[0].name
        ids = _ids(root, database, [driver.name for driver in drivers])
        self._snapshotters: dict[str, Snapshotter] = {}
        for driver in drivers:
            directories = Directories(root / driver.name, ids)
            if database.has_gaps:
                adopt(database, directories, driver.name)
            if not driver.is_remote:
                recreate(database, directories, driver)
            self._snapshotters[driver.name] = Snapshotter(driver, directories, database)
        self._root = root

    def named(self, snapshotter: str) -> Snapshotter:
        """Return a snapshotter. Raises InvalidArgument for an empty or unknown name."""
        if not snapshotter:
            raise InvalidArgument("snapshotter argument missing")
        try:
            return self._snapshotters[snapshotter]
        except KeyError:
            raise InvalidArgument(f"snapshotter not loaded: {snapshotter}") from None

    def roots(self) -> Mapping[str, Path]:
        """Return every snapshotter's name and directory."""
        return {name: self._root / name for name in self._snapshotters}

    def cleanup(self) -> dict[str, int]:
        """Remove all stray directories; return how many of each snapshotter."""
        return {name: len(snapshotter.cleanup()) for name, snapshotter in self._snapshotters.items()}


def _ids(root: Path, database: Database, names: Sequence[str]) -> Iterator[int]:
    """Make the roots and return the ids that neither a row nor a directory has, in order."""
    highest = rows.highest_id(database.read())
    for name in names:
        directory = root / name
        directory.mkdir(parents=True, exist_ok=True)
        for path in (root, directory):
            path.chmod(0o711)
        highest = max((highest, *(int(path.name) for path in directory.iterdir() if path.name.isdecimal())))
    return count(highest + 1)
