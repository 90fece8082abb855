"""The daemon's stores on a directory of a test's own, with the events that they send and a clock that a test moves."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pyctrd.content.store import ContentStore
from pyctrd.core.anys import AnyValue
from pyctrd.core.containers import Container
from pyctrd.core.events import Event
from pyctrd.core.snapshots import SnapshotInfo
from pyctrd.gc.collector import Collector
from pyctrd.metadata.containers import Containers
from pyctrd.metadata.database import Database
from pyctrd.metadata.images import Images
from pyctrd.metadata.leases import Leases
from pyctrd.metadata.namespaces import Namespaces
from pyctrd.metadata.sandboxes import Sandboxes
from pyctrd.snapshots.driver import Driver
from pyctrd.snapshots.manager import SnapshotManager
from pyctrd.snapshots.native import Native
from pyctrd.snapshots.overlay import Overlay
from pyctrd.snapshots.snapshotter import Snapshotter

NS = "test"


class Clock:
    """A time of day that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **duration: float) -> None:
        self.now += timedelta(**duration)


@dataclass
class Stores:
    """Every store of one root directory."""

    root: Path
    database: Database
    content: ContentStore
    snapshots: SnapshotManager
    collector: Collector
    clock: Clock
    events: list[tuple[str, Event]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.namespaces = Namespaces(self.database)
        self.containers = Containers(self.database)
        self.images = Images(self.database)
        self.leases = Leases(self.database)
        self.sandboxes = Sandboxes(self.database)

    def digests(self, ns: str = NS) -> list[str]:
        return [blob.digest for batch in self.content.list(ns) for blob in batch]

    def blob_file(self, digest: str) -> Path:
        return self.root / "content" / "blobs" / digest.replace(":", "/")


def names(snapshotter: Snapshotter, ns: str = NS) -> list[str]:
    """Return the names and keys of all snapshots."""
    return [info.name for info in infos(snapshotter, ns)]


def infos(snapshotter: Snapshotter, ns: str = NS) -> list[SnapshotInfo]:
    """Return all snapshots."""
    return [info for batch in snapshotter.list(ns) for info in batch]


def container(container_id: str = "c1", **fields: object) -> Container:
    """Return a container that is valid."""
    values: dict[str, object] = {"runtime_name": "io.containerd.runc.v2", "spec": AnyValue("spec", b"{}"), **fields}
    return Container(container_id, **values)  # type: ignore[arg-type]


@contextmanager
def open_stores(root: Path, clock: Clock | None = None, *drivers: Driver) -> Iterator[Stores]:
    """Open the stores below `root`, with overlayfs, native and other `drivers`, and close them again."""
    events: list[tuple[str, Event]] = []
    clock = clock or Clock()
    database = Database(root / "metadata.db", lambda ns, event: events.append((ns, event)), clock)
    try:
        content = ContentStore(root / "content", database)
        snapshots = SnapshotManager(root / "snapshots", database, (Overlay(), Native(), *drivers))
        collector = Collector(database, content, snapshots)
        yield Stores(root, database, content, snapshots, collector, clock, events)
    finally:
        database.close()
