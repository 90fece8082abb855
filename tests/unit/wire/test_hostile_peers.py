"""Who speaks ttrpc badly is told so, or hung up on; the one who is spoken to goes on."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import ttrpc_frames
from fuzz.ttrpc_frames import call
from pyctr_shim.loop import Loop
from pyctr_shim.server import Server
from pyctr_wire import ttrpc
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as pb
from pyctr_wire.errors import ApiError, DeadlineExceeded, Internal, ResourceExhausted, UnknownError
from pyctrd.runtime.shim_client import ShimClient, ShimGone

CALLS = st.builds(
    call,
    st.integers(0, 12),
    st.sampled_from(["Echo", "Wait", "Refuse", "Fail", "", "\U0001f600"]),
    st.binary(max_size=20),
    st.sampled_from([0, 0, 1 << 62, (1 << 63) - 1, -1]),
)
FRAMES = st.builds(
    lambda length, stream, kind, flags, data: struct.pack(">IIBB", length, stream, kind, flags) + data,
    st.integers(0, 40) | st.integers(0, (1 << 32) - 1),
    st.integers(0, 9) | st.integers(0, (1 << 32) - 1),
    st.integers(0, 255),
    st.integers(0, 255),
    st.binary(max_size=60),
)


@given(st.lists(CALLS | FRAMES | st.binary(max_size=30), max_size=6), st.integers(1, 255))
def test_whatever_a_peer_sends_each_frame_has_its_answer(pieces: list[bytes], step: int) -> None:
    ttrpc_frames.check(bytes([step]) + b"".join(pieces))


@pytest.fixture
def shim() -> Iterator[tuple[Loop, Server, socket.socket]]:
    """A shim's server, and a client's end."""
    loop = Loop()
    server = Server(loop, ttrpc_frames.Service(), ttrpc_frames.Silent(), lambda: None)
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    server.adopt(theirs)
    yield loop, server, ours
    server.close()
    ours.close()
    loop.close()


def test_more_time_than_there_is_does_not_wake_or_end_a_shim(shim: tuple[Loop, Server, socket.socket]) -> None:
    """epoll_wait(2) takes less than 25 days at once; a deadline may be in 292 years."""
    loop, server, client = shim
    client.send(call(1, "Wait", timeout_nano=(1 << 63) - 1))
    loop.run_once()
    client.send(call(3, "Echo", b"still here"))
    loop.run_once()

    assert ttrpc.decode_response(client.recv(4096)[ttrpc.HEADER_SIZE :]) == b"still here"
    assert not server.quiet


def test_calls_that_wait_are_bounded(shim: tuple[Loop, Server, socket.socket]) -> None:
    loop, server, client = shim
    client.setblocking(False)
    decoder, refused = ttrpc.FrameDecoder(), 0
    for number in range(5000):
        client.send(call(2 * number + 1, "Wait"))
        loop.run_once()
        try:
            frames = decoder.feed(client.recv(4096))
        except BlockingIOError:
            continue
        for frame in frames:
            assert isinstance(frame, ttrpc.Frame)
            with pytest.raises(ResourceExhausted):
                ttrpc.decode_response(frame.data)
            refused += 1

    assert refused == 5000 - 4096
    assert not server.quiet


def test_who_does_not_read_is_hung_up_on(shim: tuple[Loop, Server, socket.socket]) -> None:
    loop, server, client = shim
    client.setblocking(False)
    for number in range(40):
        left = call(2 * number + 1, "Echo", bytes(1 << 20))
        while left and not server.quiet:
            with suppress(BlockingIOError, BrokenPipeError):
                left = left[client.send(left) :]
            loop.call_soon(lambda: None)
            loop.run_once()

    assert server.quiet


def test_an_error_that_names_a_file_which_is_not_text_can_be_told() -> None:
    with pytest.raises(UnknownError, match=r"open /\?:"):
        ttrpc.decode_response(ttrpc.encode_error(UnknownError("open /\udcff: no")))


# -- the daemon, whose shim answers badly


class BadShim(asyncio.Protocol):
    """Answers whatever comes with the next of some bytes, then hangs up."""

    def __init__(self, answers: Sequence[bytes]) -> None:
        self._answers = iter(answers)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, _data: bytes) -> None:
        answer = next(self._answers, None)
        if answer is None:
            self._transport.close()
        else:
            self._transport.write(answer)


@asynccontextmanager
async def answered_with(*answers: bytes) -> AsyncIterator[ShimClient]:
    """Yield a client of a shim that answers its calls with these bytes, then hangs up."""
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: BadShim(answers), sock=theirs)
    client = await ShimClient.over(ours, "task web", {})
    try:
        yield client
    finally:
        client.close()
        transport.close()
        for _ in range(3):  # in which both are closed
            await asyncio.sleep(0)


def frame(data: bytes, stream: int = 1, kind: int = 2, length: int | None = None) -> bytes:
    return struct.pack(">IIBB", len(data) if length is None else length, stream, kind, 0) + data


async def test_an_answer_that_is_no_message_of_the_calls_is_told_by_name() -> None:
    async with answered_with(frame(ttrpc.encode_response(b"\xff\xff"))) as client:
        with pytest.raises(Internal, match="task web: State: the shim's answer is not a StateResponse"):
            await client.call("State", pb.StateRequest(), pb.StateResponse, 30)


@given(st.lists(st.binary(max_size=40) | FRAMES | st.binary(max_size=40).map(frame), max_size=3))
def test_whatever_a_shim_answers_is_an_error_of_the_interface(answers: list[bytes]) -> None:
    async def ask() -> None:
        async with answered_with(*answers, b"") as client:
            for _ in answers:
                try:
                    await client.call("State", pb.StateRequest(), pb.StateResponse, 0.01)
                except ApiError as error:
                    assert str(error)

    asyncio.run(ask())


async def test_answers_of_other_streams_are_nobodys() -> None:
    good = frame(ttrpc.encode_response(pb.StateResponse(pid=7).SerializeToString()))
    strange = frame(b"", 2) + frame(b"", 99) + frame(b"x", kind=3) + frame(b"", 3, length=5 << 20)[:10] + bytes(5 << 20)
    async with answered_with(strange + good) as client:
        assert (await client.call("State", pb.StateRequest(), pb.StateResponse, 30)).pid == 7


async def test_half_an_answer_and_none() -> None:
    async with answered_with(frame(b"", length=100)) as client:
        with pytest.raises(DeadlineExceeded):
            await client.call("State", pb.StateRequest(), pb.StateResponse, 0.01)
        with pytest.raises(ShimGone):
            await client.call("State", pb.StateRequest(), pb.StateResponse, 30)
