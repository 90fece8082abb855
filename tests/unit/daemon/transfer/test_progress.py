"""Progress: in order, the latest of each blob, and never in the way."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from pyctr_wire.errors import Cancelled, NotFound
from pyctrd.offload import Offload
from pyctrd.transfer.bridge import Bridge
from pyctrd.transfer.progress import Progress, Report, reported


def test_only_the_latest_state_of_a_blob_is_reported() -> None:
    progress = Progress()
    progress.blob(Report("waiting", "a"))
    progress.say("first")
    progress.blob(Report("complete", "a"))
    progress.say("second")

    assert [report.event for report in progress.take()] == ["first", "complete", "second"]
    assert progress.take() == []


class Listener:
    """Keeps what it is told; `failure` is raised instead."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.events: list[str] = []
        self.closed: list[str] = []

    async def send(self, report: Report) -> None:
        if self.failure:
            raise self.failure
        self.events.append(report.event)

    async def close(self) -> None:
        self.closed = list(self.events)


async def test_everything_is_sent_before_the_end() -> None:
    listener = Listener()

    async with reported(listener) as progress:
        progress.say("begins")
        progress.say("ends")

    assert listener.closed == ["begins", "ends"]


async def test_a_client_that_is_gone_does_not_matter() -> None:
    async with reported(Listener(Cancelled("gone"))) as progress:
        progress.say("first")
        await asyncio.sleep(0)
        progress.say("second")


async def test_the_transfers_own_failure_is_what_is_raised() -> None:
    with pytest.raises(NotFound, match="image"):
        async with reported(Listener()):
            raise NotFound("image")


async def test_nobody_listens() -> None:
    async with reported(None) as progress:
        progress.say("first")


async def test_a_thread_that_waits_for_bytes_is_woken_when_it_is_over() -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"first"
        waiting.set()
        await asyncio.Event().wait()

    waiting = asyncio.Event()
    offload = Offload(1)
    bridge = Bridge(never())
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(_cancelled(offload, bridge))
        await waiting.wait()
        await bridge.close()
    assert reading.result() == "the transfer was given up: context canceled"
    offload.close()


async def _cancelled(offload: Offload, bridge: Bridge) -> str:
    with pytest.raises(Cancelled) as raised:
        await offload.run(list, iter(bridge))
    return str(raised.value)


async def test_a_thread_gets_everything_however_much_arrives_before_it_looks() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for number in range(100):
            read_ahead.append(number)
            yield bytes([number]) * 65536

    read_ahead: list[int] = []
    offload = Offload(1)
    bridge = Bridge(chunks())
    while len(read_ahead) < 16:
        await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(read_ahead) == 16  # a MiB waits, and no more
    assert b"".join(await offload.run(list, iter(bridge))) == b"".join(bytes([n]) * 65536 for n in range(100))
    await bridge.close()
    offload.close()


async def test_a_thread_gets_what_came_before_an_error_and_then_the_error() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        raise NotFound("the rest")

    def read() -> None:
        for chunk in bridge:
            got.append(chunk)

    got: list[bytes] = []
    offload = Offload(1)
    bridge = Bridge(chunks())
    with pytest.raises(NotFound, match="the rest"):
        await offload.run(read)
    assert got == [b"first"]
    await bridge.close()
    offload.close()
