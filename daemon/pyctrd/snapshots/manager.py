"""The snapshotters by name, and what they share: one sequence of ids.

<root>/<snapshotter>/<id>/     see directories.py, overlay.py, native.py, remote.py
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from types import MappingProxyType

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
        refused: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Use `root`, made if it is not there, and repair what the last stop left behind.

        The first of `drivers` is for whoever names no snapshotter. `refused` says why there are no others.
        """
        self.default = drivers[0].name
        self.refused = refused
        self._roots = {driver.name: driver.root or root / driver.name for driver in drivers}
        ids = _ids(database, [root, *self._roots.values()])
        self._snapshotters: dict[str, Snapshotter] = {}
        for driver in drivers:
            directories = Directories(self._roots[driver.name], ids)
            if database.has_gaps:
                adopt(database, directories, driver.name)
            if not driver.is_remote:
                recreate(database, directories, driver)
            self._snapshotters[driver.name] = Snapshotter(driver, directories, database)

    def named(self, snapshotter: str) -> Snapshotter:
        """Return a snapshotter. Raises InvalidArgument for an empty or unknown name."""
        if not snapshotter:
            raise InvalidArgument("snapshotter argument missing")
        try:
            return self._snapshotters[snapshotter]
        except KeyError:
            reason = f": {self.refused[snapshotter]}" if snapshotter in self.refused else ""
            raise InvalidArgument(f"snapshotter not loaded: {snapshotter}{reason}") from None

    def roots(self) -> Mapping[str, Path]:
        """Return every snapshotter's name and directory."""
        return self._roots

    def cleanup(self) -> dict[str, int]:
        """Remove all stray directories; return how many of each snapshotter."""
        return {name: len(snapshotter.cleanup()) for name, snapshotter in self._snapshotters.items()}


def _ids(database: Database, directories: Sequence[Path]) -> Iterator[int]:
    """Make the directories and return the ids that neither a row nor something in them has, in order."""
    highest = rows.highest_id(database.read())
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o711)
        highest = max((highest, *(int(path.name) for path in directory.iterdir() if path.name.isdecimal())))
    return count(highest + 1)
