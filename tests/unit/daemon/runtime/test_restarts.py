"""The restart monitor where stores refuse."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

from pyctr_wire import labels as names
from pyctr_wire.containerd.events import task_pb2
from pyctr_wire.errors import NotFound, ResourceExhausted
from pyctrd.core.anys import AnyValue
from pyctrd.core.containers import Container
from pyctrd.core.tasks import Status
from pyctrd.runtime.restarts import RestartMonitor

KEY = ("default", "web")


class Around:
    """All that the monitor works on: one container, which runs, and a disk that is full."""

    def __init__(self) -> None:
        now = datetime.now(UTC)
        self.container = Container("web", labels={names.RESTART_STATUS: "created"}, created_at=now, updated_at=now)
        self.tried = 0
        self.told: asyncio.Queue[str] = asyncio.Queue()

    async def run(self, function: Callable[..., Any], /, *arguments: object) -> Any:
        return function(*arguments)

    async def get(self, namespace: str, container: str) -> Any:
        if (namespace, container) != KEY:
            raise NotFound(container)
        return SimpleNamespace(container=self.container)

    async def list(self, namespace: str, filters: Sequence[str]) -> list[Any]:
        return [SimpleNamespace(container=self.container)]

    def find(self, namespace: str, container: str) -> Any:
        return SimpleNamespace(init=SimpleNamespace(status=Status.RUNNING, exit=None))

    async def label(self, *_: object) -> None:
        self.tried += 1
        raise ResourceExhausted("no space left")

    @contextmanager
    def follow(self, topics: Set[str]) -> Iterator[AsyncIterator[Any]]:
        async def events() -> AsyncIterator[Any]:
            while True:
                started = task_pb2.TaskStart(container_id=await self.told.get())
                value = AnyValue(started.DESCRIPTOR.full_name, started.SerializeToString())
                yield SimpleNamespace(namespace="default", topic="/tasks/start", event=value)

        yield events()


async def test_a_full_disk_does_not_end_it() -> None:
    """Neither when a start is told, nor when what runs is looked at."""
    around = cast(Any, Around())
    namespaces = cast(Any, SimpleNamespace(list=lambda: [SimpleNamespace(name="default")]))
    monitor = RestartMonitor(around, around, around, namespaces, around, around, around, around)
    running = asyncio.ensure_future(monitor.run())
    for _ in range(2):
        around.told.put_nowait("web")
    async with asyncio.timeout(10):
        while around.tried < 3 and not running.done():
            await asyncio.sleep(0.01)
    assert not running.done()
    running.cancel()
