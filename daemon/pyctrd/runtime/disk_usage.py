"""What takes disk space in a namespace, and what of it could go."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pyctr_wire.errors import NotFound
from pyctrd.core.containers import Container
from pyctrd.core.content import BlobInfo
from pyctrd.core.images import Image
from pyctrd.core.snapshots import Kind, SnapshotInfo, Usage
from pyctrd.core.tasks import Status
from pyctrd.runtime.log_folders import LogFolders
from pyctrd.runtime.table import TaskTable
from pyctrd.runtime.volumes import Volumes


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


class DiskUsage:
    """Measures; synchronous and slow: it walks the directories of active snapshots."""

    def __init__(
        self,
        containers: Containers,
        images: Images,
        content: Content,
        snapshots: Snapshotters,
        snapshotter_names: Sequence[str],
        table: TaskTable,
        logs: LogFolders,
        volumes: Volumes,
    ) -> None:
        """Measure these."""
        self._containers = containers
        self._images = images
        self._content = content
        self._snapshots = snapshots
        self._names = snapshotter_names
        self._table = table
        self._logs = logs
        self._volumes = volumes

    def measure(self, ns: str) -> list[UsageItem]:
        """Return an item for each kind of object in the namespace."""
        containers = self._containers.list(ns)
        running = [one for one in containers if self._runs(ns, one.id)]
        sizes = {one.id: self._writable(ns, one) for one in containers}
        images = self._images.list(ns)
        used = {one.image for one in containers}
        blobs = [blob for batch in self._content.list(ns) for blob in batch]
        layers = [size for name in self._names for size in self._committed(ns, name)]
        log_count, log_size = self._logs.size(ns)
        stopped = sum(size for name, size in sizes.items() if name not in {one.id for one in running})
        return [
            UsageItem("containers", len(containers), len(running), sum(sizes.values()), stopped),
            UsageItem("images", len(images), sum(image.name in used for image in images), sum(layers), 0),
            UsageItem("content", len(blobs), 0, sum(blob.size for blob in blobs), 0),
            UsageItem("logs", log_count, len(running), log_size, 0),
            UsageItem("volumes", *self._volumes.size(ns)),
        ]

    def _runs(self, ns: str, container_id: str) -> bool:
        task = self._table.find(ns, container_id)
        return task is not None and task.init.status in (Status.RUNNING, Status.PAUSED)

    def _writable(self, ns: str, container: Container) -> int:
        if not container.snapshot_key:
            return 0
        try:
            return self._snapshots.named(container.snapshotter).usage(ns, container.snapshot_key).size
        except NotFound:
            return 0

    def _committed(self, ns: str, name: str) -> Iterator[int]:
        """Yield the sizes of the layers, which their commits froze."""
        snapshotter = self._snapshots.named(name)
        names = [info.name for batch in snapshotter.list(ns) for info in batch if info.kind is Kind.COMMITTED]
        for one in names:
            try:
                yield snapshotter.usage(ns, one).size
            except NotFound:
                continue
