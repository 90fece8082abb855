"""Offload: what was accepted runs to its end, and what was acquired is released, whoever was cancelled."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator

import pytest

from pyctr_wire.errors import NotFound
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


async def test_a_cancelled_caller_who_wants_its_end_waits_for_it(offload: Offload) -> None:
    """A lock that he holds is not free before."""
    started, go_on, lock = threading.Event(), threading.Event(), asyncio.Lock()
    done: list[str] = []

    def work() -> None:
        started.set()
        assert go_on.wait(30)
        done.append("first")
        raise NotFound("nobody hears of it")

    async def locked() -> None:
        async with lock:
            await offload.run_to_its_end(work)

    async with asyncio.TaskGroup() as group:
        caller = group.create_task(locked())
        await asyncio.get_running_loop().run_in_executor(None, started.wait, 30)
        caller.cancel()
        await offload.run(done.append, "before")
        assert lock.locked()
        go_on.set()
        async with lock:
            assert done == ["before", "first"]
    assert caller.cancelled()
    assert await offload.run_to_its_end(divmod, 7, 2) == (3, 1)


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


async def test_calls_beyond_the_number_of_workers_queue(offload: Offload) -> None:
    go_on, running = threading.Event(), threading.Semaphore(0)

    def work(number: int) -> tuple[int, int]:
        running.release()
        assert go_on.wait(30)
        return number, threading.get_ident()

    calls = [asyncio.ensure_future(offload.run(work, number)) for number in range(5)]
    for _ in range(2):
        assert await asyncio.get_running_loop().run_in_executor(None, running.acquire, True, 30)
    assert not running.acquire(blocking=False)
    go_on.set()

    results = await asyncio.gather(*calls)
    assert [number for number, _ in results] == [0, 1, 2, 3, 4]
    assert len({thread for _, thread in results}) <= 2


async def test_idle_tells_whether_something_is_under_way(offload: Offload) -> None:
    """A call whose caller has gone counts as well."""
    go_on = threading.Event()
    assert await offload.idle(0)
    caller = asyncio.ensure_future(offload.run(go_on.wait, 30))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller

    assert not await offload.idle(0.01)
    go_on.set()
    assert await offload.idle(30)


async def test_nothing_of_a_call_outlives_it(offload: Offload) -> None:
    """Neither what was passed in nor what came out: it may own a descriptor, and the thread may not run for days."""

    class Thing:
        def fail(self) -> None:
            raise OSError

    gc.disable()  # nor may it take a collection to let go
    try:
        thing = Thing()
        gone = weakref.ref(thing)
        assert await offload.run(lambda it: it, thing) is thing
        with pytest.raises(OSError):
            await offload.run(thing.fail)
        del thing
        assert await offload.idle(30)
        await offload.run(lambda: None)
        assert gone() is None
    finally:
        gc.enable()


async def test_a_failure_that_nobody_waits_for_is_logged(offload: Offload, caplog: pytest.LogCaptureFixture) -> None:
    """But for those that were meant for a client."""
    go_on = threading.Event()

    def fail(error: Exception) -> None:
        assert go_on.wait(30)
        raise error

    for error in (OSError("lost"), NotFound("container")):
        caller = asyncio.ensure_future(offload.run(fail, error))
        await asyncio.sleep(0)
        caller.cancel()
    go_on.set()
    assert await offload.idle(30)

    written = [record.msg for record in caplog.records if record.name == "pyctrd.offload"]
    assert [record["event"] for record in written if isinstance(record, dict)] == ["call.failed_unobserved"]


async def test_closing_waits_for_what_was_accepted() -> None:
    pool, done = Offload(1), threading.Event()
    waiting = asyncio.ensure_future(pool.run(done.set))
    await asyncio.sleep(0)
    pool.close()
    assert done.is_set()
    await waiting
    with pytest.raises(RuntimeError):
        await pool.run(done.set)


async def test_at_once_needs_no_thread_but_an_open_door() -> None:
    pool = Offload(1)
    assert pool.at_once(threading.get_ident) == threading.get_ident()
    pool.close()
    with pytest.raises(RuntimeError):
        pool.at_once(threading.get_ident)
