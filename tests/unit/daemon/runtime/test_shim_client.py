"""What a shim tells by the connection by which it is called."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pyctr_wire import ttrpc
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as pb
from pyctr_wire.errors import ApiError, Code, ResourceExhausted, Unavailable
from pyctrd.runtime.shim_client import ShimClient

_EVENT = ttrpc.Request("events", "Forward", b"something", 0, {})


class ToldShim:
    """The other end: a shim that says what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._decoder = ttrpc.FrameDecoder()
        self.writer = writer

    async def receive(self) -> list[ttrpc.Frame]:
        """Return what has come in one piece."""
        frames = self._decoder.feed(await self._reader.read(1 << 16))
        return [frame for frame in frames if isinstance(frame, ttrpc.Frame)]

    def tell(self, number: int) -> None:
        self.writer.write(ttrpc.encode_frame(number, ttrpc.FrameType.REQUEST, ttrpc.encode_request(_EVENT)))

    def answer(self, number: int) -> None:
        data = ttrpc.encode_response(pb.StateResponse(pid=7).SerializeToString())
        self.writer.write(ttrpc.encode_frame(number, ttrpc.FrameType.RESPONSE, data))


@asynccontextmanager
async def called(*, refusing: Exception | None = None) -> AsyncIterator[tuple[ShimClient, ToldShim, list[bytes]]]:
    """Yield a client, the shim that it calls, and what that has told."""
    told: list[bytes] = []

    def take(request: ttrpc.Request) -> bytes:
        told.append(request.payload)
        if refusing is not None:
            raise refusing
        return b""

    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    client = await ShimClient.over(ours, "task web", {"a": "b"})
    client.take_events(take)
    try:
        yield client, ToldShim(reader, writer), told
    finally:
        client.close()
        writer.close()
        await asyncio.sleep(0)


async def state(client: ShimClient) -> int:
    return (await client.call("State", pb.StateRequest(), pb.StateResponse, 30)).pid


def numbers(frames: list[ttrpc.Frame]) -> list[tuple[int, int]]:
    return [(frame.stream_id, frame.type) for frame in frames]


async def test_an_event_comes_before_the_answer_and_its_acknowledgement_with_the_next_call() -> None:
    async with called() as (client, shim, told):
        call = asyncio.ensure_future(state(client))
        (request,) = await shim.receive()
        assert ttrpc.decode_request(request.data).metadata == {"a": "b", "pyctr-events": "1"}
        call.add_done_callback(lambda _: told.append(b"answered"))
        shim.tell(2)
        shim.answer(1)
        assert await call == 7
        assert told == [b"something", b"answered"]

        call = asyncio.ensure_future(state(client))
        frames = await shim.receive()
        assert numbers(frames) == [(2, ttrpc.FrameType.RESPONSE), (3, ttrpc.FrameType.REQUEST)]
        assert ttrpc.decode_response(frames[0].data) == b""
        shim.answer(3)
        await call


async def test_without_a_next_call_it_is_acknowledged_soon_and_once() -> None:
    async with called() as (_client, shim, told):
        shim.tell(2)
        shim.tell(4)
        assert numbers(await shim.receive()) == [(2, ttrpc.FrameType.RESPONSE), (4, ttrpc.FrameType.RESPONSE)]
        shim.tell(6)
        assert numbers(await shim.receive()) == [(6, ttrpc.FrameType.RESPONSE)]
        assert len(told) == 3


async def test_a_request_that_is_too_long_harms_nothing() -> None:
    async with called() as (client, shim, told):
        shim.tell(2)
        while not told:
            await asyncio.sleep(0)
        request = pb.ExecProcessRequest(exec_id="e" * (ttrpc.MAX_DATA + 1))
        with pytest.raises(ResourceExhausted):
            await client.call("Exec", request, pb.ExecProcessResponse, 30)
        call = asyncio.ensure_future(state(client))
        frames = await shim.receive()
        assert numbers(frames) == [(2, ttrpc.FrameType.RESPONSE), (1, ttrpc.FrameType.REQUEST)]
        shim.answer(1)
        assert await call == 7


async def test_a_client_that_closes_acknowledges_before() -> None:
    async with called() as (client, shim, told):
        shim.tell(2)
        while not told:
            await asyncio.sleep(0)
        client.close()
        assert numbers(await shim.receive()) == [(2, ttrpc.FrameType.RESPONSE)]


@pytest.mark.parametrize("refusal", [Unavailable("not now"), KeyError("what nobody foresaw")])
async def test_what_is_not_taken_in_is_told_to_the_shim_and_harms_no_call(refusal: Exception) -> None:
    async with called(refusing=refusal) as (client, shim, _told):
        call = asyncio.ensure_future(state(client))
        await shim.receive()
        shim.tell(2)
        shim.answer(1)
        assert await call == 7
        (answer,) = await shim.receive()
        with pytest.raises(ApiError) as error:
            ttrpc.decode_response(answer.data)
        assert error.value.code not in (Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED), "it would not tell that again"
