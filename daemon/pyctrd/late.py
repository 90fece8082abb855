"""The parts that can wait until the daemon answers: unpacking, transfers, our own service and what follows from it.

To load them takes as long as to load all others, and a daemon that comes back is waited for.
"""

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING

from pyctrd.diff.differ import Differ
from pyctrd.diff.limits import Limits
from pyctrd.registry.access import Registries
from pyctrd.registry.credentials import Credentials, StoredCredentials
from pyctrd.registry.hosts import HostsConfig
from pyctrd.rpc import diff, streaming, transfer
from pyctrd.rpc.engine import Engine
from pyctrd.rpc.volumes import Volumes
from pyctrd.runtime.aftermath import Aftermath
from pyctrd.runtime.belongings import Belongings
from pyctrd.runtime.creation import Creator
from pyctrd.runtime.disk_usage import DiskUsage
from pyctrd.runtime.log_folders import LogFolders
from pyctrd.streams.manager import StreamManager
from pyctrd.transfer.service import Transfers
from pyctrd.transfer.stores import Stores

if TYPE_CHECKING:
    from pyctrd.composition import Parts


def add(parts: "Parts") -> None:
    """Serve the late services, and start what cleans up after containers."""
    unpack = parts.config.unpack
    limits = Limits(unpack.max_bytes, unpack.max_ratio, unpack.free_bytes)
    differ = Differ(parts.content, parts.bulk, limits, workers=unpack.workers)
    streams = StreamManager()
    transfers = _transfers(parts, differ, streams)
    for servicer in (
        diff.Diff(differ),
        streaming.Streaming(streams),
        transfer.Transfer(transfers, streams, parts.operations),
        _engine(parts, transfers),
    ):
        parts.dispatch.add(servicer)


def _transfers(parts: "Parts", differ: Differ, streams: StreamManager) -> Transfers:
    registry = parts.config.registry
    logins = {name: Credentials(login.username, login.secret) for name, login in registry.credentials.items()}
    credentials = StoredCredentials(parts.bulk.run, logins, Path(registry.docker_config))
    hosts = HostsConfig(tuple(map(Path, registry.config_path)), frozenset(registry.plain_http))
    user_agent = f"pyctr/{importlib.metadata.version('pyctr')}"
    registries = Registries(hosts, credentials, parts.bulk, user_agent)
    stores = Stores(parts.content, parts.images, parts.leases, parts.snapshots, differ, parts.rows, parts.bulk)
    return Transfers(stores, streams, registries, parts.host)


def _engine(parts: "Parts", transfers: Transfers) -> Engine:
    logs = LogFolders(parts.config.root / "logs")
    belongings = Belongings(parts.config.root, parts.containers.exists, parts.containers.list)
    aftermath = Aftermath(
        parts.exchange,
        parts.containers,
        parts.namespaces,
        parts.snapshots,
        parts.lifecycle,
        parts.tasks.table,
        logs,
        belongings,
        parts.rows,
        parts.bulk,
    )
    parts.group.create_task(aftermath.run(), name="aftermath")
    usage = DiskUsage(
        parts.containers,
        parts.images,
        parts.content,
        parts.snapshots,
        tuple(parts.snapshots.roots()),
        parts.collector.freed_without,
        parts.tasks.table,
        logs,
        (belongings.volumes, belongings.named_volumes),
    )
    creator = Creator(parts.containers, parts.images, parts.content, parts.snapshots, parts.leases, logs, belongings)
    return Engine(
        creator,
        parts.container_index,
        parts.tasks,
        parts.operations,
        parts.scheduler.collect_now,
        usage.measure,
        Volumes(belongings.volumes, belongings.named_volumes, parts.bulk),
        parts.rows,
        parts.bulk,
        parts.host,
        parts.upgrade,
        transfers.unpack,
    )
