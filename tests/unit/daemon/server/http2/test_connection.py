"""A connection, frame by frame, on a transport that only notes what is sent. Real clients are in test_dispatch."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyctr_wire.errors import NotFound
from pyctrd.server.http2 import frames, hpack
from pyctrd.server.http2.call import MAX_MESSAGE_BYTES, STREAM_WINDOW, Call, Handler
from pyctrd.server.http2.connection import Connection
from pyctrd.server.http2.frames import Reason, Setting

_REQUEST = [(":method", "POST"), (":path", "/t.T/Echo"), ("content-type", "application/grpc"), ("a", "b")]
_NO_SETTINGS = frames.settings({})


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def fields(self) -> dict[str, str]:
        return dict(hpack.Decoder().decode(self.payload))


def parse(data: bytes) -> list[Frame]:
    found, start = [], 0
    while start < len(data):
        high, low, kind, flags, stream = frames.HEADER.unpack_from(data, start)
        start += frames.HEADER_SIZE
        end = start + (high << 16 | low)
        found.append(Frame(kind, flags, stream, data[start:end]))
        start = end
    return found


class Transport(asyncio.Transport):
    """Notes what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


class Peer:
    """A client without a socket."""

    def __init__(self, handler: Handler) -> None:
        self.asked: list[str] = []
        self.gone: list[Connection] = []
        self.transport = Transport()

        def handler_for(method: str) -> Handler:
            self.asked.append(method)
            return handler

        self.connection = Connection(handler_for, lambda _: None, self.gone.append)
        self.connection.connection_made(self.transport)

    def greet(self, settings: dict[Setting, int] | None = None) -> None:
        self.connection.data_received(frames.PREFACE + frames.settings(settings or {}))
        self.transport.written = b""

    def send(self, *data: bytes) -> None:
        for one in data:
            self.connection.data_received(one)

    def call(self, stream: int, message: bytes, fields: hpack.Fields | None = None) -> None:
        self.send(headers(stream, fields or _REQUEST), data(stream, message, end=True))

    def sent(self) -> list[Frame]:
        written, self.transport.written = self.transport.written, b""
        return parse(written)


def headers(stream: int, fields: hpack.Fields = _REQUEST, flags: int = frames.END_HEADERS) -> bytes:
    return frames.frame(frames.HEADERS, flags, stream, hpack.encode(fields))


def data(stream: int, message: bytes, *, end: bool) -> bytes:
    prefixed = b"\0" + len(message).to_bytes(4, "big") + message
    return frames.frame(frames.DATA, frames.END_STREAM if end else 0, stream, prefixed)


def handler(behaviour: Callable[[Any, Call], Any], *, client_streams: bool = False) -> Handler:
    return Handler(behaviour, client_streams, client_streams, bytes, bytes)


async def echo(request: bytes, call: Call) -> bytes:
    return request


async def echo_all(requests: Any, call: Call) -> None:
    async for request in requests:
        await call.write(request)


async def turns() -> None:
    """Let tasks go on that wait for nothing but their turn."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
async def peer() -> Peer:
    peer = Peer(handler(echo))
    peer.greet()
    return peer


@pytest.fixture
async def streaming() -> Peer:
    peer = Peer(handler(echo_all, client_streams=True))
    peer.greet()
    return peer


def status(sent: list[Frame]) -> tuple[str, str]:
    last = sent[-1]
    if last.kind == frames.RST_STREAM:
        last = sent[-2]
    assert last.flags & frames.END_STREAM
    return last.fields["grpc-status"], last.fields.get("grpc-message", "")


def broken(sent: list[Frame]) -> Reason:
    assert sent[-1].kind == frames.GOAWAY
    return Reason(frames.parse_number(sent[-1].payload[4:8]))


async def test_a_call_is_answered_by_headers_data_and_trailers(peer: Peer) -> None:
    peer.call(1, b"hello")
    await turns()

    first, second, third = peer.sent()
    assert (first.kind, first.stream, first.fields) == (
        frames.HEADERS,
        1,
        {":status": "200", "content-type": "application/grpc"},
    )
    assert (second.kind, second.payload) == (frames.DATA, b"\0\0\0\0\5hello")
    assert (third.flags, third.fields) == (frames.END_HEADERS | frames.END_STREAM, {"grpc-status": "0"})
    assert not peer.connection.calls


async def test_an_error_is_all_that_is_sent() -> None:
    async def fail(request: bytes, call: Call) -> bytes:
        raise NotFound("image 50% ü\n")

    peer = Peer(handler(fail))
    peer.greet()
    peer.call(1, b"")
    await turns()

    (only,) = peer.sent()
    assert only.fields == {
        ":status": "200",
        "content-type": "application/grpc",
        "grpc-status": "5",
        "grpc-message": "image 50%25 %C3%BC%0A: not found",
    }


async def test_headers_reach_the_handler() -> None:
    seen: list[Any] = []

    async def look(request: bytes, call: Call) -> bytes:
        seen.append((call.invocation_metadata(), call.time_remaining()))
        return b""

    peer = Peer(handler(look))
    peer.greet()
    peer.call(1, b"", [*_REQUEST, ("x-bin", "AAE"), ("grpc-timeout", "2M")])
    await turns()

    (metadata, remaining) = seen[0]
    assert metadata == [
        ("content-type", "application/grpc"),
        ("a", "b"),
        ("x-bin", b"\0\1"),
        ("grpc-timeout", "2M"),
    ]
    assert 0 < remaining <= 120


@given(cuts=st.lists(st.integers(0, 200), max_size=20))
def test_frames_may_be_cut_anywhere(cuts: list[int]) -> None:
    async def run() -> None:
        peer = Peer(handler(echo_all, client_streams=True))
        stream = frames.PREFACE + _NO_SETTINGS + headers(1) + data(1, b"one", end=False) + data(1, b"two", end=True)
        edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
        peer.send(*(stream[start:end] for start, end in pairwise(edges)))
        await turns()
        assert [one.payload[5:] for one in peer.sent() if one.kind == frames.DATA] == [b"one", b"two"]

    asyncio.run(run())


async def test_a_message_may_be_cut_into_frames_and_filled_up(streaming: Peer) -> None:
    message = b"\0\0\0\0\4abcd"
    padded = frames.frame(frames.DATA, frames.PADDED, 1, b"\2" + message[3:7] + b"\0\0")
    streaming.send(
        frames.frame(frames.HEADERS, frames.END_HEADERS | frames.PADDED | frames.HAS_PRIORITY, 1,
                     b"\1" + bytes(5) + hpack.encode(_REQUEST) + b"\0"),
        frames.frame(frames.DATA, 0, 1, message[:3]),
        padded,
        frames.frame(frames.DATA, frames.END_STREAM, 1, message[7:]),
    )  # fmt: skip
    await turns()

    assert [one.payload[5:] for one in streaming.sent() if one.kind == frames.DATA] == [b"abcd"]


async def test_headers_may_be_continued(peer: Peer) -> None:
    block = hpack.encode(_REQUEST)
    peer.send(
        frames.frame(frames.HEADERS, 0, 1, block[:10]),
        frames.frame(frames.CONTINUATION, 0, 1, block[10:20]),
        frames.frame(frames.CONTINUATION, frames.END_HEADERS, 1, block[20:]),
        data(1, b"x", end=True),
    )
    await turns()

    assert status(peer.sent()) == ("0", "")


async def test_no_more_is_sent_than_the_client_takes() -> None:
    peer = Peer(handler(echo))
    peer.greet({Setting.INITIAL_WINDOW_SIZE: 10})
    peer.call(1, b"x" * 25)  # 30 bytes with the prefix
    await turns()
    assert [len(one.payload) for one in peer.sent() if one.kind == frames.DATA] == [10]

    peer.send(frames.window_update(1, 5))
    assert [len(one.payload) for one in peer.sent()] == [5]
    peer.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 12}))  # two more, for streams that are open too
    assert [len(one.payload) for one in peer.sent() if one.kind == frames.DATA] == [2]
    peer.send(frames.window_update(1, 100))
    assert [len(one.payload) for one in peer.sent() if one.kind == frames.DATA] == [13]
    assert not peer.connection.calls


async def test_all_calls_share_the_window_of_the_connection(peer: Peer) -> None:
    peer.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 1 << 20}))
    for stream in (1, 3):
        peer.send(headers(stream))
        for start in range(0, 40_000, 10_000):
            last = start == 30_000
            prefix = (b"\0" + (40_000).to_bytes(4, "big")) if start == 0 else b""
            flags = frames.END_STREAM if last else 0
            peer.send(frames.frame(frames.DATA, flags, stream, prefix + b"x" * 10_000))
    await turns()
    assert sum(len(one.payload) for one in peer.sent() if one.kind == frames.DATA) == frames.DEFAULT_WINDOW

    peer.send(frames.window_update(0, 1 << 20))
    sent = peer.sent()
    assert sum(len(one.payload) for one in sent if one.kind == frames.DATA) == 2 * 40_005 - frames.DEFAULT_WINDOW
    assert status(sent) == ("0", "")


async def test_a_client_that_does_not_read_holds_its_calls_up(streaming: Peer) -> None:
    streaming.connection.pause_writing()
    streaming.send(headers(1), data(1, b"x", end=False), data(1, b"y", end=False))
    await turns()
    assert [one.kind for one in streaming.sent()] == [frames.HEADERS]

    streaming.connection.resume_writing()
    await turns()
    assert [one.payload[5:] for one in streaming.sent()] == [b"x", b"y"]


async def test_a_message_that_was_begun_is_finished_before_the_status(streaming: Peer) -> None:
    streaming.connection.pause_writing()
    streaming.send(headers(1), data(1, b"x", end=False))
    await turns()

    streaming.connection.cut_off("over")
    streaming.connection.resume_writing()
    sent = streaming.sent()
    assert [one.kind for one in sent] == [frames.HEADERS, frames.DATA, frames.HEADERS, frames.RST_STREAM]
    assert status(sent) == ("14", "over: unavailable")


async def test_a_client_may_send_more_when_its_messages_are_read(streaming: Peer) -> None:
    async def grants() -> list[int]:
        await turns()
        return [frames.parse_number(one.payload) for one in streaming.sent() if one.kind == frames.WINDOW_UPDATE]

    streaming.connection.pause_writing()  # the handler stops at its first answer
    streaming.send(headers(1), data(1, b"first", end=False))
    assert await grants() == []
    size = 50_000
    count = STREAM_WINDOW // (size + 5) - 1
    for _ in range(count):
        streaming.send(data(1, b"x" * size, end=False))
    assert await grants() == []

    streaming.connection.resume_writing()
    streaming.send(frames.window_update(1, 1 << 30), frames.window_update(0, 1 << 30))
    for _ in range(count):
        await turns()
    assert sum(await grants()) > STREAM_WINDOW // 2


async def test_a_message_longer_than_the_window_arrives(peer: Peer) -> None:
    length = 2 * STREAM_WINDOW
    peer.send(headers(1), frames.frame(frames.DATA, 0, 1, b"\0" + length.to_bytes(4, "big")))
    window, sent = STREAM_WINDOW - 5, 0
    while sent < length:
        size = min(50_000, window, length - sent)
        assert size > 0
        peer.send(frames.frame(frames.DATA, 0, 1, bytes(size)))
        sent, window = sent + size, window - size
        window += sum(frames.parse_number(one.payload) for one in peer.sent() if one.stream == 1)
    peer.send(frames.frame(frames.DATA, frames.END_STREAM, 1))
    await turns()
    assert peer.asked[-1] == "/t.T/Echo"
    assert len(peer.connection.calls) == 1  # its answer waits for room


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        (b"\1\0\0\0\0", ("12", "compressed messages: not implemented")),
        (
            b"\0" + (MAX_MESSAGE_BYTES + 1).to_bytes(4, "big"),
            ("8", f"message of {MAX_MESSAGE_BYTES + 1} bytes is longer than the limit of {MAX_MESSAGE_BYTES}"
                  ": resource exhausted"),
        ),
        (b"\0\0\0", ("13", "the last message is cut: internal")),
        (b"", ("13", "/t.T/Echo: 0 messages where one was expected: internal")),
    ],
)  # fmt: skip
async def test_messages_that_are_refused(peer: Peer, prefix: bytes, expected: tuple[str, str]) -> None:
    peer.send(headers(1), frames.frame(frames.DATA, frames.END_STREAM, 1, prefix))
    await turns()

    assert status(peer.sent()) == expected
    peer.call(3, b"the connection lives")
    await turns()
    assert status(peer.sent()) == ("0", "")


async def test_a_call_ends_at_its_deadline(streaming: Peer) -> None:
    streaming.send(headers(1, [*_REQUEST, ("grpc-timeout", "1m")]))
    async with asyncio.timeout(30):
        while streaming.connection.calls:
            await asyncio.sleep(0.001)

    assert status(streaming.sent()) == ("4", "/t.T/Echo: context deadline exceeded")


async def test_a_deadline_that_is_none_is_refused(peer: Peer) -> None:
    peer.call(1, b"", [*_REQUEST, ("grpc-timeout", "soon")])
    await turns()

    assert status(peer.sent()) == ("13", "grpc-timeout 'soon' is none: internal")


@pytest.mark.parametrize("how", ["reset", "lost"])
async def test_a_client_that_goes_cancels_its_call(how: str) -> None:
    cancelled = asyncio.Event()

    async def wait(requests: Any, call: Call) -> None:
        try:
            await call.read()
        finally:
            cancelled.set()

    peer = Peer(handler(wait, client_streams=True))
    peer.greet()
    peer.send(headers(1))
    await turns()

    if how == "reset":
        peer.send(frames.reset(1, Reason.CANCEL))
    else:
        peer.connection.connection_lost(None)
    await asyncio.wait_for(cancelled.wait(), 30)

    assert not peer.connection.calls
    assert peer.sent() == []
    assert peer.gone == ([peer.connection] if how == "lost" else [])


async def test_a_bug_is_an_error_of_its_call() -> None:
    async def fail(request: bytes, call: Call) -> bytes:
        raise ZeroDivisionError("oh")

    peer = Peer(handler(fail))
    peer.greet()
    peer.call(1, b"")
    await turns()

    assert status(peer.sent()) == ("2", "unexpected ZeroDivisionError: oh")


async def test_a_connection_that_is_left_ends_with_its_last_call(streaming: Peer) -> None:
    streaming.send(headers(1))
    streaming.connection.leave()
    first, ping = streaming.sent()
    assert (first.kind, frames.parse_number(first.payload[:4])) == (frames.GOAWAY, frames.MAX_WINDOW)
    streaming.send(headers(3), frames.frame(frames.PING, frames.ACK, 0, ping.payload))  # one that was on its way
    (last,) = streaming.sent()
    assert (last.kind, frames.parse_number(last.payload[:4])) == (frames.GOAWAY, 3)
    streaming.send(headers(5))
    assert [one.kind for one in streaming.sent()] == [frames.RST_STREAM]

    for stream in (1, 3):
        assert not streaming.transport.closed
        streaming.send(data(stream, b"bye", end=True))
        await turns()
    assert streaming.transport.closed


async def test_pings_and_settings_are_answered_and_unknown_frames_are_not(peer: Peer) -> None:
    peer.send(
        frames.frame(frames.PING, 0, 0, b"12345678"),
        frames.settings({Setting.MAX_FRAME_SIZE: 1 << 20}),
        frames.frame(frames.PRIORITY, 0, 1, bytes(5)),
        frames.frame(0x77, 0, 1, b"?"),
        frames.reset(7, Reason.CANCEL),
        frames.window_update(7, 1),
    )

    assert [(one.kind, one.flags, one.payload) for one in peer.sent()] == [
        (frames.PING, frames.ACK, b"12345678"),
        (frames.SETTINGS, frames.ACK, b""),
    ]


async def test_what_is_no_call_of_ours_is_told_so(peer: Peer) -> None:
    peer.send(headers(1, [(":method", "GET"), (":path", "/")], frames.END_HEADERS | frames.END_STREAM))

    (answer,) = peer.sent()
    assert (answer.flags & frames.END_STREAM, answer.fields) == (frames.END_STREAM, {":status": "415"})


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (frames.HEADER.pack(1, 1, frames.DATA, 0, 1), Reason.FRAME_SIZE_ERROR),
        (data(1, b"", end=False), Reason.PROTOCOL_ERROR),
        (headers(1) + data(1, b"", end=True) + data(1, b"", end=True), Reason.PROTOCOL_ERROR),
        (headers(2), Reason.PROTOCOL_ERROR),
        (frames.frame(frames.HEADERS, frames.END_HEADERS, 1, b"\xff"), Reason.COMPRESSION_ERROR),
        (frames.frame(frames.HEADERS, frames.END_HEADERS | frames.PADDED, 1, b"\5"), Reason.PROTOCOL_ERROR),
        (frames.frame(frames.HEADERS, 0, 1, b"") + data(1, b"", end=False), Reason.PROTOCOL_ERROR),
        (frames.frame(frames.CONTINUATION, 0, 1, b""), Reason.PROTOCOL_ERROR),
        (frames.frame(frames.PUSH_PROMISE, 0, 1, b""), Reason.PROTOCOL_ERROR),
        (frames.frame(frames.SETTINGS, 0, 0, b"x"), Reason.FRAME_SIZE_ERROR),
        (frames.settings({Setting.MAX_FRAME_SIZE: 1}), Reason.PROTOCOL_ERROR),
        (frames.window_update(0, frames.MAX_WINDOW), Reason.FLOW_CONTROL_ERROR),
        (frames.frame(frames.WINDOW_UPDATE, 0, 1, bytes(4)), Reason.PROTOCOL_ERROR),
        (frames.frame(frames.WINDOW_UPDATE, 0, 1, bytes(3)), Reason.FRAME_SIZE_ERROR),
        (
            headers(1) + frames.frame(frames.DATA, 0, 1, bytes(60_000)) * (STREAM_WINDOW // 60_000 + 1),
            Reason.FLOW_CONTROL_ERROR,
        ),
    ],
)  # fmt: skip
async def test_violations_end_the_connection(peer: Peer, sent: bytes, reason: Reason) -> None:
    peer.send(sent)

    assert broken(peer.sent()) is reason
    assert peer.transport.closed


async def test_headers_without_end_are_refused(peer: Peer) -> None:
    peer.send(frames.frame(frames.HEADERS, 0, 1, b""))
    for _ in range(hpack.MAX_FIELDS_SIZE // 60_000 + 1):
        peer.send(frames.frame(frames.CONTINUATION, 0, 1, bytes(60_000)))

    assert broken(peer.sent()) is Reason.PROTOCOL_ERROR


@pytest.mark.parametrize("greeting", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"PRI * HTTP/1.0\r\n\r\nSM\r\n\r\n"])
async def test_others_are_turned_away(greeting: bytes) -> None:
    peer = Peer(handler(echo))
    peer.transport.written = b""
    peer.send(greeting)

    assert broken(peer.sent()) is Reason.PROTOCOL_ERROR
    assert peer.transport.closed


@given(st.binary(max_size=500))
def test_any_bytes_end_in_frames_or_a_violation(noise: bytes) -> None:
    async def run() -> None:
        peer = Peer(handler(echo))
        peer.greet()
        peer.send(noise)
        await turns()
        peer.connection.connection_lost(None)
        await turns()

    asyncio.run(run())
