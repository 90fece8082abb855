"""Named streams, and bytes over them."""

import asyncio

import pytest

from pyctr_wire.containerd.types.transfer import streaming_pb2
from pyctr_wire.errors import AlreadyExists, Cancelled, InvalidArgument, NotFound
from pyctrd.core.anys import AnyValue
from pyctrd.streams import byte_stream
from pyctrd.streams.byte_stream import CREDIT, WINDOW, ByteSender, receive_bytes
from pyctrd.streams.manager import Stream, StreamManager

DATA = "containerd.types.transfer.Data"
UPDATE = "containerd.types.transfer.WindowUpdate"


def data(content: bytes) -> AnyValue:
    return AnyValue(DATA, streaming_pb2.Data(data=content).SerializeToString())


def credit(size: int) -> AnyValue:
    return AnyValue(UPDATE, streaming_pb2.WindowUpdate(update=size).SerializeToString())


async def taken(stream: Stream) -> list[AnyValue]:
    """Return what the client gets until the stream is closed."""
    return [message async for message in stream.drain()]


def test_a_name_belongs_to_one_stream_of_a_namespace() -> None:
    streams = StreamManager()
    first = streams.open("ns", "s")

    assert streams.get("ns", "s") is first
    with pytest.raises(AlreadyExists):
        streams.open("ns", "s")
    assert streams.open("other", "s") is not first
    streams.remove("ns", "s")
    with pytest.raises(NotFound):
        streams.get("ns", "s")


async def test_messages_both_ways() -> None:
    stream = Stream()
    for message in (AnyValue("a", b""), AnyValue("b", b""), None):
        await stream.feed(message)

    received = [await stream.receive() for _ in range(4)]
    assert received == [AnyValue("a", b""), AnyValue("b", b""), None, None]
    await stream.send(AnyValue("c", b""))
    await stream.close()
    assert await taken(stream) == [AnyValue("c", b"")]


async def test_whoever_waits_is_woken_when_the_client_goes() -> None:
    streams = StreamManager()
    stream = streams.open("ns", "s")

    async def receive() -> None:
        with pytest.raises(Cancelled):
            await stream.receive()

    async def send() -> None:
        with pytest.raises(Cancelled):
            await send_for_ever()

    async def send_for_ever() -> None:
        while True:
            await stream.send(AnyValue("x", b""))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(receive())
        tasks.create_task(send())
        await asyncio.sleep(0)
        streams.remove("ns", "s")
    await stream.close()
    assert await taken(stream) == []


async def test_bytes_arrive_within_the_credit_that_was_given() -> None:
    stream = Stream()
    parts = [bytes([number]) * 32768 for number in range(80)]
    given: list[int] = []

    async def client() -> None:
        left = 0
        for part in parts:
            while left < len(part):
                message = await anext(updates)
                given.append(streaming_pb2.WindowUpdate.FromString(message.value).update)
                left += given[-1]
            left -= len(part)
            await stream.feed(data(part))
        await stream.feed(None)

    updates = stream.drain()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(client())
        received = b"".join([part async for part in receive_bytes(stream)])

    assert received == b"".join(parts)
    assert set(given) == {CREDIT}


@pytest.mark.parametrize(
    "messages",
    [[AnyValue(UPDATE, b"")], [AnyValue(DATA, b"\xff")], [data(bytes(CREDIT + 1))]],
    ids=["another type", "damaged", "beyond the credit"],
)
async def test_nonsense_is_refused(messages: list[AnyValue]) -> None:
    stream = Stream()
    for message in messages:
        await stream.feed(message)

    with pytest.raises(InvalidArgument):
        async for _ in receive_bytes(stream):
            pass


async def test_nothing_is_sent_without_credit_and_nothing_beyond_it() -> None:
    stream = Stream()
    content = bytes(range(256)) * 400
    sent: list[bytes] = []

    async def client() -> None:
        messages = stream.drain()
        granted = 0
        for size in (10, 50_000, len(content)):
            await stream.feed(credit(size))
            granted = min(granted + size, len(content))
            while sum(map(len, sent)) < granted:
                sent.append(streaming_pb2.Data.FromString((await anext(messages)).value).data)
            assert sum(map(len, sent)) == granted

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(client())
        await ByteSender(stream).write(content)

    assert b"".join(sent) == content
    assert max(map(len, sent)) <= 32768


async def test_a_client_that_stops_asking_is_gone() -> None:
    stream = Stream()
    await stream.feed(None)

    with pytest.raises(Cancelled):
        await ByteSender(stream).write(b"data")


async def test_the_end_waits_until_the_client_has_taken_everything() -> None:
    stream = Stream()
    sender = ByteSender(stream)
    await stream.feed(credit(WINDOW))
    await sender.write(b"data")

    async with asyncio.TaskGroup() as tasks:
        finishing = tasks.create_task(sender.finish())
        await asyncio.sleep(0)
        assert not finishing.done()
        await stream.feed(credit(WINDOW))
    assert len(await taken(stream)) == 1


class GoClient:
    """Takes bytes as containerd's client does: it asks for a window whenever it could take less than one."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._messages = stream.drain()
        self._window = 0
        self.taken = b""

    async def take(self, until: int) -> None:
        """Take messages until there have been so many bytes."""
        while True:
            if self._window < WINDOW:
                await self._stream.feed(credit(WINDOW))
                self._window += WINDOW
            if len(self.taken) >= until:
                return
            part = streaming_pb2.Data.FromString((await anext(self._messages)).value).data
            self._window -= len(part)
            self.taken += part


# Some that fill a window, or nearly; the last of them leaves the client with more than a window to take.
@pytest.mark.parametrize("size", [512, WINDOW - 512, WINDOW, WINDOW + 512, 10 * WINDOW, 10 * WINDOW + 30_208])
async def test_the_end_of_an_archive_waits_until_the_client_has_taken_it(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """However small its last messages are, and however long that takes; what comes behind it are zeros."""
    monkeypatch.setattr(byte_stream, "_PATIENCE", 0.0)
    stream, content = Stream(), bytes(range(1, 129)) * (size // 128)
    sender, client = ByteSender(stream), GoClient(stream)

    async def send() -> None:
        for at in range(0, size, 512):
            await sender.write(content[at : at + 512])
        await sender.finish_archive()

    async with asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(send())
        await client.take(size)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not sending.done()
        await client.take(size + 1)
        assert not sending.done()
        await client.take(-(-size // WINDOW) * WINDOW + 512)

    assert client.taken[:size] == content
    assert not any(client.taken[size:])


async def test_who_asks_in_another_way_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_stream, "_PATIENCE", 0.0)
    stream = Stream()
    sender = ByteSender(stream)
    await stream.feed(credit(1000))

    await sender.write(bytes(1000))
    await sender.finish()

    assert len(await taken(stream)) == 1


async def test_a_flush_waits_until_messages_are_written() -> None:
    stream = Stream()
    await stream.send(AnyValue("a", b""))
    messages = stream.drain()

    async with asyncio.TaskGroup() as tasks:
        flushing = tasks.create_task(stream.flush())
        await anext(messages)
        assert not flushing.done()
        await stream.close()
        await anext(messages, None)
    await stream.flush()
