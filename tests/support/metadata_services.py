"""The services of metadata on real stores."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pyctrd.content.store import ContentStore
from pyctrd.core.containers import Container
from pyctrd.core.platforms import Platform
from pyctrd.events.exchange import Exchange
from pyctrd.metadata.containers import Containers as ContainerRows
from pyctrd.metadata.database import Database
from pyctrd.metadata.images import Images as ImageRows
from pyctrd.metadata.leases import Leases as LeaseRows
from pyctrd.metadata.namespaces import Namespaces as NamespaceRows
from pyctrd.metadata.sandboxes import Sandboxes
from pyctrd.offload import Offload
from pyctrd.rpc.container_index import ContainerIndex
from pyctrd.rpc.containers import Containers
from pyctrd.rpc.content import Content
from pyctrd.rpc.convert.events import event_to_any
from pyctrd.rpc.events import Events
from pyctrd.rpc.health import Health
from pyctrd.rpc.images import Images
from pyctrd.rpc.introspection import Introspection
from pyctrd.rpc.leases import Leases
from pyctrd.rpc.mounts import Mounts
from pyctrd.rpc.namespaces import Namespaces
from pyctrd.rpc.plugins import plugins
from pyctrd.rpc.sandboxes import Store
from pyctrd.rpc.snapshots import Snapshots
from pyctrd.rpc.version import Version
from pyctrd.runtime.runtime_versions import Warned
from pyctrd.server.dispatch import Dispatch
from pyctrd.snapshots.manager import SnapshotManager


class CountedRows(ContainerRows):
    """Counts how often containers are read from the database."""

    reads = 0

    def get(self, ns: str, container_id: str) -> Container:
        self.reads += 1
        return super().get(ns, container_id)

    def list(self, ns: str, filters: Sequence[str] = ()) -> list[Container]:
        self.reads += 1
        return super().list(ns, filters)


class Wired:
    """What a test may look at beside the channel."""

    def __init__(self, root: Path, resources: ExitStack) -> None:
        self.exchange = Exchange(event_to_any, 1000)
        self.collections = 0
        self.database = Database(root / "db", self._publish)
        resources.callback(self.database.close)
        self.rows, self.bulk = Offload(2), Offload(4)
        resources.callback(self.rows.close)
        resources.callback(self.bulk.close)
        self.container_rows = CountedRows(self.database)
        self.index = ContainerIndex(self.container_rows, self.rows)
        self.content = ContentStore(root / "content", self.database)
        self.snapshots = SnapshotManager(root / "snapshots", self.database)
        self.dispatch = Dispatch()
        for servicer in (
            Containers(self.container_rows, self.index, self.rows),
            Content(self.content, self.rows, self.bulk),
            Events(self.exchange),
            Health(self.dispatch.services),
            Images(ImageRows(self.database), self.rows, self.collect),
            Leases(LeaseRows(self.database), self.rows, self.collect),
            Mounts(),
            Namespaces(NamespaceRows(self.database), self.rows),
            Store(Sandboxes(self.database), self.rows),
            Snapshots(self.snapshots, self.rows, self.bulk),
            Version(),
        ):
            self.dispatch.add(servicer)
        known = plugins(Platform("linux", "amd64"), self.snapshots.roots(), self.dispatch.services())
        self.runtime_options: list[bytes] = []
        self.warned: list[Warned] = []
        self.dispatch.add(Introspection(known, "u-u", self.runtime_info, lambda: self.warned, self.bulk))

    def runtime_info(self, options: bytes) -> bytes:
        self.runtime_options.append(options)
        return b"info"

    async def collect(self) -> None:
        self.collections += 1

    def _publish(self, namespace: str, event: object) -> None:
        if hasattr(event, "id"):
            self.index.changed(namespace, event.id)
        self.exchange.publish_core(namespace, event)  # type: ignore[arg-type]
