"""The restart monitor: containers whose labels ask for it run again when their task has ended (see core.restarts).

A task that ended by itself is followed by the next one after a delay that grows while tasks are short-lived. Whatever
else is not as it should be is looked at every ten seconds and must not have changed in between: a client that has just
made a container, killed its task or deleted it has its own plans, and does not find a task in its way that it did not
make. Only the first look, at the daemon's start, acts at once on what ended while no daemon looked.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple, Protocol, TypeAlias

from pyctr_wire import labels as names
from pyctr_wire.containerd.events import task_pb2
from pyctr_wire.errors import ApiError, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from pyctrd.core.containers import Container
from pyctrd.core.namespaces import Namespace
from pyctrd.core.restarts import LASTING, Wish, delay, explicitly_stopped, starts_again, wish_of
from pyctrd.core.tasks import Status
from pyctrd.events.decoding import decode
from pyctrd.log import Logger
from pyctrd.offload import Offload
from pyctrd.runtime.aftermath import Envelope, Events, Index
from pyctrd.runtime.boot import boot_time
from pyctrd.runtime.operations import Operations
from pyctrd.runtime.revival import Revival
from pyctrd.runtime.table import Task, TaskTable

INTERVAL: Final = 10.0  # seconds, as containerd's
_TOPICS: Final = frozenset({"/tasks/start", "/tasks/exit"})
_LABELLED: Final = (f'labels."{names.RESTART_STATUS}"',)
_START_FAILED: Final = 128  # the exit status of what could not even be started
# What a container that somebody has started is from then on.
_WANTED: Final = {
    names.RESTART_STATUS: Wish.RUNNING.value,
    names.RESTART_EXPLICITLY_STOPPED: "",
    names.RESTART_COUNT: "",
}

Key: TypeAlias = tuple[str, str]
_log = Logger("pyctrd.runtime")


class ContainerRows(Protocol):
    """The containers of a namespace."""

    def get(self, ns: str, container_id: str, /) -> Container: ...


class NamespaceRows(Protocol):
    """The namespaces."""

    def list(self) -> Sequence[Namespace]: ...


class _Ended(NamedTuple):
    """What a container is to be started again after; no `exit_status` is an end that nobody saw."""

    task: Task | None
    exit_status: int | None
    after_boot: bool = False


class RestartMonitor:
    """Looks after containers with restart labels."""

    def __init__(
        self,
        events: Events,
        index: Index,
        containers: ContainerRows,
        namespaces: NamespaceRows,
        table: TaskTable,
        revival: Revival,
        operations: Operations,
        rows: Offload,
    ) -> None:
        """Work on these; calls of stores run in `rows`."""
        self._events = events
        self._index = index
        self._containers = containers
        self._namespaces = namespaces
        self._table = table
        self._revival = revival
        self._operations = operations
        self._rows = rows
        self._timers: dict[Key, asyncio.TimerHandle] = {}  # until the next task
        self._busy: set[Key] = set()  # with making it
        self._failures: dict[Key, int] = {}  # short runs in a row
        self._seen: dict[Key, object] = {}  # what was not as it should be at the last look

    async def run(self) -> None:
        """Look after containers until the daemon stops."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._follow(), name="restarts: events")
                booted: datetime | None = await self._rows.run(boot_time)
                while True:
                    await self._look(booted)
                    booted = None
                    await asyncio.sleep(INTERVAL)
        finally:
            for timer in self._timers.values():
                timer.cancel()

    async def _follow(self) -> None:
        while True:
            with self._events.follow(_TOPICS) as events:
                try:
                    async for envelope in events:
                        await self._take(envelope)
                except ResourceExhausted:
                    continue  # events were lost; what they told of is seen at the next look
                except Unavailable:
                    return

    async def _take(self, envelope: Envelope) -> None:
        if envelope.topic == "/tasks/start":
            started = decode(envelope.event, task_pb2.TaskStart)
            if started is not None:
                await self._started((envelope.namespace, started.container_id))
            return
        ended = decode(envelope.event, task_pb2.TaskExit)
        if ended is not None and ended.id == ended.container_id:
            await self._ended((envelope.namespace, ended.container_id))

    async def _started(self, key: Key) -> None:
        """Take the start of a container that was made for later, or was stopped, for somebody's wish that it runs."""
        try:
            labels = (await self._index.get(*key)).container.labels
            if wish_of(labels) is Wish.CREATED or (wish_of(labels) is Wish.RUNNING and explicitly_stopped(labels)):
                self._failures.pop(key, None)
                await self._revival.label(*key, _WANTED)
        except NotFound:
            return
        except ApiError as error:  # a full disk, say: the next look tries again, if it was made for later
            _log.warning("container.not_marked", namespace=key[0], container=key[1], error=str(error))

    async def _ended(self, key: Key) -> None:
        """Have the next task follow one that ended by itself."""
        task = self._table.find(*key)
        if task is None or task.init.exit is None or task.told_to_end or key in self._busy:
            return  # deleted or replaced by now, or ended on a client's wish; or whoever is busy will see it
        try:
            container = (await self._index.get(*key)).container
        except NotFound:
            return
        ended = _Ended(task, task.init.exit.exit_status)
        if names.RESTART_STATUS in container.labels and _starts_again(container, ended):
            self._schedule(key, ended)

    def _schedule(self, key: Key, ended: _Ended) -> None:
        """Start a container again after a delay."""
        exit = ended.task.init.exit if ended.task is not None else None
        if ended.task is not None and exit is not None:
            lasted = (exit.exited_at - ended.task.bundle.started_at()).total_seconds()
            if lasted >= LASTING:
                self._failures.pop(key, None)
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        self._timers[key] = asyncio.get_running_loop().call_later(delay(failures), self._wake, key, ended)

    def _wake(self, key: Key, ended: _Ended) -> None:
        del self._timers[key]
        self._busy.add(key)
        self._group.create_task(self._revive(key, ended), name=f"restart {'/'.join(key)}")

    async def _revive(self, key: Key, ended: _Ended) -> None:
        """Start a container again, unless it has been started, stopped or removed meanwhile."""
        try:
            container = await self._rows.run(self._containers.get, *key)
            if self._table.find(*key) is not ended.task or not _starts_again(container, ended):
                return
            with self._operations.begin(key[0], f"container {key[1]}", "restart") as operation:
                operation.stage = "make a new task"
                await self._revival.start_again(key[0], container)
            _log.info("container.restarted", namespace=key[0], container=key[1])
        except NotFound:
            return  # removed
        except ApiError as error:
            _log.warning("container.not_restarted", namespace=key[0], container=key[1], error=str(error))
            self._schedule(key, _Ended(self._table.find(*key), _START_FAILED))
        finally:
            self._busy.discard(key)
        await self._ended(key)  # already, perhaps

    async def _look(self, booted: datetime | None) -> None:
        """Look at all containers with a label; `booted` is when the machine was started, at the first look only."""
        seen: dict[Key, object] = {}
        keys = set()
        for namespace in await self._rows.run(self._namespaces.list):
            for entry in await self._index.list(namespace.name, _LABELLED):
                container = entry.container
                key = (namespace.name, container.id)
                keys.add(key)
                task = self._table.find(*key)
                if key in self._timers or key in self._busy or await self._is_well(key, container, task):
                    continue
                ended = _how_ended(container, task, booted)
                if not _starts_again(container, ended):
                    continue
                mark = (task, container.updated_at)
                if self._seen.get(key) == mark or (booted is not None and ended != _Ended(task, None)):
                    self._schedule(key, ended)
                else:
                    seen[key] = mark
        self._seen = seen
        self._failures = {key: count for key, count in self._failures.items() if key in keys}

    async def _is_well(self, key: Key, container: Container, task: Task | None) -> bool:
        """Return whether a container is what it shall be, or nothing that we look after; end what shall not run."""
        match wish_of(container.labels):
            case Wish.RUNNING:
                return task is not None and task.init.status in (Status.RUNNING, Status.PAUSED)
            case Wish.STOPPED if task is not None and task.init.status is not Status.STOPPED:
                try:
                    await self._revival.end(*key)
                except ApiError as error:
                    _log.warning("container.not_stopped", namespace=key[0], container=key[1], error=str(error))
            case Wish.CREATED if task is not None and task.init.status is Status.RUNNING:
                await self._started(key)
        return True


def _how_ended(container: Container, task: Task | None, booted: datetime | None) -> _Ended:
    """Return what is known of a container that does not run though it should."""
    if task is not None and task.init.exit is not None:
        return _Ended(task, task.init.exit.exit_status)
    if names.RESTARTING in container.labels:  # a daemon was killed while it started it again
        return _Ended(task, _START_FAILED)
    return _Ended(task, None, after_boot=task is None and booted is not None and container.updated_at < booted)


def _starts_again(container: Container, ended: _Ended) -> bool:
    try:
        return starts_again(container.labels, ended.exit_status, after_boot=ended.after_boot)
    except InvalidArgument:
        return False  # a policy that is none, which only its client can mend
