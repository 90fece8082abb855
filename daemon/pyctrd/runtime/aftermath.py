"""What follows from events: a container with --rm goes when its task ends; its logs and belongings go when it goes."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Final, Protocol

from pyctr_wire import labels
from pyctr_wire.containerd.events import container_pb2, task_pb2
from pyctr_wire.errors import ApiError, NotFound, ResourceExhausted, Unavailable
from pyctrd.core.anys import AnyValue
from pyctrd.core.containers import Container
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

_FILTERS: Final = ("topic==/tasks/exit", "topic==/containers/delete")
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

    def subscribe(self, filters: Sequence[str], /) -> AbstractContextManager[AsyncIterator[Envelope]]: ...


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
                with self._events.subscribe(_FILTERS) as events:
                    await self._catch_up(group)
                    try:
                        async for envelope in events:
                            group.create_task(self._take(envelope))
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

    async def _take(self, envelope: Envelope) -> None:
        if envelope.topic == "/containers/delete":
            gone = decode(envelope.event, container_pb2.ContainerDelete)
            if gone is not None:
                await self._remove_belongings(envelope.namespace, gone.id)
            return
        ended = decode(envelope.event, task_pb2.TaskExit)
        if ended is None or ended.id != ended.container_id:
            return  # an exec
        task = self._table.find(envelope.namespace, ended.container_id)
        if task is not None and task.init.status is not Status.STOPPED:
            return  # another task has been made for it since
        try:
            container = self._rows.at_once(self._containers.get, envelope.namespace, ended.container_id)
        except NotFound:
            return
        if container.labels.get(labels.AUTO_REMOVE) == "true":
            await self._remove(envelope.namespace, container)

    async def _remove_belongings(self, namespace: str, id: str) -> None:
        # Looked for right here: most containers have neither, and a thread takes longer than looking does.
        has_logs, has_belongings = self._logs.has(namespace, id), self._belongings.any_of(namespace, id)
        if not (has_logs or has_belongings):
            return
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
