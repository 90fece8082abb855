"""What follows from events: a container with --rm goes when its task ends; its logs and belongings go when it goes."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence, Set
from contextlib import AbstractContextManager, suppress
from typing import Any, Final, Protocol

from pyctr_wire import labels
from pyctr_wire.containerd.events import container_pb2, task_pb2
from pyctr_wire.errors import ApiError, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from pyctrd.core.anys import AnyValue
from pyctrd.core.containers import Container
from pyctrd.core.identifiers import validate_identifier
from pyctrd.core.namespaces import Namespace
from pyctrd.core.tasks import Status
from pyctrd.events.decoding import decode
from pyctrd.log import Logger
from pyctrd.offload import Offload
from pyctrd.runtime.belongings import Belongings
from pyctrd.runtime.boot import boot_time
from pyctrd.runtime.creation import Snapshotters
from pyctrd.runtime.lifecycle import Lifecycle
from pyctrd.runtime.log_folders import LogFolders
from pyctrd.runtime.table import TaskTable

_TOPICS: Final = frozenset({"/tasks/exit", "/containers/delete"})
_AUTO_REMOVED: Final = (f'labels."{labels.AUTO_REMOVE}"==true',)
_log = Logger("pyctrd.runtime")


class Envelope(Protocol):
    """An event as it travels."""

    @property
    def namespace(self) -> str: ...
    @property
    def topic(self) -> str: ...
    @property
    def event(self) -> AnyValue: ...


class Events(Protocol):
    """Where events come from."""

    def follow(self, topics: Set[str], /) -> AbstractContextManager[AsyncIterator[Envelope]]: ...


class Entry(Protocol):
    """What is known of a container without its row."""

    @property
    def container(self) -> Container: ...


class Index(Protocol):
    """Containers, read through memory."""

    async def get(self, namespace: str, container: str, /) -> Entry: ...
    async def list(self, namespace: str, filters: Sequence[str], /) -> Sequence[Entry]: ...


class ContainerRows(Protocol):
    """The containers of a namespace."""

    def get(self, ns: str, container_id: str, /) -> Container: ...
    def list(self, ns: str, filters: Sequence[str] = (), /) -> Sequence[Container]: ...
    def delete(self, ns: str, container_id: str, /) -> None: ...


class NamespaceRows(Protocol):
    """The namespaces."""

    def list(self) -> Sequence[Namespace]: ...


class Aftermath:
    """Cleans up after containers, and after daemons that could not."""

    def __init__(
        self,
        events: Events,
        index: Index,
        containers: ContainerRows,
        namespaces: NamespaceRows,
        snapshots: Snapshotters,
        lifecycle: Lifecycle,
        table: TaskTable,
        logs: LogFolders,
        belongings: Belongings,
        rows: Offload,
        bulk: Offload,
    ) -> None:
        """Work on these; calls of stores run in `rows`, what may take long in `bulk`."""
        self._events = events
        self._index = index
        self._containers = containers
        self._namespaces = namespaces
        self._snapshots = snapshots
        self._lifecycle = lifecycle
        self._table = table
        self._logs = logs
        self._belongings = belongings
        self._rows = rows
        self._bulk = bulk

    async def run(self) -> None:
        """Follow events until the daemon stops; what was missed before is made good first."""
        async with asyncio.TaskGroup() as group:
            while True:
                with self._events.follow(_TOPICS) as events:
                    await self._catch_up(group)
                    try:
                        async for envelope in events:
                            if (work := await self._consequence(envelope)) is not None:
                                group.create_task(work)
                    except ResourceExhausted:
                        continue  # events were lost: look at everything again
                    except Unavailable:
                        return

    async def _catch_up(self, group: asyncio.TaskGroup) -> None:
        """Remove what ended, or lost its machine, while nobody looked; sweep what containers that are gone left."""
        booted = await self._rows.run(boot_time)
        # Before the records: what is listed here and has none then has lost it.
        logs = await self._rows.run(self._logs.list)
        known: set[tuple[str, str]] = set()
        for namespace in await self._rows.run(self._namespaces.list):
            name = namespace.name
            known |= {(name, one.id) for one in await self._rows.run(self._containers.list, name)}
            for container in await self._rows.run(self._containers.list, name, _AUTO_REMOVED):
                task = self._table.find(name, container.id)
                # One without a task may be on its way to its first, unless it is older than this boot.
                if task.init.status is Status.STOPPED if task else container.created_at < booted:
                    group.create_task(self._remove(name, container))
        for name, container_id in logs:
            if (name, container_id) not in known:
                await self._rows.run(self._logs.remove, name, container_id)
        await self._bulk.run(self._belongings.sweep)

    async def _consequence(self, envelope: Envelope) -> Coroutine[Any, Any, None] | None:
        """Return what is to be done after an event: mostly nothing, which takes no longer than a look at memory."""
        namespace = envelope.namespace
        if envelope.topic == "/containers/delete":
            gone = decode(envelope.event, container_pb2.ContainerDelete)
            return self._removal_of_belongings(namespace, gone.id) if gone is not None else None
        ended = decode(envelope.event, task_pb2.TaskExit)
        if ended is None or ended.id != ended.container_id:
            return None  # an exec
        task = self._table.find(namespace, ended.container_id)
        if task is not None and task.init.status is not Status.STOPPED:
            return None  # another task has been made for it since
        try:
            container = (await self._index.get(namespace, ended.container_id)).container
        except NotFound:
            return None
        return self._remove(namespace, container) if container.labels.get(labels.AUTO_REMOVE) == "true" else None

    def _removal_of_belongings(self, namespace: str, id: str) -> Coroutine[Any, Any, None] | None:
        try:
            validate_identifier("container.ID", id)
        except InvalidArgument:
            return None  # clients publish what they like, and this would be a path, to who knows what
        # Looked for right here: most containers have neither, and a thread takes longer than looking does.
        has_logs, has_belongings = self._logs.has(namespace, id), self._belongings.any_of(namespace, id)
        if not (has_logs or has_belongings):
            return None
        return self._remove_belongings(namespace, id, has_logs=has_logs, has_belongings=has_belongings)

    async def _remove_belongings(self, namespace: str, id: str, *, has_logs: bool, has_belongings: bool) -> None:
        with suppress(NotFound):
            self._rows.at_once(self._containers.get, namespace, id)
            return  # it is another one of that id, or somebody has only said so
        if has_logs:
            await self._rows.run(self._logs.remove, namespace, id)
        if has_belongings:
            await self._bulk.run(self._belongings.container_gone, namespace, id)

    async def _remove(self, namespace: str, container: Container) -> None:
        """Remove a container, task first; whoever attached to it may be doing the same."""
        try:
            with suppress(NotFound):
                await self._lifecycle.delete(namespace, container.id)
            with suppress(NotFound):
                await self._rows.run(self._containers.delete, namespace, container.id)
            if container.snapshot_key:
                snapshotter = self._snapshots.named(container.snapshotter)
                with suppress(NotFound):
                    await self._rows.run(snapshotter.remove, namespace, container.snapshot_key)
        except ApiError as error:
            _log.warning("auto_remove.failed", namespace=namespace, container=container.id, error=str(error))
