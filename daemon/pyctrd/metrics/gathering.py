"""What the metrics are made of, gathered when somebody looks: nothing is kept up to date for nobody."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from google.protobuf.any_pb2 import Any as AnyMessage

from pyctr_wire.errors import Code
from pyctrd.metrics.exposition import State, Subject, render


class Tasks(Protocol):
    """All tasks."""

    @property
    def table(self) -> Iterable[Any]: ...
    async def stats(self, tasks: Iterable[Any]) -> Sequence[tuple[Any, AnyMessage]]: ...


class ContainerIndex(Protocol):
    """The records of containers."""

    async def list(self, ns: str, filters: Sequence[str]) -> Sequence[Any]: ...


class Operations(Protocol):
    """What is being done."""

    ended: Counter[tuple[str, str]]

    def running(self) -> Sequence[Any]: ...


class Calls(Protocol):
    """What was called."""

    started: Counter[str]
    handled: Counter[tuple[str, Code]]


class Collections(Protocol):
    """What was collected; `seconds` is the time that it took."""

    ended: Counter[str]

    @property
    def seconds(self) -> float: ...


class Gatherer:
    """Looks at everything, and has it rendered in a thread."""

    def __init__(
        self,
        tasks: Tasks,
        containers: ContainerIndex,
        operations: Operations,
        calls: Calls,
        kinds: Callable[[], Mapping[str, str]],
        collections: Collections,
        version: str,
        run: Callable[..., Awaitable[bytes]],
    ) -> None:
        """Look at these; `kinds` tells what kind of call each method takes, `run` calls a function in a thread."""
        self._tasks = tasks
        self._containers = containers
        self._operations = operations
        self._calls = calls
        self._kinds = kinds
        self._collections = collections
        self._version = version
        self._run = run
        self._gathering = asyncio.Lock()

    async def text(self) -> bytes:
        """Return the metrics as they are now; a shim that does not answer in time is left out."""
        async with self._gathering:  # each look reads every cgroup: whoever looks, one look at a time
            subjects = await self._subjects()
            return await self._run(render, subjects, self._state())

    async def _subjects(self) -> list[Subject]:
        tasks = [task for task in self._tasks.table if task.init.status.value in ("running", "paused")]
        found = await self._tasks.stats(tasks)
        runtimes: dict[tuple[str, str], str] = {}
        for namespace in {task.namespace for task, _ in found}:
            for entry in await self._containers.list(namespace, ()):
                runtimes[namespace, entry.id] = entry.container.runtime_name
        return [
            Subject(task.id, task.namespace, runtimes.get((task.namespace, task.id), ""), statistics)
            for task, statistics in found
        ]

    def _state(self) -> State:
        return State(
            self._version,
            dict(Counter(self._statuses())),
            self._calls.started.copy(),
            self._calls.handled.copy(),
            self._kinds(),
            {status: self._collections.ended[status] for status in ("success", "fail")},
            self._collections.seconds,
            Counter(operation.name for operation in self._operations.running()),
            self._operations.ended.copy(),
        )

    def _statuses(self) -> Iterator[tuple[str, str]]:
        for task in self._tasks.table:
            yield task.namespace, task.init.status.value
