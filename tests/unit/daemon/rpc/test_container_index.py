"""The container index: nobody reads older than what was written before the read began, whatever overtakes what."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import pytest

from pyctr_wire.containerd.services.containers.v1 import containers_pb2 as pb
from pyctr_wire.errors import NotFound
from pyctrd.core.anys import AnyValue
from pyctrd.core.containers import Container
from pyctrd.offload import Offload
from pyctrd.rpc.container_index import ContainerIndex

NS = "default"


class ScriptedRows:
    """Containers in a dictionary; `pauses` hold up lists, each after its first look, and `meanwhile` a get, once."""

    def __init__(self) -> None:
        self.containers: dict[str, Container] = {}
        self.pauses: list[threading.Event] = []
        self.paused = threading.Semaphore(0)
        self.meanwhile: Callable[[], object] | None = None

    def get(self, ns: str, id: str) -> Container:
        found = self.containers.get(id)
        if threading.current_thread() is not threading.main_thread():  # a list that reads what has changed
            self._pause()
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        if found is None:
            raise NotFound(id)
        return found

    def list(self, ns: str, filters: Sequence[str]) -> list[Container]:
        found = list(self.containers.values())
        self._pause()
        return found

    def _pause(self) -> None:
        if self.pauses:
            pause = self.pauses.pop(0)
            self.paused.release()
            assert pause.wait(30)


class Fixture:
    def __init__(self, offload: Offload) -> None:
        self.rows = ScriptedRows()
        self.index = ContainerIndex(self.rows, offload)

    def write(self, id: str, image: str) -> None:
        self.rows.containers[id] = Container(id, image=image, spec=AnyValue("s", b"spec"), runtime_name="r")
        self.index.changed(NS, id)

    def delete(self, id: str) -> None:
        del self.rows.containers[id]
        self.index.changed(NS, id)

    async def images(self) -> dict[str, str]:
        return {entry.id: entry.container.image for entry in await self.index.list(NS, ())}

    async def image(self, id: str) -> str:
        return (await self.index.get(NS, id)).container.image

    async def during(self, read: Callable[[], "asyncio.Future[object]"], change: Callable[[], object]) -> object:
        """Start `read`, and `change` something after it has looked at the rows and before it returns."""
        pause = threading.Event()
        self.rows.pauses.append(pause)
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(_awaited(read()))
            await asyncio.get_running_loop().run_in_executor(None, self.rows.paused.acquire, True, 30)
            result = change()
            if asyncio.iscoroutine(result):
                await result
            pause.set()
        return reading.result()


async def _awaited(future: "asyncio.Future[object]") -> object:
    return await future


@pytest.fixture
async def fixture() -> AsyncIterator[Fixture]:
    offload = Offload(4)
    yield Fixture(offload)
    offload.close()


@pytest.mark.parametrize("loaded", [True, False])
async def test_a_change_during_a_get_is_seen_by_the_next(fixture: Fixture, *, loaded: bool) -> None:
    fixture.write("a", "1")
    if loaded:
        await fixture.images()
        fixture.write("a", "2")

    fixture.rows.meanwhile = lambda: fixture.write("a", "3")
    await fixture.image("a")

    assert await fixture.image("a") == "3"
    assert await fixture.images() == {"a": "3"}


@pytest.mark.parametrize("loaded", [True, False])
async def test_a_change_during_a_list_is_seen_by_the_next(fixture: Fixture, *, loaded: bool) -> None:
    fixture.write("a", "1")
    if loaded:
        await fixture.images()
        fixture.write("a", "2")

    await fixture.during(lambda: asyncio.ensure_future(fixture.images()), lambda: fixture.write("a", "3"))

    assert await fixture.images() == {"a": "3"}
    assert await fixture.image("a") == "3"


@pytest.mark.parametrize("loaded", [True, False])
async def test_a_get_that_overtakes_a_list_is_not_undone_by_it(fixture: Fixture, *, loaded: bool) -> None:
    """The list read before the change, and returns after a Get that has seen it."""
    fixture.write("a", "1")
    if loaded:
        await fixture.images()
        fixture.write("a", "2")

    async def change_and_read() -> None:
        fixture.write("a", "3")
        assert await fixture.image("a") == "3"

    await fixture.during(lambda: asyncio.ensure_future(fixture.images()), change_and_read)

    assert await fixture.image("a") == "3"
    assert await fixture.images() == {"a": "3"}


async def test_a_get_that_a_delete_overtakes_leaves_nothing(fixture: Fixture) -> None:
    fixture.write("a", "1")
    await fixture.images()
    fixture.write("a", "2")

    fixture.rows.meanwhile = lambda: fixture.delete("a")
    assert await fixture.image("a") == "2"

    assert await fixture.images() == {}
    with pytest.raises(NotFound):
        await fixture.image("a")


async def test_during_a_refresh_a_get_does_not_see_what_was_replaced_before(fixture: Fixture) -> None:
    fixture.write("a", "1")
    await fixture.images()
    fixture.write("a", "2")

    async def read() -> None:
        assert await fixture.image("a") == "2"

    await fixture.during(lambda: asyncio.ensure_future(fixture.images()), read)


async def test_namespaces_do_not_mix(fixture: Fixture) -> None:
    fixture.write("a", "1")
    await fixture.images()
    fixture.index.changed("other", "a")

    assert await fixture.images() == {"a": "1"}


async def test_large_parts_are_kept_once(fixture: Fixture) -> None:
    """What filters do not look at is there in encoded form only."""
    fixture.write("a", "1")

    entry = await fixture.index.get(NS, "a")

    assert entry.container == replace(fixture.rows.containers["a"], spec=None)
    assert pb.GetContainerResponse.FromString(entry.encoded).container.spec.value == b"spec"
