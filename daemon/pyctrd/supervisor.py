"""The composition root: build, recover, serve, drain, in that order. Only this module knows concrete classes."""

import asyncio
import importlib.metadata
import os
import signal
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from pyctr_wire.errors import ApiError, FailedPrecondition
from pyctrd import log
from pyctrd.config import Config, ConfigError
from pyctrd.content.store import ContentStore
from pyctrd.core.events import ContainerCreate, ContainerDelete, ContainerUpdate, Event
from pyctrd.core.platforms import Platform, normalize
from pyctrd.diff.differ import Differ
from pyctrd.events.exchange import Exchange
from pyctrd.gc.collector import Collector
from pyctrd.gc.scheduler import Scheduler
from pyctrd.metadata.containers import Containers
from pyctrd.metadata.database import Database
from pyctrd.metadata.images import Images
from pyctrd.metadata.leases import Leases
from pyctrd.metadata.lock import StateLock
from pyctrd.metadata.namespaces import Namespaces
from pyctrd.offload import Offload
from pyctrd.registry.access import Registries
from pyctrd.registry.credentials import Credentials, StoredCredentials
from pyctrd.registry.hosts import HostsConfig
from pyctrd.rpc import (
    containers,
    content,
    convert,
    diff,
    events,
    forward,
    health,
    images,
    introspection,
    leases,
    mounts,
    namespaces,
    snapshots,
    streaming,
    tasks,
    transfer,
    version,
)
from pyctrd.rpc.container_index import ContainerIndex
from pyctrd.rpc.engine import Engine
from pyctrd.rpc.plugins import plugins
from pyctrd.runtime.aftermath import Aftermath
from pyctrd.runtime.bundle import Bundles
from pyctrd.runtime.burial import Undertaker
from pyctrd.runtime.creation import Creator
from pyctrd.runtime.disk_usage import DiskUsage
from pyctrd.runtime.lifecycle import Lifecycle
from pyctrd.runtime.log_folders import LogFolders
from pyctrd.runtime.operations import Operations
from pyctrd.runtime.owner import Owners
from pyctrd.runtime.recovery import Recovery
from pyctrd.runtime.shims import Endpoints, Shims
from pyctrd.runtime.tasks import Tasks
from pyctrd.runtime.zygote_client import Zygote
from pyctrd.server import public_socket
from pyctrd.server.dispatch import Dispatch
from pyctrd.server.listener import Listener
from pyctrd.server.notify import notify
from pyctrd.server.passthrough import PassThrough
from pyctrd.server.ttrpc import TtrpcListener
from pyctrd.snapshots.manager import SnapshotManager
from pyctrd.streams.manager import StreamManager
from pyctrd.transfer.service import Transfers
from pyctrd.transfer.stores import Stores
from pyctrd.upgrade import Predecessor, Serving, Successor

VERSION: Final = importlib.metadata.version("pyctr")

_STOP_GRACE: Final = 5.0  # seconds for calls under way when the daemon stops
_REST_LIMIT: Final = 20.0  # seconds for threads that nobody waits for any more
_LOOK_PAUSE: Final = 1.0  # seconds

_log = structlog.stdlib.get_logger("pyctrd")


class Refused(Exception):
    """The daemon cannot start here; the text says why, for whoever started it."""


class Unsuccessful(Exception):
    """The daemon that was to take over has failed with everything in its hands: start again."""


class _Stopped(Exception):
    """Ends the group of everything that runs by itself."""


@dataclass(slots=True)
class Change:
    """An upgrade under way: who takes over, who asked for it, and where calls wait meanwhile."""

    outcome: "asyncio.Future[Serving]"
    successor: Successor = field(init=False)
    requests: "set[asyncio.Task[Any] | None]" = field(default_factory=set)
    calls: PassThrough = field(default_factory=PassThrough)


class Supervisor:
    """One daemon, from start to stop."""

    def __init__(
        self,
        config: Config,
        zygote: Zygote,
        reread: Callable[[], Config],
        command: Sequence[str],
        predecessor: Predecessor | None = None,
    ) -> None:
        """Run with `config` and a zygote that has been started.

        `reread` returns the configuration as it is by then, `command` starts the daemon that is installed by then,
        `predecessor` is the daemon that this one takes over from.
        """
        self._config = config
        self._zygote = zygote
        self._reread = reread
        self._command = command
        self._predecessor = predecessor
        self._locks = ExitStack()
        self._lock_fds: list[int] = []
        self._resources = ExitStack()
        self._dispatch = Dispatch()
        self._host = normalize(Platform("linux", os.uname().machine))
        self._stop = asyncio.Event()
        self._change: Change | None = None

    async def run(self) -> None:
        """Serve until a signal says stop, or another daemon has taken over.

        Raises Refused if another daemon owns what we need, Unsuccessful if one that was to take over has failed.
        """
        with self._locks:
            await self._claim()
            with self._resources:
                try:
                    async with asyncio.TaskGroup() as group:
                        self._build(group)
                        await self._recover(group)
                        await self._serve()
                        # What the group still runs are loops, and work that the next daemon finds and does.
                        raise _Stopped  # noqa: TRY301 - how a group is ended
                except* _Stopped:
                    _log.info("stopped" if self._change is None else "handing over")
            if self._change is not None:
                await self._hand_over(self._change)

    async def upgrade(self) -> Serving:
        """Let the program that is installed now take over, and return when it serves.

        Raises FailedPrecondition, and serves on, if it cannot be started or if work under way does not end.
        """
        if self._change is not None:
            raise FailedPrecondition("upgrade: one is under way")
        self._change = change = Change(asyncio.get_running_loop().create_future())
        try:
            change.successor = await Successor.spawn(self._command)
        except (FailedPrecondition, asyncio.CancelledError):
            self._change = None
            raise
        change.requests.add(asyncio.current_task())
        self._stop.set()
        return await asyncio.shield(change.outcome)

    async def _claim(self) -> None:
        """Make the directories, and refuse to share them or the socket with another daemon."""
        config = self._config
        handed_over = await self._predecessor.take(VERSION) if self._predecessor is not None else []
        try:
            for directory, mode in ((config.root, 0o700), (config.state, 0o711)):
                directory.mkdir(parents=True, exist_ok=True)
                directory.chmod(mode)  # whatever the umask is, and whatever an older version left
                lock = StateLock(handed_over.pop(0)) if handed_over else StateLock.take(directory / "lock")
                self._locks.callback(lock.close)
                self._lock_fds.append(lock.fd)
            Path(config.address).parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            if self._predecessor is None:
                public_socket.refuse_if_served(Path(config.address))
        except (ApiError, OSError) as error:
            raise Refused(str(error)) from error

    def _build(self, group: asyncio.TaskGroup) -> None:
        """Build every part, each from those before it; what runs by itself runs in `group`."""
        config = self._config
        self._exchange = Exchange(convert.event_to_any, config.events.queue)
        self._database = Database(config.root / "metadata.db", self._publish)
        self._resources.callback(self._database.close)
        # Closed before the database: that waits for the calls under way.
        self._rows = Offload(config.threads.metadata, "rows")
        self._resources.callback(self._rows.close)
        self._bulk = Offload(config.threads.bulk, "bulk")
        self._resources.callback(self._bulk.close)
        self._build_stores()
        self._build_runtime(group)
        self._build_transfers()
        self._build_services()
        owner = {"uid": config.grpc.uid, "gid": config.grpc.gid}
        self._listener = Listener(
            self._dispatch, Path(config.address), connection_age=config.grpc.connection_age, **owner
        )
        self._shim_listener = TtrpcListener(forward.services(self._tasks), Path(config.ttrpc_address), **owner)

    def _build_stores(self) -> None:
        root = self._config.root
        self._namespaces = Namespaces(self._database)
        self._containers = Containers(self._database)
        self._container_index = ContainerIndex(self._containers, self._rows)
        self._images = Images(self._database)
        self._leases = Leases(self._database)
        self._content = ContentStore(root / "content", self._database)
        self._snapshots = SnapshotManager(root / "snapshots", self._database)
        collector = Collector(self._database, self._content, self._snapshots)
        self._scheduler = Scheduler(self._database, lambda: self._bulk.run(collector.collect))

    def _build_runtime(self, group: asyncio.TaskGroup) -> None:
        config = self._config
        endpoints = Endpoints(config.state, config.address, config.ttrpc_address, config.log.level)
        bundles = Bundles(config.state)
        operations = self._operations = Operations()
        owners = Owners(group)
        shims = Shims(endpoints, self._zygote, self._bulk)
        self._tasks = Tasks(self._exchange, group)
        self._resources.callback(self._tasks.let_go)
        undertaker = Undertaker(self._tasks, shims, owners, operations, group)
        self._lifecycle = Lifecycle(self._tasks, bundles, shims, owners, undertaker, operations, group)
        self._recovery = Recovery(self._tasks, bundles, shims, owners, undertaker, self._lifecycle, group)

    def _build_transfers(self) -> None:
        registry, host = self._config.registry, self._host
        logins = {name: Credentials(login.username, login.secret) for name, login in registry.credentials.items()}
        credentials = StoredCredentials(self._bulk.run, logins, Path(registry.docker_config))
        hosts = HostsConfig(tuple(map(Path, registry.config_path)), frozenset(registry.plain_http))
        registries = Registries(hosts, credentials, self._bulk, f"pyctr/{VERSION}")
        self._differ = Differ(self._content, self._bulk)
        self._streams = StreamManager()
        stores = Stores(
            self._content, self._images, self._leases, self._snapshots, self._differ, self._rows, self._bulk
        )
        self._transfers = Transfers(stores, self._streams, registries, host)

    def _build_services(self) -> None:
        """Serve everything that there is."""
        rows, bulk, collect = self._rows, self._bulk, self._scheduler.collect_now
        for servicer in (
            containers.Containers(self._containers, self._container_index, rows),
            content.Content(self._content, rows, bulk),
            diff.Diff(self._differ),
            events.Events(self._exchange),
            health.Health(self._dispatch.services),
            images.Images(self._images, rows, collect),
            leases.Leases(self._leases, rows, collect),
            mounts.Mounts(),
            namespaces.Namespaces(self._namespaces, rows),
            snapshots.Snapshots(self._snapshots, rows, bulk),
            streaming.Streaming(self._streams),
            tasks.Tasks(self._tasks, self._lifecycle, self._container_index),
            transfer.Transfer(self._transfers, self._streams),
            version.Version(),
            self._engine(),
        ):
            self._dispatch.add(servicer)
        services = {*self._dispatch.services(), introspection.SERVICE}
        known = plugins(self._host, self._snapshots.roots(), services)
        identity = _persistent_uuid(self._config.root / "uuid")
        self._dispatch.add(introspection.Introspection(known, identity))

    def _engine(self) -> Engine:
        """Return our own service, and start what cleans up after its containers."""
        logs = LogFolders(self._config.root / "logs")
        creator = Creator(self._containers, self._images, self._content, self._snapshots, self._leases, logs)
        usage = DiskUsage(
            self._containers,
            self._images,
            self._content,
            self._snapshots,
            tuple(self._snapshots.roots()),
            self._tasks.table,
            logs,
        )
        self._aftermath = Aftermath(
            self._exchange,
            self._containers,
            self._namespaces,
            self._snapshots,
            self._lifecycle,
            self._tasks.table,
            logs,
            self._rows,
        )
        return Engine(
            creator,
            self._container_index,
            self._tasks,
            self._operations,
            self._scheduler.collect_now,
            usage.measure,
            self._rows,
            self._bulk,
            self._host,
            self.upgrade,
        )

    def _publish(self, namespace: str, event: Event) -> None:
        """Tell everybody of a change that is on disk; called in the committing thread."""
        if isinstance(event, ContainerCreate | ContainerUpdate | ContainerDelete):
            self._container_index.changed(namespace, event.id)
        self._exchange.publish_core(namespace, event)

    async def _recover(self, group: asyncio.TaskGroup) -> None:
        """Find out what there is, and start what runs by itself."""
        group.create_task(self._zygote.serve(), name="zygote")
        # Before the shims are asked: they tell at once what nobody acknowledged.
        await self._shim_listener.start()
        await self._recovery.run()
        group.create_task(self._aftermath.run(), name="aftermath")
        group.create_task(self._scheduler.run(), name="garbage collection")

    async def _serve(self) -> None:
        """Answer clients until a signal says stop, or a successor is ready and nothing is under way."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        await self._listener.start()
        self._exchange.open()
        if self._predecessor is not None:
            self._predecessor.serving(VERSION)
        notify("READY=1", f"MAINPID={os.getpid()}")
        _log.info("ready", address=self._config.address, pid=os.getpid())
        while True:
            await self._stop.wait()
            self._stop.clear()
            if self._change is None:
                await self._drain()
                return
            if await self._settle(self._change):
                return

    def _reload(self) -> None:
        """Take over what may change while the daemon runs: the log level."""
        try:
            level = self._reread().log.level
        except ConfigError as error:
            _log.error("reload.failed", error=str(error))
            return
        log.set_level(level)
        _log.info("reloaded", log_level=level)

    async def _drain(self) -> None:
        """Stop accepting calls, end those that only wait for something, and let the others finish."""
        notify("STOPPING=1")
        _log.info("stopping")
        self._exchange.close()
        self._dispatch.end_parked()
        await self._listener.stop(_STOP_GRACE)
        await self._shim_listener.stop()
        self._tasks.look_away()

    async def _settle(self, change: Change) -> bool:
        """Come to rest so that another daemon can begin: calls wait from now on, those under way end.

        Returns False, and lets the waiting calls be served here, if something goes on for too long.
        """
        _log.info("settling", successor=change.successor.pid)
        self._dispatch.divert(change.calls.handler_for)
        await self._dispatch.settle(_STOP_GRACE, change.requests)
        if not (await self._rows.idle(_REST_LIMIT) and await self._bulk.idle(_REST_LIMIT)):
            self._change = None
            change.successor.give_up()
            change.outcome.set_exception(FailedPrecondition("upgrade: work with files goes on for too long"))
            self._dispatch.divert(None)
            change.calls.open(self._listener.private)
            return False
        await self._shim_listener.stop()
        self._tasks.look_away()
        self._exchange.close()
        return True

    async def _hand_over(self, change: Change) -> None:
        """Give everything to the successor, pass late calls through to it, and end with the last connection."""
        try:
            change.successor.hand_over(self._lock_fds)
            serving = await change.successor.serving()
        except (FailedPrecondition, OSError) as error:
            change.outcome.set_exception(FailedPrecondition(f"upgrade: the new daemon failed: {error}"))
            raise Unsuccessful(str(error)) from error
        # A lock belongs to whoever has a descriptor of it: ours must not outlive the successor.
        self._locks.close()
        # The public path, not the successor's own: that one may be restarted while we drain.
        change.calls.open(Path(self._config.address))
        change.outcome.set_result(serving)
        self._dispatch.end_parked(change.calls.unary)
        _log.info("handed over", successor=serving.pid, version=serving.version)
        await self._until_unused(2 * self._config.grpc.connection_age)
        await self._listener.stop(_STOP_GRACE)
        await change.calls.close()

    async def _until_unused(self, seconds: float) -> None:
        """Return when no client is connected any more, a signal says stop, or after so many seconds.

        Each connection is asked to move on when it has reached its age; calls that wait on it may stay for days.
        """
        end = asyncio.get_running_loop().time() + seconds
        while public_socket.connections(self._listener.private) and asyncio.get_running_loop().time() < end:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_PAUSE):
                    await self._stop.wait()
                    return


def _persistent_uuid(path: Path) -> str:
    """Return the text in `path`, made on first use: who we are to clients as long as the root directory lives."""
    if not path.exists():
        staged = path.with_suffix(".new")
        staged.write_text(str(uuid.uuid4()))
        staged.rename(path)
    return path.read_text().strip()
