"""The parts that can wait until the daemon answers: all but what knows containers and tells of them.

To load them takes longer than to load all others, and a daemon that comes back is waited for.
"""

import importlib
import importlib.metadata
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pyctr_sys.namespaces import in_user_namespace
from pyctrd import late_cri
from pyctrd.cdi.registry import Registry as DescribedDevices
from pyctrd.composition import CHECKPOINTS
from pyctrd.config.tables import ProxyKind
from pyctrd.content.store import ContentStore
from pyctrd.core.addresses import Tcp
from pyctrd.core.platforms import Platform, normalize
from pyctrd.diff.differ import Differ
from pyctrd.diff.limits import Limits
from pyctrd.gc.collector import Collector
from pyctrd.gc.scheduler import Scheduler
from pyctrd.log import Logger
from pyctrd.metadata.images import Images
from pyctrd.metadata.leases import Leases
from pyctrd.metadata.namespaces import Namespaces
from pyctrd.metadata.sandboxes import Sandboxes
from pyctrd.registry.access import Registries
from pyctrd.registry.credentials import Credentials, configured, docker_file
from pyctrd.registry.hosts import HostsConfig
from pyctrd.remapping import maps_for
from pyctrd.rpc import (
    content,
    diff,
    events,
    images,
    introspection,
    leases,
    mounts,
    namespaces,
    sandboxes,
    snapshots,
    streaming,
    transfer,
)
from pyctrd.rpc.engine import Engine
from pyctrd.rpc.plugins import plugins
from pyctrd.rpc.volumes import Volumes
from pyctrd.runtime.aftermath import Aftermath
from pyctrd.runtime.belongings import Belongings
from pyctrd.runtime.creation import Creator
from pyctrd.runtime.disk_usage import DiskUsage
from pyctrd.runtime.forgetting import Forgetting
from pyctrd.runtime.log_folders import LogFolders
from pyctrd.runtime.restarts import RestartMonitor
from pyctrd.runtime.revival import Revival
from pyctrd.runtime.runtime_info import runtime_info
from pyctrd.sandbox.controller import SandboxController
from pyctrd.server.call_counts import CallCounts
from pyctrd.server.dispatch import Servicer
from pyctrd.snapshots.driver import Driver
from pyctrd.snapshots.drivers import built_in
from pyctrd.snapshots.manager import SnapshotManager
from pyctrd.streams.manager import StreamManager
from pyctrd.transfer.service import Transfers
from pyctrd.transfer.stores import Stores

if TYPE_CHECKING:
    from pyctrd.composition import Parts
    from pyctrd.remote.connection import Remote

_log = Logger("pyctrd")

# At their first use another version may be installed. What a registry and streams of pods need is too large to be
# loaded for that alone.
for _name in (
    "pyctrd.rpc.convert.events",
    "pyctrd.events.fields",
    "pyctrd.runtime.figures",
    "pyctr_wire.pyctr.runtime_pb2",
):
    importlib.import_module(_name)


def add(parts: "Parts") -> None:
    """Serve the late services, and start what cleans up."""
    LateParts(parts)


class LateParts:
    """Everything that a daemon consists of beside `Parts`."""

    def __init__(self, parts: "Parts") -> None:
        """Build it on `parts`, in whose group runs what runs by itself."""
        self._parts = parts
        self._host = normalize(Platform("linux", os.uname().machine))
        self._build_stores()
        # Of a daemon that was killed; shims that still write there give up.
        shutil.rmtree(parts.config.root / CHECKPOINTS, ignore_errors=True)
        self._build_transfers()
        self._logs = LogFolders(parts.config.root / "logs")
        self._belongings = Belongings(parts.config.root, parts.containers.exists, parts.containers.list)
        self._described = DescribedDevices(tuple(map(Path, parts.config.cdi.directories)))
        self._build_services()
        parts.group.create_task(self._scheduler.run(), name="garbage collection")
        if parts.config.metrics_address is not None and parts.calls is not None:
            parts.group.create_task(self._serve_metrics(parts.config.metrics_address, parts.calls), name="metrics")
        parts.group.create_task(self._aftermath().run(), name="aftermath")
        parts.group.create_task(self._restarts().run(), name="restarts")
        parts.group.create_task(Forgetting(parts.tasks).run(), name="forgetting")

    def _build_stores(self) -> None:
        parts, database = self._parts, self._parts.database
        remotes, keeper = self._proxies()
        self._namespaces = Namespaces(database)
        self._images = Images(database)
        self._leases = Leases(database)
        self._leases.end_calls()
        self._sandboxes = Sandboxes(database)
        self._content = ContentStore(parts.config.root / "content", database, parts.config.content.sharing, keeper)
        parts.content = self._content
        root = parts.config.root / "snapshots"
        own = built_in(root, parts.config.snapshotters)
        self._snapshots = SnapshotManager(root, database, (*own.usable, *remotes), own.refused)
        if database.has_gaps:
            self._rebuild_records()
        self._collector = Collector(database, self._content, self._snapshots)
        self._scheduler = Scheduler(database, lambda: parts.bulk.run(self._collector.collect))

    def _proxies(self) -> tuple[list[Driver], "Remote | None"]:
        """Return the snapshotters that other programs keep, and who keeps the content if it is not us."""
        if not self._parts.config.proxy_plugins:
            return [], None
        from pyctrd.remote.connection import Remote  # most daemons have none
        from pyctrd.snapshots.remote import RemoteSnapshots

        snapshotters: list[Driver] = []
        keeper = None
        for name, proxy in self._parts.config.proxy_plugins.items():
            what = f"{'snapshotter' if proxy.type is ProxyKind.SNAPSHOT else 'content store'} {name}"
            remote = Remote(what, proxy.address.removeprefix("unix://"), proxy.namespace, proxy.timeout)
            self._parts.closing.callback(remote.close)
            if proxy.type is ProxyKind.CONTENT:
                keeper = remote
            else:
                snapshotters.append(RemoteSnapshots(name, remote, proxy.snapshotter or name))
        return snapshotters, keeper

    def _rebuild_records(self) -> None:
        """Know containers that only their bundles tell of. Before the collector, which takes the gaps for filled."""
        from pyctrd.runtime.rebuilt_records import rebuild_records

        rebuild_records(self._parts.bundles, self._parts.containers, self._snapshots)

    def _build_transfers(self) -> None:
        parts, unpack, registry = self._parts, self._parts.config.unpack, self._parts.config.registry
        limits = Limits(unpack.max_bytes, unpack.max_ratio, unpack.free_bytes)
        self._differ = Differ(self._content, parts.bulk, limits, workers=unpack.workers)
        self._streams = StreamManager()
        logins = {name: Credentials(login.username, login.secret) for name, login in registry.credentials.items()}
        known, kept = configured(logins), docker_file(parts.bulk.run, Path(registry.docker_config))
        hosts = HostsConfig(tuple(map(Path, registry.config_path)), frozenset(registry.plain_http))
        user_agent = f"pyctr/{importlib.metadata.version('pyctr')}"
        self._registries = Registries(hosts, known, kept, parts.bulk, user_agent)
        stores = Stores(
            self._content, self._images, self._leases, self._snapshots, self._differ, parts.rows, parts.bulk
        )
        self._transfers = Transfers(stores, self._streams, self._registries, self._host)

    def _build_services(self) -> None:
        parts, rows, bulk, collect = self._parts, self._parts.rows, self._parts.bulk, self._scheduler.collect_now
        servicers: tuple[Servicer, ...] = (
            content.Content(self._content, rows, bulk),
            diff.Diff(self._differ),
            events.Events(parts.exchange),
            images.Images(self._images, rows, collect),
            leases.Leases(self._leases, rows, collect),
            mounts.Mounts(),
            namespaces.Namespaces(self._namespaces, rows),
            sandboxes.Store(self._sandboxes, rows),
            sandboxes.Controller(
                self._sandbox_controller(), self._sandboxes, parts.runtimes, parts.tasks, self._host, rows
            ),
            snapshots.Snapshots(self._snapshots, rows, bulk),
            streaming.Streaming(self._streams),
            transfer.Transfer(self._transfers, self._streams, parts.operations),
            self._engine(),
            *self._cri(),
        )
        for servicer in servicers:
            parts.dispatch.add(servicer)
        # Else a client changes the owners of a copy by itself.
        capabilities = () if in_user_namespace() else ("remap-ids",)
        known = plugins(
            self._host,
            self._snapshots.roots(),
            parts.dispatch.services(),
            capabilities,
            parts.config.proxy_plugins,
            self._snapshots.refused,
        )
        identity = _persistent_uuid(parts.config.root / "uuid")
        parts.dispatch.add(
            introspection.Introspection(known, identity, runtime_info, lambda: parts.runtime_versions.warnings, bulk)
        )

    def _sandbox_controller(self) -> SandboxController:
        parts = self._parts

        async def members(namespace: str, sandbox_id: str) -> list[str]:
            entries = await parts.container_index.list(namespace, ())
            return [entry.id for entry in entries if entry.container.sandbox_id == sandbox_id]

        parts.sandboxes = SandboxController(parts.config.state / "sandboxes", parts.tasks, members, parts.exchange)
        return parts.sandboxes

    def _cri(self) -> Iterable[Servicer]:
        stores = late_cri.Stores(
            self._images,
            self._content,
            self._snapshots,
            self._leases,
            self._sandboxes,
            self._transfers,
            self._belongings,
            self._described,
            self._differ,
        )
        return late_cri.CriParts(self._parts, stores, self._scheduler.collect_now, self._host).servicers

    def _aftermath(self) -> Aftermath:
        parts = self._parts
        return Aftermath(
            parts.exchange,
            parts.container_index,
            parts.containers,
            self._namespaces,
            self._snapshots,
            parts.lifecycle,
            parts.tasks.table,
            self._logs,
            self._belongings,
            parts.rows,
            parts.bulk,
        )

    def _restarts(self) -> RestartMonitor:
        parts = self._parts
        revival = Revival(parts.containers, self._snapshots, parts.lifecycle, parts.tasks, parts.runtimes, parts.rows)
        return RestartMonitor(
            parts.exchange,
            parts.container_index,
            parts.containers,
            self._namespaces,
            parts.tasks.table,
            revival,
            parts.operations,
            parts.rows,
        )

    async def _serve_metrics(self, address: Tcp, calls: CallCounts) -> None:
        parts = self._parts
        gathering = await parts.bulk.run(importlib.import_module, "pyctrd.metrics.gathering")
        server = await parts.bulk.run(importlib.import_module, "pyctrd.metrics.server")
        gatherer = gathering.Gatherer(
            parts.tasks,
            parts.container_index,
            parts.operations,
            calls,
            parts.dispatch.kinds,
            self._scheduler,
            importlib.metadata.version("pyctr"),
            parts.bulk.run,
        )
        await server.serve(address, gatherer.text)

    def _engine(self) -> Engine:
        parts = self._parts
        usage = DiskUsage(
            parts.containers,
            self._images,
            self._content,
            self._snapshots,
            tuple(self._snapshots.roots()),
            self._collector.freed_without,
            parts.tasks.table,
            self._logs,
            (self._belongings.volumes, self._belongings.named_volumes),
        )
        creator = Creator(
            parts.containers,
            self._images,
            self._content,
            self._snapshots,
            self._leases,
            self._logs,
            self._belongings,
            self._described,
            parts.apparmor,
            maps_for(parts.config.userns.remap),
        )
        return Engine(
            creator,
            parts.runtimes,
            parts.container_index,
            parts.tasks,
            parts.operations,
            self._scheduler.collect_now,
            usage.measure,
            Volumes(self._belongings.volumes, self._belongings.named_volumes, parts.bulk),
            parts.rows,
            parts.bulk,
            self._host,
            parts.upgrade,
            self._transfers.unpack,
            self._registries.check_login,
        )


def _persistent_uuid(path: Path) -> str:
    """Return the text in `path`, made on first use: who we are to clients as long as the root directory lives."""
    if not path.exists():
        staged = path.with_suffix(".new")
        staged.write_text(str(uuid.uuid4()))
        staged.rename(path)
    return path.read_text().strip()
