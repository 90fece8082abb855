"""The endpoint on which shims report."""

import asyncio
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pyctr_wire import ttrpc
from pyctr_wire.containerd.services.ttrpc.events.v1 import events_pb2
from pyctr_wire.errors import ApiError, InvalidArgument, Unavailable, Unimplemented
from pyctrd.core.anys import AnyValue
from pyctrd.rpc import forward
from pyctrd.server import ttrpc as server
from pyctrd.server.ttrpc import TtrpcListener


class Sink:
    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []

    def forward(
        self, namespace: str, topic: str, event: AnyValue, timestamp: datetime, instance: str, sequence: int
    ) -> None:
        self.events.append((namespace, topic, event, timestamp, instance, sequence))


@pytest.fixture
def address() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pyctr-") as path:
        yield Path(path) / "t"


@asynccontextmanager
async def serving(address: Path, sink: Sink) -> AsyncIterator[TtrpcListener]:
    listener = TtrpcListener(forward.services(sink), address, uid=os.getuid(), gid=os.getgid())
    await listener.start()
    try:
        yield listener
    finally:
        await listener.stop()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer, self.stream = reader, writer, -1

    async def answer(self) -> bytes:
        header = await self.reader.readexactly(ttrpc.HEADER_SIZE)
        length = int.from_bytes(header[:4], "big")
        return ttrpc.decode_response(await self.reader.readexactly(length))

    def send(self, data: bytes) -> None:
        self.stream += 2
        self.writer.write(ttrpc.encode_frame(self.stream, ttrpc.FrameType.REQUEST, data))


@asynccontextmanager
async def client(address: Path) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_unix_connection(str(address))
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()


def request(method: str = "Forward", service: str = forward.SERVICE, timestamp: bool = True, **metadata: str) -> bytes:
    message = events_pb2.ForwardRequest()
    message.envelope.namespace = "default"
    message.envelope.topic = "/tasks/exit"
    message.envelope.event.type_url = "containerd.events.TaskExit"
    message.envelope.event.value = b"x"
    if timestamp:
        message.envelope.timestamp.seconds = 100
    keys = {f"pyctr-{key}": value for key, value in metadata.items()}
    return ttrpc.encode_request(ttrpc.Request(service, method, message.SerializeToString(), 0, keys))


async def test_events_arrive_in_order_and_are_acknowledged(address: Path) -> None:
    sink = Sink()
    async with serving(address, sink), client(address) as shim:
        for number in (1, 2):
            shim.send(request(instance="abc", sequence=str(number)))
        shim.send(request())
        assert [await shim.answer() for _ in range(3)] == [b"", b"", b""]
    event = AnyValue("containerd.events.TaskExit", b"x")
    at = datetime.fromtimestamp(100, UTC)
    assert sink.events == [
        ("default", "/tasks/exit", event, at, "abc", 1),
        ("default", "/tasks/exit", event, at, "abc", 2),
        ("default", "/tasks/exit", event, at, "", 0),
    ]


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (request(service="x.Y"), Unimplemented, "service x.Y"),
        (request(method="Z"), Unimplemented, "method Z"),
        (request(timestamp=False), InvalidArgument, "timestamp must be set"),
        (b"\xff", InvalidArgument, "does not hold"),
    ],
)
async def test_bad_request_fails_alone(address: Path, data: bytes, error: type[ApiError], text: str) -> None:
    sink = Sink()
    async with serving(address, sink), client(address) as shim:
        shim.send(data)
        with pytest.raises(error, match=text):
            await shim.answer()
        shim.send(request())
        assert await shim.answer() == b""


@pytest.mark.parametrize("stream", [2, 1])
async def test_stream_ids_are_odd_and_rise(address: Path, stream: int) -> None:
    async with serving(address, Sink()), client(address) as shim:
        shim.send(request())
        await shim.answer()
        shim.writer.write(ttrpc.encode_frame(stream, ttrpc.FrameType.REQUEST, request()))
        with pytest.raises(InvalidArgument, match="StreamID"):
            await shim.answer()


async def test_cve_2020_15257_other_users_are_disconnected(address: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(address, Sink()):
        monkeypatch.setattr(server.os, "geteuid", lambda: os.getuid() + 1)
        async with client(address) as shim:
            assert await shim.reader.read() == b""


async def test_successor_takes_the_path(address: Path) -> None:
    """Two daemons in turn, as in an upgrade: the path always answers, and the old one's end takes nothing away."""
    old, new = Sink(), Sink()
    async with serving(address, old) as first, client(address) as shim:
        first._private = first._private.rename(first._private.with_name("t.1"))
        shim.send(request())
        await shim.answer()
        async with serving(address, new):
            await first.stop()
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.connect(str(address))
            assert await shim.reader.read() == b""


async def test_what_comes_by_another_connection_is_taken_until_it_stops(address: Path) -> None:
    sink = Sink()
    envelope = {"namespace": "ns", "topic": "/tasks/start", "timestamp": datetime.now(UTC)}
    payload = events_pb2.ForwardRequest(envelope=envelope).SerializeToString()
    request = ttrpc.Request(forward.SERVICE, "Forward", payload, 0, {"pyctr-instance": "i", "pyctr-sequence": "3"})
    async with serving(address, sink) as listener:
        assert listener.take(request) == b""
        with pytest.raises(Unimplemented, match="method Backward"):
            listener.take(request._replace(method="Backward"))
    assert [(event[0], event[1], *event[4:]) for event in sink.events] == [("ns", "/tasks/start", "i", 3)]
    with pytest.raises(Unavailable, match="stopping"):
        listener.take(request)


async def test_what_cannot_be_passed_on_is_taken_in_and_not_acknowledged(address: Path) -> None:
    sink = Sink()
    async with serving(address, sink) as listener, client(address) as shim:
        listener.withhold()
        shim.send(request())
        with pytest.raises(Unavailable, match="stopping"):
            await shim.answer()
        with pytest.raises(Unavailable, match="stopping"):
            listener.take(ttrpc.decode_request(request()))
        assert len(sink.events) == 2


async def test_an_event_that_is_not_what_it_says_is_refused_for_good(address: Path) -> None:
    class Strict(Sink):
        def forward(self, *arguments: object) -> None:
            events_pb2.ForwardRequest.FromString(b"\xff")

    envelope = {"namespace": "ns", "topic": "/tasks/start", "timestamp": datetime.now(UTC), "event": {"type_url": "x"}}
    payload = events_pb2.ForwardRequest(envelope=envelope).SerializeToString()
    async with serving(address, Strict()) as listener:
        with pytest.raises(InvalidArgument, match="event is not a x"):
            listener.take(ttrpc.Request(forward.SERVICE, "Forward", payload, 0, {}))
