"""When collections run, with a double that counts them and a loop that does the waiting."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pyctr_wire.errors import ApiError, ResourceExhausted
from pyctrd.gc import scheduler as module
from pyctrd.gc.collector import Collected
from pyctrd.gc.scheduler import Scheduler
from support.stores import NS, Stores, container

NOTHING = Collected((), {}, 0)


class Collections:
    """Counts runs, each taking as long as the test wants."""

    def __init__(self) -> None:
        self.started = 0
        self.finish = asyncio.Event()
        self.finish.set()
        self.ran = asyncio.Event()
        self.error: ApiError | None = None

    async def __call__(self) -> Collected:
        self.started += 1
        self.ran.set()
        await self.finish.wait()
        if self.error:
            raise self.error
        return NOTHING

    async def next(self) -> None:
        async with asyncio.timeout(30):
            await self.ran.wait()
        self.ran.clear()


@asynccontextmanager
async def running(stores: Stores, collections: Collections) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(stores.database, collections)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(scheduler.run())
        yield scheduler
        task.cancel()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST", 0.0)
    monkeypatch.setattr(module, "_SHARE", 0.9)


async def test_the_first_run_needs_no_reason_and_the_next_a_deletion(stores: Stores) -> None:
    collections = Collections()
    async with running(stores, collections):
        await collections.next()
        stores.containers.create(NS, container())
        await asyncio.sleep(0.05)
        assert collections.started == 1
        stores.containers.delete(NS, "c1")
        await collections.next()
        assert collections.started == 2


async def test_many_mutations_are_a_reason_too(stores: Stores) -> None:
    collections = Collections()
    async with running(stores, collections):
        await collections.next()
        for number in range(100):
            stores.containers.create(NS, container(f"c{number}"))
        await collections.next()


async def test_who_asks_gets_a_run_that_began_after_asking(stores: Stores) -> None:
    collections = Collections()
    async with running(stores, collections) as scheduler:
        collections.finish.clear()
        await collections.next()  # under way: too early for who asks now
        waiting = [asyncio.ensure_future(scheduler.collect_now()) for _ in range(3)]
        await asyncio.sleep(0)
        collections.finish.set()
        async with asyncio.timeout(30):
            assert await asyncio.gather(*waiting) == [NOTHING] * 3
        assert collections.started == 2


async def test_a_failed_run_is_told_and_not_the_last(stores: Stores) -> None:
    collections = Collections()
    async with running(stores, collections) as scheduler:
        await collections.next()
        collections.error = ResourceExhausted("disk is full")
        with pytest.raises(ResourceExhausted):
            await scheduler.collect_now()
        collections.error = None
        assert await scheduler.collect_now() == NOTHING


async def test_one_who_stops_waiting_disturbs_nobody(stores: Stores) -> None:
    collections = Collections()
    async with running(stores, collections) as scheduler:
        await collections.next()
        collections.finish.clear()
        gone, stays = asyncio.ensure_future(scheduler.collect_now()), asyncio.ensure_future(scheduler.collect_now())
        await collections.next()
        gone.cancel()
        collections.finish.set()
        assert await stays == NOTHING


async def test_who_waits_when_it_ends_is_cancelled(stores: Stores) -> None:
    collections = Collections()
    async with running(stores, collections) as scheduler:
        await collections.next()
        collections.finish.clear()
        waiting = asyncio.ensure_future(scheduler.collect_now())
        await collections.next()
    with pytest.raises(asyncio.CancelledError):
        await waiting
