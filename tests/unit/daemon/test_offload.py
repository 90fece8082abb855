"""Offload: what was accepted runs to its end, and what was acquired is released, whoever was cancelled."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from pyctrd.offload import Offload


@pytest.fixture
async def offload() -> AsyncIterator[Offload]:
    pool = Offload(2)
    yield pool
    pool.close()


async def test_results_and_errors_come_back(offload: Offload) -> None:
    assert await offload.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await offload.run(divmod, 7, 0)


async def test_a_cancelled_caller_leaves_its_call_running(offload: Offload) -> None:
    started, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        assert go_on.wait(30)
        done.set()

    async with asyncio.TaskGroup() as group:
        caller = group.create_task(offload.run(work))
        await asyncio.get_running_loop().run_in_executor(None, started.wait, 30)
        caller.cancel()
    assert not done.is_set()
    go_on.set()

    assert await asyncio.get_running_loop().run_in_executor(None, done.wait, 30)


async def test_what_is_held_is_released_at_the_end(offload: Offload) -> None:
    released: list[str] = []

    async with offload.holding(lambda: "it", released.append) as held:
        assert (held, released) == ("it", [])

    assert released == ["it"]


async def test_what_is_acquired_for_a_cancelled_caller_is_released(offload: Offload) -> None:
    """A lock that nobody holds any more must not hang the next one for ever."""
    started, go_on, released = threading.Event(), threading.Event(), threading.Event()

    def acquire() -> str:
        started.set()
        assert go_on.wait(30)
        return "it"

    async def hold() -> None:
        async with offload.holding(acquire, lambda _: released.set()):
            pytest.fail("the caller was cancelled before")

    async with asyncio.TaskGroup() as group:
        caller = group.create_task(hold())
        await asyncio.get_running_loop().run_in_executor(None, started.wait, 30)
        caller.cancel()
    go_on.set()

    assert await asyncio.get_running_loop().run_in_executor(None, released.wait, 30)
