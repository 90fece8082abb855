"""ttrpc from a peer that means no good: to a shim's server, to the daemon's, and to the decoder of all.

The first byte says into how large pieces the rest is cut.
"""

import asyncio
import socket
import struct
from functools import partial
from typing import Any, Final, cast

from pyctr_shim.loop import Future, Loop
from pyctr_shim.server import Connection, Server
from pyctr_wire import ttrpc
from pyctr_wire.errors import ApiError, InvalidArgument, NotFound, Unimplemented
from pyctrd.server.ttrpc import _answer, _Connection

_REQUEST: Final = ttrpc.FrameType.REQUEST


def call(stream: int, method: str, payload: bytes = b"", timeout_nano: int = 0) -> bytes:
    """Return the frame of a call."""
    request = ttrpc.Request("s", method, payload, timeout_nano, {"a": "b"})
    return ttrpc.encode_frame(stream, _REQUEST, ttrpc.encode_request(request))


seeds: Final = [
    b"\xff" + call(1, "Echo", b"x") + call(3, "Refuse") + call(5, "Wait"),
    b"\x03" + call(1, "Wait", timeout_nano=1 << 62) + call(1, "Echo") + call(2, "Echo"),
    b"\xff" + call(1, "Fail") + struct.pack(">IIBB", (4 << 20) + 1, 7, 1, 0) + b"abc",
]


class Service:
    """Answers, refuses, waits for ever, and has a bug."""

    async def call(self, service: str, method: str, payload: bytes) -> bytes:
        if method == "Wait":
            await Future[None]()
        if method == "Refuse":
            raise NotFound("\udcff")
        if method == "Fail":
            raise ZeroDivisionError
        if service != "s":
            raise Unimplemented(f"service {service}")
        return payload


class Silent:
    """Has nothing to tell, and nothing to do with what is answered."""

    def offered(self, way: Connection) -> None:
        pass

    def answered(self, way: Connection, number: int, data: bytes) -> None:
        pass

    def lost(self, way: Connection) -> None:
        pass


def check(data: bytes) -> None:
    """Fail if anybody does not answer each frame, in a frame, and go on."""
    step = max(data[0], 1) if data else 1
    stream = data[1:]
    pieces = [stream[start : start + step] for start in range(0, len(stream), step)]
    frames = _decoded(pieces)
    assert frames == ttrpc.FrameDecoder().feed(stream) == _naive(stream)
    for_ever, for_some_time = _parked(frames)
    answers = _ask_shim(pieces)
    most = len(frames) - for_ever - sum(map(_answers_an_event, frames))
    assert most - for_some_time <= len(answers) <= most, (frames, answers)
    assert [answer.stream_id for answer in _ask_daemon(pieces)] == [frame.stream_id for frame in frames]


def _decoded(pieces: list[bytes]) -> list[ttrpc.Frame | ttrpc.Oversized]:
    decoder = ttrpc.FrameDecoder()
    return [frame for piece in pieces for frame in decoder.feed(piece)]


def _naive(data: bytes) -> list[ttrpc.Frame | ttrpc.Oversized]:
    """Decode what is all there, as the protocol's description reads."""
    found: list[ttrpc.Frame | ttrpc.Oversized] = []
    while len(data) >= ttrpc.HEADER_SIZE:
        length, stream, kind, flags = struct.unpack(">IIBB", data[: ttrpc.HEADER_SIZE])
        data = data[ttrpc.HEADER_SIZE :]
        if length > ttrpc.MAX_DATA:
            found.append(ttrpc.Oversized(stream, kind, length))
        elif length > len(data):
            break
        else:
            found.append(ttrpc.Frame(stream, kind, flags, data[:length]))
        data = data[length:]
    return found


def _parked(frames: list[ttrpc.Frame | ttrpc.Oversized]) -> tuple[int, int]:
    """Return how many calls wait for ever, and how many until their time is up, which may be at once."""
    for_ever, for_some_time, last = 0, 0, -1
    for frame in frames:
        if not isinstance(frame, ttrpc.Frame) or frame.type != _REQUEST:
            continue
        if frame.stream_id % 2 == 0 or frame.stream_id <= last:
            continue
        last = frame.stream_id
        try:
            request = ttrpc.decode_request(frame.data)
        except InvalidArgument:
            continue
        if request.method == "Wait":
            for_ever += request.timeout_nano <= 0
            for_some_time += request.timeout_nano > 0
    return for_ever, for_some_time


def _answers_an_event(frame: ttrpc.Frame | ttrpc.Oversized) -> bool:
    return isinstance(frame, ttrpc.Frame) and frame.type == ttrpc.FrameType.RESPONSE and frame.stream_id % 2 == 0


def _ask_shim(pieces: list[bytes]) -> list[ttrpc.Frame]:
    """Return the answers of a shim's server."""
    loop = Loop()
    ours, theirs = socket.socketpair()
    server = Server(loop, Service(), Silent(), lambda: None)
    server.adopt(theirs)
    ours.setblocking(False)
    decoder, answers = ttrpc.FrameDecoder(), list[ttrpc.Frame]()
    try:
        for piece in (*pieces, b""):
            if piece:
                ours.send(piece)
            loop.call_soon(lambda: None)  # so that the round does not wait
            loop.run_once()
            answers += _received(ours, decoder)
        assert not server.quiet, "hung up"
        assert decoder.idle
    finally:
        server.close()
        ours.close()
        loop.close()
    return answers


def _received(connection: socket.socket, decoder: ttrpc.FrameDecoder) -> list[ttrpc.Frame]:
    found: list[ttrpc.Frame] = []
    while True:
        try:
            data = connection.recv(1 << 20)
        except BlockingIOError:
            return found
        assert data, "hung up"
        for frame in decoder.feed(data):
            assert isinstance(frame, ttrpc.Frame)
            assert frame.type == ttrpc.FrameType.RESPONSE
            _must_be_a_response(frame.data)
            found.append(frame)


class _Transport:
    """Takes what the daemon's server writes to the peer at the other end of `peer`."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self.data = b""

    def get_extra_info(self, _name: str) -> socket.socket:
        return self._peer

    def writelines(self, pieces: list[bytes]) -> None:
        self.data += b"".join(pieces)


def _ask_daemon(pieces: list[bytes]) -> list[ttrpc.Frame]:
    """Return the answers of the daemon's server, whose handlers never wait."""
    services = {"s": {"Echo": lambda request: request.payload, "Wait": lambda request: request.payload}}
    connection = _Connection(partial(_answer, services), lambda *_: True, lambda _: None)
    ours, theirs = socket.socketpair()
    transport = _Transport(theirs)
    with ours, theirs:
        connection.connection_made(cast("asyncio.Transport", transport))
    for piece in pieces:
        connection.data_received(piece)
    decoder = ttrpc.FrameDecoder()
    answers: list[Any] = decoder.feed(transport.data)
    for answer in answers:
        _must_be_a_response(answer.data)
    assert decoder.idle
    return answers


def _must_be_a_response(data: bytes) -> None:
    try:
        ttrpc.decode_response(data)
    except InvalidArgument as error:
        assert "response frame" not in str(error)
    except ApiError:
        return
