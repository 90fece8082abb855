"""The parts of a daemon, each built from those before it. This module and late.py alone know concrete classes."""

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pyctrd.config import Config
from pyctrd.content.store import ContentStore
from pyctrd.core.events import ContainerCreate, ContainerDelete, ContainerUpdate, Event
from pyctrd.core.platforms import Platform, normalize
from pyctrd.events.exchange import Exchange
from pyctrd.gc.collector import Collector
from pyctrd.gc.scheduler import Scheduler
from pyctrd.metadata.containers import Containers
from pyctrd.metadata.database import Database
from pyctrd.metadata.images import Images
from pyctrd.metadata.leases import Leases
from pyctrd.metadata.namespaces import Namespaces
from pyctrd.metadata.sandboxes import Sandboxes
from pyctrd.offload import Offload
from pyctrd.rpc import (
    containers,
    content,
    convert,
    events,
    forward,
    health,
    images,
    introspection,
    leases,
    mounts,
    namespaces,
    sandboxes,
    snapshots,
    tasks,
    version,
)
from pyctrd.rpc.container_index import ContainerIndex
from pyctrd.rpc.plugins import plugins
from pyctrd.runtime.bundle import Bundles
from pyctrd.runtime.burial import Undertaker
from pyctrd.runtime.lifecycle import Lifecycle
from pyctrd.runtime.operations import Operations
from pyctrd.runtime.owner import Owners
from pyctrd.runtime.recovery import Recovery
from pyctrd.runtime.runtime_info import runtime_info
from pyctrd.runtime.shims import Endpoints, Shims
from pyctrd.runtime.tasks import Tasks
from pyctrd.runtime.zygote_client import Zygote
from pyctrd.server.dispatch import Dispatch
from pyctrd.server.listener import Listener
from pyctrd.server.ttrpc import TtrpcListener
from pyctrd.snapshots.manager import SnapshotManager

if TYPE_CHECKING:
    from pyctrd.upgrade import Serving

# What late.py serves.
LATE_SERVICES: Final = frozenset(
    {
        "containerd.services.diff.v1.Diff",
        "containerd.services.streaming.v1.Streaming",
        "containerd.services.transfer.v1.Transfer",
        "pyctr.v1.Engine",
    }
)


class Parts:
    """Everything that a daemon consists of, but for what late.py adds."""

    def __init__(
        self,
        config: Config,
        zygote: Zygote,
        group: asyncio.TaskGroup,
        closing: ExitStack,
        upgrade: "Callable[[], Awaitable[Serving]]",
    ) -> None:
        """Build it; work that starts by itself runs in `group`, and `closing` is told how to end each part.

        `upgrade` lets another daemon take over.
        """
        self.config = config
        self.group = group
        self.upgrade = upgrade
        self.host = normalize(Platform("linux", os.uname().machine))
        self.dispatch = Dispatch()
        self.exchange = Exchange(convert.event_to_any, config.events.queue)
        self.database = Database(config.root / "metadata.db", self._publish)
        closing.callback(self.database.close)
        # Closed before the database: that waits for the calls under way.
        self.rows = Offload(config.threads.metadata, "rows")
        closing.callback(self.rows.close)
        self.bulk = Offload(config.threads.bulk, "bulk")
        closing.callback(self.bulk.close)
        self._build_stores()
        self._build_runtime(zygote)
        closing.callback(self.tasks.let_go)
        self._build_services()
        owner = {"uid": config.grpc.uid, "gid": config.grpc.gid}
        self.listener = Listener(
            self.dispatch, Path(config.address), connection_age=config.grpc.connection_age, **owner
        )
        self.shim_listener = TtrpcListener(forward.services(self.tasks), Path(config.ttrpc_address), **owner)

    def _build_stores(self) -> None:
        self.namespaces = Namespaces(self.database)
        self.containers = Containers(self.database)
        self.container_index = ContainerIndex(self.containers, self.rows)
        self.images = Images(self.database)
        self.leases = Leases(self.database)
        self.sandboxes = Sandboxes(self.database)
        self.content = ContentStore(self.config.root / "content", self.database, self.config.content.sharing)
        self.snapshots = SnapshotManager(self.config.root / "snapshots", self.database)
        if self.database.has_gaps:
            self._rebuild_records()
        self.collector = Collector(self.database, self.content, self.snapshots)
        self.scheduler = Scheduler(self.database, lambda: self.bulk.run(self.collector.collect))

    def _rebuild_records(self) -> None:
        """Know containers that only their bundles tell of. Before the collector, which takes the gaps for filled."""
        from pyctrd.runtime.rebuilt_records import rebuild_records

        rebuild_records(Bundles(self.config.state), self.containers, self.snapshots)

    def _build_runtime(self, zygote: Zygote) -> None:
        config, group = self.config, self.group
        endpoints = Endpoints(config.state, config.address, config.ttrpc_address, config.log.level)
        bundles = Bundles(config.state)
        self.operations = Operations()
        owners = Owners(group)
        shims = Shims(endpoints, zygote, self.bulk)
        self.tasks = Tasks(self.exchange, group)
        undertaker = Undertaker(self.tasks, shims, owners, self.operations, group)
        self.lifecycle = Lifecycle(self.tasks, bundles, shims, owners, undertaker, self.operations, group)
        self.recovery = Recovery(self.tasks, bundles, shims, owners, undertaker, self.lifecycle, group)

    def _build_services(self) -> None:
        dispatch, rows, bulk, collect = self.dispatch, self.rows, self.bulk, self.scheduler.collect_now
        dispatch.expect(LATE_SERVICES, self.load_late)
        for servicer in (
            containers.Containers(self.containers, self.container_index, rows),
            content.Content(self.content, rows, bulk),
            events.Events(self.exchange),
            health.Health(dispatch.services),
            images.Images(self.images, rows, collect),
            leases.Leases(self.leases, rows, collect),
            mounts.Mounts(),
            namespaces.Namespaces(self.namespaces, rows),
            sandboxes.Store(self.sandboxes, rows),
            snapshots.Snapshots(self.snapshots, rows, bulk),
            tasks.Tasks(self.tasks, self.lifecycle, self.container_index),
            version.Version(),
        ):
            dispatch.add(servicer)
        services = {*dispatch.services(), introspection.SERVICE}
        known = plugins(self.host, self.snapshots.roots(), services)
        identity = _persistent_uuid(self.config.root / "uuid")
        dispatch.add(introspection.Introspection(known, identity, runtime_info, bulk))

    def load_late(self) -> None:
        """Load and serve what clients seldom need in the first moment: that takes as long as all of the above."""
        from pyctrd import late

        late.add(self)

    def _publish(self, namespace: str, event: Event) -> None:
        """Tell everybody of a change that is on disk; called in the committing thread."""
        if isinstance(event, ContainerCreate | ContainerUpdate | ContainerDelete):
            self.container_index.changed(namespace, event.id)
        self.exchange.publish_core(namespace, event)


def _persistent_uuid(path: Path) -> str:
    """Return the text in `path`, made on first use: who we are to clients as long as the root directory lives."""
    if not path.exists():
        staged = path.with_suffix(".new")
        staged.write_text(str(uuid.uuid4()))
        staged.rename(path)
    return path.read_text().strip()
