"""Progress: in order, the latest of each blob, and never in the way."""

import asyncio

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


async def test_everything_is_sent_before_the_end() -> None:
    sent: list[str] = []

    async def send(report: Report) -> None:
        sent.append(report.event)

    async with reported(send) as progress:
        progress.say("begins")
        progress.say("ends")

    assert sent == ["begins", "ends"]


async def test_a_client_that_is_gone_does_not_matter() -> None:
    async def send(report: Report) -> None:
        raise Cancelled("gone")

    async with reported(send) as progress:
        progress.say("first")
        await asyncio.sleep(0)
        progress.say("second")


async def test_the_transfers_own_failure_is_what_is_raised() -> None:
    async def send(report: Report) -> None:
        pass

    with pytest.raises(NotFound, match="image"):
        async with reported(send):
            raise NotFound("image")


async def test_nobody_listens() -> None:
    async with reported(None) as progress:
        progress.say("first")


async def test_a_thread_that_waits_for_bytes_is_woken_when_it_is_over() -> None:
    async def never():  # type: ignore[no-untyped-def]
        yield b"first"
        waiting.set()
        await asyncio.Event().wait()

    waiting = asyncio.Event()
    offload = Offload(1)
    bridge = Bridge(never())
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(_cancelled(offload, bridge))
        await waiting.wait()
        bridge.close()
    assert reading.result() == "the transfer was given up: context canceled"
    offload.close()


async def _cancelled(offload: Offload, bridge: Bridge) -> str:
    with pytest.raises(Cancelled) as raised:
        await offload.run(list, iter(bridge))
    return str(raised.value)
