"""What takes disk space in a namespace, and what of it could go.

    containers  what they wrote; could go: of those that do not run
    images      their layers, unpacked; could go: what only images without a container need
    content     blobs; could go: what only images without a container need, and no other namespace sees
    snapshots   what is neither a layer nor a container's: of layers being unpacked, of builds
    logs        of containers
    volumes     could go: those that no container has

Whatever a lease or a label keeps cannot go.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from pyctr_wire.errors import DeadlineExceeded, NotFound, Unavailable
from pyctrd.core.containers import Container
from pyctrd.core.content import BlobInfo
from pyctrd.core.images import Image
from pyctrd.core.reachability import Node
from pyctrd.core.snapshots import Kind, SnapshotInfo, Usage
from pyctrd.core.tasks import Status
from pyctrd.core.values import dataclass
from pyctrd.runtime.log_folders import LogFolders
from pyctrd.runtime.table import TaskTable


@dataclass(frozen=True, slots=True)
class UsageItem:
    """Objects of one kind; sizes in bytes."""

    kind: str
    count: int
    active: int
    size: int
    reclaimable: int


class Containers(Protocol):
    """The containers of a namespace."""

    def list(self, ns: str, /) -> Sequence[Container]: ...


class Images(Protocol):
    """The images of a namespace."""

    def list(self, ns: str, /) -> Sequence[Image]: ...


class Content(Protocol):
    """The blobs of a namespace."""

    def list(self, ns: str, /) -> Iterator[list[BlobInfo]]: ...


class Snapshotter(Protocol):
    """The snapshots of one kind."""

    def list(self, ns: str, /) -> Iterator[list[SnapshotInfo]]: ...
    def usage(self, ns: str, key: str, /) -> Usage: ...


class Snapshotters(Protocol):
    """The snapshotters by name."""

    def named(self, snapshotter: str, /) -> Snapshotter: ...


class Volumes(Protocol):
    """The volumes of one kind."""

    def size(self, ns: str, /) -> tuple[int, int, int, int]: ...


class DiskUsage:
    """Measures; synchronous and slow: it walks the directories of active snapshots."""

    def __init__(
        self,
        containers: Containers,
        images: Images,
        content: Content,
        snapshots: Snapshotters,
        snapshotter_names: Sequence[str],
        freed_without: Callable[[str, Iterable[str]], set[Node]],
        table: TaskTable,
        logs: LogFolders,
        volumes: Sequence[Volumes],
    ) -> None:
        """Measure these; `freed_without` says what a namespace would lose together with images."""
        self._containers = containers
        self._images = images
        self._content = content
        self._snapshots = snapshots
        self._names = snapshotter_names
        self._freed_without = freed_without
        self._table = table
        self._logs = logs
        self._volumes = volumes

    def measure(self, ns: str) -> list[UsageItem]:
        """Return an item for each kind of object in the namespace."""
        containers = self._containers.list(ns)
        used = {one.image for one in containers}
        images = [image.name for image in self._images.list(ns)]
        freed = self._freed_without(ns, [name for name in images if name not in used])
        snapshots = dict(self._measured(ns))
        layers = [(node, size) for node, (kind, size) in snapshots.items() if kind is Kind.COMMITTED]
        own = [(one, snapshots.pop(_rootfs(one), (Kind.ACTIVE, 0))[1]) for one in containers]
        others = [(node, size) for node, (kind, size) in snapshots.items() if kind is not Kind.COMMITTED]
        blobs = [(Node("content", one.digest), one.size) for batch in self._content.list(ns) for one in batch]
        stopped = [size for one, size in own if not self._runs(ns, one.id)]
        running = len(own) - len(stopped)
        log_count, log_size = self._logs.size(ns)
        return [
            UsageItem("containers", len(own), running, sum(size for _, size in own), sum(stopped)),
            replace(_item("images", layers, freed), count=len(images), active=len(used.intersection(images))),
            _item("content", blobs, freed),
            _item("snapshots", others, freed),
            UsageItem("logs", log_count, running, log_size, 0),
            UsageItem("volumes", *map(sum, zip(*(store.size(ns) for store in self._volumes), strict=True))),
        ]

    def _runs(self, ns: str, container_id: str) -> bool:
        task = self._table.find(ns, container_id)
        return task is not None and task.init.status in (Status.RUNNING, Status.PAUSED)

    def _measured(self, ns: str) -> Iterator[tuple[Node, tuple[Kind, int]]]:
        """Yield all snapshots with their kinds and sizes; those of layers were frozen by their commits."""
        for name in self._names:
            snapshotter = self._snapshots.named(name)
            for info in [info for batch in snapshotter.list(ns) for info in batch]:
                try:
                    size = snapshotter.usage(ns, info.name).size
                except NotFound:
                    continue
                except (Unavailable, DeadlineExceeded):
                    size = 0  # another program keeps it, which is gone
                yield Node(f"snapshots/{name}", info.name), (info.kind, size)


def _rootfs(container: Container) -> Node:
    return Node(f"snapshots/{container.snapshotter}", container.snapshot_key)


def _item(kind: str, objects: Sequence[tuple[Node, int]], freed: set[Node]) -> UsageItem:
    """Return what there is of `objects`, each with its size, of which those in `freed` could go."""
    reclaimable = [size for node, size in objects if node in freed]
    total = sum(size for _, size in objects)
    return UsageItem(kind, len(objects), len(objects) - len(reclaimable), total, sum(reclaimable))
