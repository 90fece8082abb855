"""The life of a daemon: build, recover, serve, drain, in that order, or hand over instead."""

import asyncio
import gc
import importlib
import math
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import field
from pathlib import Path
from typing import Any, Final, Protocol

from grpc._cython import cygrpc  # type: ignore[attr-defined]  # its errors are exported nowhere else

from pyctr_sys.namespaces import in_user_namespace
from pyctr_sys.process import trim_heap
from pyctr_wire.errors import ApiError, FailedPrecondition
from pyctrd import log
from pyctrd.composition import Parts
from pyctrd.config.tables import Config
from pyctrd.config.values import ConfigError
from pyctrd.core.values import dataclass
from pyctrd.log import Logger
from pyctrd.metadata.lock import StateLock
from pyctrd.metadata.schema import NewerSchemaError, why_not_installed
from pyctrd.runtime import reboot
from pyctrd.runtime.recovery import Recovered
from pyctrd.runtime.zygote_client import Zygote
from pyctrd.server import public_socket
from pyctrd.server.notify import notify
from pyctrd.server.passthrough import PassThrough
from pyctrd.upgrade import Predecessor, Serving, Successor

_STOP_GRACE: Final = 5.0  # seconds for calls under way when the daemon stops
_REST_LIMIT: Final = 20.0  # seconds for threads that nobody waits for any more
_LOOK_PAUSE: Final = 1.0  # seconds
_FIRST_CALLS: Final = 0.1  # seconds after which the rest is loaded

# What tells a directory that a daemon has used from one of somebody else's: the lock, or what a backup of one has.
_OURS: Final = frozenset({
    "lock", "boot_id", "tasks", "uuid", "metadata.db", "content", "snapshots", "volumes", "named_volumes", "logs",
    "seccomp",
})  # fmt: skip
_NOBODYS: Final = frozenset({"lost+found"})

_log = Logger("pyctrd")


class Refused(Exception):
    """The daemon cannot start here; the text says why, for whoever started it."""


class Unsuccessful(Exception):
    """The daemon that was to take over has failed with everything in its hands: start again."""


class _Stopped(Exception):
    """Ends the group of everything that runs by itself."""


@dataclass(slots=True)
class Change:
    """An upgrade under way: who takes over, who asked for it, and where calls wait meanwhile."""

    successor: Successor
    outcome: "asyncio.Future[Serving]"
    requests: "set[asyncio.Task[Any] | None]"
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
        self._stop = asyncio.Event()
        self._upgrading = False
        self._change: Change | None = None

    async def run(self) -> None:
        """Serve until a signal says stop, or another daemon has taken over.

        Raises Refused if another daemon owns what we need or has left it in a form that only a newer one knows,
        Unsuccessful if one that was to take over has failed.
        """
        with self._locks:
            await self._claim()
            with self._resources:
                group = asyncio.TaskGroup()
                self._parts = self._build(group)
                refused: list[BaseException] = []
                try:
                    async with group:
                        await self._serve(await self._recover(group))
                        # What the group still runs are loops, and work that the next daemon finds and does.
                        raise _Stopped  # noqa: TRY301 - how a group is ended
                except* _Stopped:
                    _log.info("stopped" if self._change is None else "handing over")
                except* Refused as errors:
                    refused += errors.exceptions
                if refused:  # raised here, where it does not become a group of one
                    raise refused[0]
            if self._change is not None:
                await self._hand_over(self._change)

    async def upgrade(self) -> Serving:
        """Let the program that is installed now take over, and return when it serves and has been loaded whole.

        Raises FailedPrecondition, and serves on, if it cannot be started or if work under way does not end.
        """
        if self._upgrading:
            raise FailedPrecondition("upgrade: one is under way")
        if reason := why_not_installed():  # it would find out only when it has the database
            raise FailedPrecondition(f"upgrade: {reason}")
        self._upgrading = True
        try:
            # A signal may stop us meanwhile: then this call is cancelled, and the program ended.
            successor = await Successor.spawn(self._command)
            outcome = asyncio.get_running_loop().create_future()
            self._change = Change(successor, outcome, {asyncio.current_task()})
            self._stop.set()
            return await asyncio.shield(outcome)
        finally:
            self._upgrading = False

    async def _claim(self) -> None:
        """Make the directories, and refuse to share them or the socket with another daemon."""
        config = self._config
        self._refuse_unusable_ports()
        handed_over = await self._predecessor.take(_version()) if self._predecessor is not None else []
        try:
            with self._refusing():
                for directory, mode in ((config.root, 0o700), (config.state, 0o700 if in_user_namespace() else 0o711)):
                    directory.mkdir(parents=True, exist_ok=True)
                    _refuse_what_is_others(directory)
                    directory.chmod(mode)  # whatever the umask is, and whatever an older version left
                    lock = StateLock(handed_over.pop(0)) if handed_over else StateLock.take(directory / "lock")
                    self._locks.callback(lock.close)
                    self._lock_fds.append(lock.fd)
                for path in config.paths:
                    path.parent.mkdir(mode=0o700 if in_user_namespace() else 0o711, parents=True, exist_ok=True)
                if self._predecessor is None:
                    self._refuse_if_served()
        except ApiError as error:
            raise Refused(str(error)) from error

    def _refuse_if_served(self) -> None:
        """Raise FailedPrecondition if another program serves one of our addresses."""
        for path in (*self._config.paths, Path(self._config.ttrpc_address)):
            public_socket.refuse_if_served(path)
        if self._config.metrics_address is not None:
            from pyctrd.server.remote_listener import refuse_if_taken  # most daemons serve this machine only

            refuse_if_taken(self._config.metrics_address)

    def _refuse_unusable_ports(self) -> None:
        """Raise Refused if other machines could not be served, before a predecessor stops doing so."""
        if not self._config.ports:
            return
        from pyctrd.server.certificates import Certificates
        from pyctrd.server.remote_listener import refuse_if_taken

        grpc = self._config.grpc
        try:
            Certificates(grpc.tcp_tls_ca, grpc.tcp_tls_cert, grpc.tcp_tls_key).credentials()
            for port in self._config.ports:
                refuse_if_taken(port, but_by_predecessor=self._predecessor is not None)
        except FailedPrecondition as error:
            raise Refused(str(error)) from error

    def _build(self, group: asyncio.TaskGroup) -> Parts:
        """Build the parts; nothing runs in `group` before it is entered."""
        try:
            with self._refusing():
                return Parts(self._config, self._zygote, group, self._resources, self.upgrade)
        except (NewerSchemaError, FailedPrecondition) as error:
            raise Refused(str(error)) from error

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Tell what the machine has not got for a start, such as room on a disk, as the reason why there is none."""
        try:
            yield
        except sqlite3.Error as error:
            raise Refused(f"{self._config.root}/metadata.db: {error}") from error
        except FileExistsError as error:  # mkdir's word for what is there and no directory
            raise Refused(f"{error.filename}: Not a directory") from error
        except OSError as error:
            raise Refused(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error

    async def _recover(self, group: asyncio.TaskGroup) -> Recovered:
        """Find out what there is, and start what runs by itself."""
        group.create_task(self._zygote.serve(), name="zygote")
        with self._refusing():
            if self._parts.database.has_gaps:
                # Nobody may be told that there is no such container before those are known that only disk tells of.
                self._parts.dispatch.complete()
            reboot.settle(self._config.state, self._parts.bundles)
            # Before the shims are asked: they tell at once what nobody acknowledged.
            await _listen(self._parts.shim_listener)
            return await self._parts.recovery.run()

    async def _serve(self, recovered: Recovered) -> None:
        """Answer clients until a signal says stop, or a successor is ready and nothing is under way."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        loop.set_exception_handler(_unhandled)
        if self._parts.remote_listener is not None:
            await _listen(self._parts.remote_listener)
        await _listen(self._parts.listener)
        self._parts.exchange.open()
        if self._predecessor is not None:
            self._predecessor.serving(_version())
        notify("READY=1", f"MAINPID={os.getpid()}")
        # A call of what is not loaded yet loads it; the others, for which clients have waited, go undisturbed.
        await asyncio.sleep(_FIRST_CALLS)
        with self._refusing():
            await self._parts.bulk.run(self._load_late, recovered)
        self._parts.dispatch.complete()
        if self._predecessor is not None:
            self._predecessor.loaded()
        # What is loaded and built by now stays: no collection of Python's need look at it again.
        gc.freeze()
        gc.enable()
        trim_heap()
        while True:
            await self._stop.wait()
            self._stop.clear()
            if self._change is None:
                await self._drain()
                return
            if await self._settle(self._change):
                return

    def _load_late(self, recovered: Recovered) -> None:
        """Do in a thread what takes long and what clients do not wait for."""
        # It loads structlog, if it is the first record.
        _log.info("ready", address=self._config.address, pid=os.getpid(), **recovered._asdict())
        importlib.import_module("pyctrd.late")

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
        self._parts.shim_listener.withhold()
        self._parts.exchange.close()
        self._parts.dispatch.end_parked()
        await self._stop_serving()
        await self._parts.shim_listener.stop()
        self._parts.tasks.look_away()

    async def _stop_serving(self) -> None:
        """Give calls under way their grace on all addresses at once."""
        async with asyncio.TaskGroup() as group:
            for listener in (self._parts.listener, self._parts.remote_listener):
                if listener is not None:
                    group.create_task(listener.stop(_STOP_GRACE))

    async def _settle(self, change: Change) -> bool:
        """Come to rest so that another daemon can begin: calls wait from now on, those under way end.

        Returns False, and lets the waiting calls be served here, if something goes on for too long.
        """
        _log.info("settling", successor=change.successor.pid)
        self._parts.dispatch.divert(change.calls.handler_for)
        await self._parts.dispatch.settle(_STOP_GRACE, change.requests)
        if not (await self._parts.rows.idle(_REST_LIMIT) and await self._parts.bulk.idle(_REST_LIMIT)):
            self._change = None
            change.successor.give_up()
            change.outcome.set_exception(FailedPrecondition("upgrade: work with files goes on for too long"))
            self._parts.dispatch.divert(None)
            change.calls.open(self._parts.listener.private)
            return False
        await self._parts.shim_listener.stop()
        self._parts.tasks.look_away()
        self._parts.exchange.close()
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
        self._parts.dispatch.end_parked(change.calls.unary)
        _log.info("handed over", successor=serving.pid, version=serving.version)
        await change.successor.loaded()
        change.outcome.set_result(serving)
        await self._until_unused(change.calls)
        await self._stop_serving()
        await change.calls.close()

    async def _until_unused(self, calls: PassThrough) -> None:
        """Return when no client is connected any more, or a signal says stop.

        Each connection is asked to move on when it has reached its age, and does unless there is a call on it: one that
        waits may stay for days, but a subscription is no reason to.
        """
        loop, remote = asyncio.get_running_loop(), self._parts.remote_listener
        moved_on = loop.time() + 2 * self._config.grpc.connection_age
        async with asyncio.TaskGroup() as group:
            # A port cannot be renamed as a path can: new connections come here too, until nobody listens here.
            drained = group.create_task(remote.drain()) if remote is not None else None
            while self._parts.listener.connections or (drained is not None and not drained.done()):
                if loop.time() > moved_on:
                    _log.info("staying for calls that wait", connections=self._parts.listener.connections)
                    calls.end_subscriptions()
                    moved_on = math.inf
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_PAUSE):
                        await self._stop.wait()
                        break
            if remote is not None:
                await remote.stop(_STOP_GRACE)  # which shortens what is left of the other


class _Listener(Protocol):
    """What serves an address from its start on."""

    async def start(self) -> None: ...


async def _listen(listener: _Listener) -> None:
    """Have a listener serve. Raises Refused if its address cannot be had."""
    try:
        await listener.start()
    except FailedPrecondition as error:
        raise Refused(str(error)) from error


def _unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nobody waited for, but for what grpc says of clients that left while it was answering them."""
    if not isinstance(context.get("exception"), cygrpc.ExecuteBatchError):
        loop.default_exception_handler(context)


def _version() -> str:
    """Return our own version."""
    from importlib.metadata import version  # takes long to load, and only an upgrade asks

    return version("pyctr")


def _refuse_what_is_others(directory: Path) -> None:
    """Raise FailedPrecondition for a directory that others use: nobody but root could enter /tmp any more."""
    there = set(os.listdir(directory)) - _NOBODYS
    if there and not any(name in _OURS or name.startswith("pyctrd.") for name in there):
        raise FailedPrecondition(
            f"{directory} has other things in it, such as {min(there)}: name a directory of its own"
        )
