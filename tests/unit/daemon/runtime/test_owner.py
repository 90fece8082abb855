"""One operation at a time per container, whatever becomes of its callers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pyctr_wire.errors import NotFound
from pyctrd.runtime.owner import Job, Joining, Owners

KEY = ("default", "web")


@asynccontextmanager
async def owners() -> AsyncIterator[Owners]:
    async with asyncio.TaskGroup() as group:
        yield Owners(group)


class Work:
    """Counts its runs and ends when it is told to."""

    def __init__(self) -> None:
        self.runs = 0
        self.go = asyncio.Event()
        self.abandoned: list[bool] = []

    async def __call__(self, job: Job[int]) -> int:
        self.runs += 1
        await self.go.wait()
        self.abandoned.append(job.abandoned)
        return self.runs


async def test_one_after_the_other_per_key() -> None:
    order: list[str] = []

    async def note(job: Job[None]) -> None:
        order.append(f"{job.name} begins")
        await asyncio.sleep(0)
        order.append(f"{job.name} ends")

    async with owners() as queues:
        await asyncio.gather(*(queues.run(KEY, name, note) for name in ("create", "start", "delete")))
        assert not queues.busy(KEY)
    assert order == [f"{name} {what}" for name in ("create", "start", "delete") for what in ("begins", "ends")]


async def test_keys_do_not_wait_for_each_other() -> None:
    stuck, free = Work(), Work()
    free.go.set()
    async with owners() as queues:
        waiting = asyncio.ensure_future(queues.run(KEY, "create", stuck))
        assert await queues.run(("default", "other"), "create", free) == 1
        stuck.go.set()
        await waiting


async def test_shared_result() -> None:
    work = Work()
    async with owners() as queues:
        calls = [asyncio.ensure_future(queues.run(KEY, "delete", work, joining=Joining.SHARED)) for _ in range(3)]
        await asyncio.sleep(0)
        work.go.set()
        assert await asyncio.gather(*calls) == [1, 1, 1]


async def test_exclusive_result_goes_to_one() -> None:
    work = Work()
    work.go.set()
    async with owners() as queues:
        assert sorted(await asyncio.gather(*(queues.run(KEY, "create", work) for _ in range(3)))) == [1, 2, 3]


async def test_retry_inherits_from_a_caller_that_left() -> None:
    work = Work()
    async with owners() as queues:
        first = asyncio.ensure_future(queues.run(KEY, "create", work, token="t"))
        await asyncio.sleep(0)
        retry = asyncio.ensure_future(queues.run(KEY, "create", work, token="t"))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        work.go.set()
        assert await retry == 1
    assert work.abandoned == [False]


async def test_another_token_is_another_operation() -> None:
    work = Work()
    work.go.set()
    async with owners() as queues:
        calls = (queues.run(KEY, "create", work, token=token, joining=Joining.SHARED) for token in "ab")
        assert await asyncio.gather(*calls) == [1, 2]


async def test_work_goes_on_without_callers() -> None:
    work = Work()
    async with owners() as queues:
        call = asyncio.ensure_future(queues.run(KEY, "create", work))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        work.go.set()
    assert work.abandoned == [True]


async def test_failure_reaches_every_caller_and_ends_nothing_else() -> None:
    async def fail(_: Job[None]) -> None:
        await asyncio.sleep(0)
        raise NotFound("x")

    async with owners() as queues:
        calls = [asyncio.ensure_future(queues.run(KEY, "delete", fail, joining=Joining.SHARED)) for _ in range(2)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [NotFound, NotFound]
        abandoned = asyncio.ensure_future(queues.run(KEY, "delete", fail))
        await asyncio.sleep(0)
        abandoned.cancel()


async def test_nobody_joins_what_is_being_undone() -> None:
    undoing, undone = asyncio.Event(), asyncio.Event()

    async def work(job: Job[str]) -> str:
        await asyncio.sleep(0)
        if job.give_up_if_abandoned():
            undoing.set()
            await undone.wait()
            raise NotFound("nobody's")
        return "made"

    async with owners() as queues:
        first = asyncio.ensure_future(queues.run(KEY, "create", work))
        await asyncio.sleep(0)
        first.cancel()
        await undoing.wait()
        second = asyncio.ensure_future(queues.run(KEY, "create", work))
        await asyncio.sleep(0)
        undone.set()
        assert await second == "made"
