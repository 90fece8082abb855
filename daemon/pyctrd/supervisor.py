"""The composition root: build, recover, serve, drain, in that order. Only this module knows concrete classes."""

import asyncio
import os
import signal
import uuid
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import structlog

from pyctr_wire.containerd.services.containers.v1 import containers_pb2_grpc
from pyctr_wire.containerd.services.events.v1 import events_pb2_grpc
from pyctr_wire.containerd.services.images.v1 import images_pb2_grpc
from pyctr_wire.containerd.services.introspection.v1 import introspection_pb2_grpc
from pyctr_wire.containerd.services.leases.v1 import leases_pb2_grpc
from pyctr_wire.containerd.services.mounts.v1 import mounts_pb2_grpc
from pyctr_wire.containerd.services.namespaces.v1 import namespace_pb2_grpc
from pyctr_wire.containerd.services.version.v1 import version_pb2_grpc
from pyctr_wire.errors import ApiError
from pyctr_wire.health.v1 import health_pb2_grpc
from pyctrd import log
from pyctrd.config import Config, ConfigError
from pyctrd.core.events import ContainerCreate, ContainerDelete, ContainerUpdate, Event
from pyctrd.events.exchange import Exchange
from pyctrd.metadata.containers import Containers
from pyctrd.metadata.database import Database
from pyctrd.metadata.images import Images
from pyctrd.metadata.leases import Leases
from pyctrd.metadata.lock import StateLock
from pyctrd.metadata.namespaces import Namespaces
from pyctrd.offload import Offload
from pyctrd.rpc import containers, convert, events, health, images, introspection, leases, mounts, namespaces, version
from pyctrd.rpc.container_index import ContainerIndex
from pyctrd.runtime.zygote_client import Zygote
from pyctrd.server import public_socket
from pyctrd.server.dispatch import Dispatch
from pyctrd.server.listener import Listener
from pyctrd.server.notify import notify

_STOP_GRACE: Final = 5.0  # seconds for calls under way when the daemon stops

_log = structlog.stdlib.get_logger("pyctrd")


class Refused(Exception):
    """The daemon cannot start here; the text says why, for whoever started it."""


class Supervisor:
    """One daemon, from start to stop."""

    def __init__(self, config: Config, zygote: Zygote, reread: Callable[[], Config]) -> None:
        """Run with `config` and a zygote that has been started; `reread` returns the configuration as it is by then."""
        self._config = config
        self._zygote = zygote
        self._reread = reread
        self._resources = ExitStack()
        self._dispatch = Dispatch()

    async def run(self) -> None:
        """Serve until a signal says stop. Raises Refused if another daemon owns what we need."""
        with self._resources:
            self._claim()
            async with asyncio.TaskGroup() as group:
                loops: list[asyncio.Task[None]] = []
                self._build(lambda loop: loops.append(group.create_task(loop)))
                await self._listener.start()
                stop = self._stop_on_signals()
                notify("READY=1", f"MAINPID={os.getpid()}")
                _log.info("ready", address=self._config.address, pid=os.getpid())
                await stop.wait()
                await self._drain()
                for loop in loops:
                    loop.cancel()

    def _claim(self) -> None:
        """Make the directories, and refuse to share them or the socket with another daemon."""
        config = self._config
        try:
            for directory, mode in ((config.root, 0o700), (config.state, 0o711)):
                directory.mkdir(parents=True, exist_ok=True)
                directory.chmod(mode)  # whatever the umask is, and whatever an older version left
                lock = StateLock(directory / "lock")
                self._resources.callback(lock.close)
            Path(config.address).parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            public_socket.refuse_if_served(Path(config.address))
        except (ApiError, OSError) as error:
            raise Refused(str(error)) from error

    def _build(self, run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        """Build every part, each from those before it; `run` keeps a loop running until the daemon stops."""
        config = self._config
        self._rows = Offload(config.threads.metadata, "rows")
        self._resources.callback(self._rows.close)
        self._bulk = Offload(config.threads.bulk, "bulk")
        self._resources.callback(self._bulk.close)
        self._exchange = Exchange(convert.event_to_any, config.events.queue)
        self._build_stores()
        self._build_services()
        run(self._zygote.serve())
        self._listener = Listener(
            self._dispatch,
            Path(config.address),
            uid=config.grpc.uid,
            gid=config.grpc.gid,
            connection_age=config.grpc.connection_age,
        )

    def _build_stores(self) -> None:
        self._database = Database(self._config.root / "metadata.db", self._publish)
        self._resources.callback(self._database.close)
        self._namespaces = Namespaces(self._database)
        self._containers = Containers(self._database)
        self._container_index = ContainerIndex(self._containers, self._rows)
        self._images = Images(self._database)
        self._leases = Leases(self._database)

    async def _collect(self) -> None:
        pass

    def _build_services(self) -> None:
        """Register the services with the dispatch."""
        rows = self._rows
        uuid_path = self._config.root / "uuid"
        services: Sequence[tuple[Callable[[Any, Dispatch], None], object]] = (
            (
                containers_pb2_grpc.add_ContainersServicer_to_server,
                containers.Containers(self._containers, self._container_index, rows),
            ),
            (events_pb2_grpc.add_EventsServicer_to_server, events.Events(self._exchange)),
            (health_pb2_grpc.add_HealthServicer_to_server, health.Health(self._dispatch.services)),
            (images_pb2_grpc.add_ImagesServicer_to_server, images.Images(self._images, rows, self._collect)),
            (
                introspection_pb2_grpc.add_IntrospectionServicer_to_server,
                introspection.Introspection([], _persistent_uuid(uuid_path)),
            ),
            (leases_pb2_grpc.add_LeasesServicer_to_server, leases.Leases(self._leases, rows, self._collect)),
            (mounts_pb2_grpc.add_MountsServicer_to_server, mounts.Mounts()),
            (
                namespace_pb2_grpc.add_NamespacesServicer_to_server,
                namespaces.Namespaces(self._namespaces, rows),
            ),
            (version_pb2_grpc.add_VersionServicer_to_server, version.Version()),
        )
        for add, servicer in services:
            add(servicer, self._dispatch)

    def _publish(self, namespace: str, event: Event) -> None:
        """Tell everybody of a change that is on disk; called in the committing thread."""
        if isinstance(event, ContainerCreate | ContainerUpdate | ContainerDelete):
            self._container_index.changed(namespace, event.id)
        self._exchange.publish_core(namespace, event)

    def _stop_on_signals(self) -> asyncio.Event:
        """Install what signals do; return what is set when the daemon shall stop."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        return stop

    def _reload(self) -> None:
        """Take over what may change while the daemon runs: the log level."""
        try:
            level = self._reread().log.level
        except ConfigError as error:
            _log.error("reload.failed", error=str(error))
            return
        log.set_level(level)
        _log.info("reloaded", level=level)

    async def _drain(self) -> None:
        """Stop accepting calls, end those that only wait, and let the others finish."""
        notify("STOPPING=1")
        _log.info("stopping")
        self._dispatch.end_parked()
        await self._listener.stop(_STOP_GRACE)


def _persistent_uuid(path: Path) -> str:
    """Return the text in `path`, made on first use: who we are to clients as long as the root directory lives."""
    if not path.exists():
        staged = path.with_suffix(".new")
        staged.write_text(str(uuid.uuid4()))
        staged.rename(path)
    return path.read_text().strip()
