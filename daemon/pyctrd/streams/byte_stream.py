"""Bytes over a stream, with credit: nobody sends what the other side has not asked for.

The receiver grants credit with WindowUpdate; the sender spends it in Data messages. The sender's end of stream is the
end of the bytes. Source: containerd docs/transfer.md; core/transfer/streaming.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from pyctr_wire.containerd.types.transfer import streaming_pb2
from pyctr_wire.errors import Cancelled, InvalidArgument
from pyctrd.core.anys import AnyValue
from pyctrd.streams.manager import Stream

WINDOW: Final = 64 << 10  # what containerd's clients ask for at a time, as soon as they could take less than that
CREDIT: Final = 1 << 20  # what a client is given at once
_LARGEST_MESSAGE: Final = 32 << 10
# Seconds in which a client that asks in a way of its own takes what is left.
_PATIENCE: Final = 5.0
_BLOCK: Final = 512  # of a tar archive, in bytes

_Message = TypeVar("_Message", bound=Message)


async def receive_bytes(stream: Stream) -> AsyncIterator[bytes]:
    """Yield what the client sends until it ends. Raises Cancelled if it goes away, InvalidArgument for nonsense."""
    update = _encode(streaming_pb2.WindowUpdate(update=CREDIT))
    credit = 0
    while True:
        # Topped up before it is used up, so that the sender need not wait for us to ask.
        if credit < CREDIT // 2:
            await stream.send(update)
            credit += CREDIT
        message = await stream.receive()
        if message is None:
            return
        data = _decode(message, streaming_pb2.Data).data
        credit -= len(data)
        if credit < 0:
            raise InvalidArgument("the client sends more than it was given credit for")
        if data:
            yield data


class ByteSender:
    """Sends bytes as fast as the client asks for them. One writer at a time."""

    def __init__(self, stream: Stream) -> None:
        """Send over `stream` (borrowed)."""
        self._stream = stream
        self._credit = 0
        self._sent = 0
        self._by_windows = True  # the client asks as containerd's do

    async def write(self, data: bytes) -> None:
        """Send `data`; waits for credit. Raises Cancelled if the client goes away."""
        view = memoryview(data)
        while view:
            while self._credit <= 0:
                await self._take_credit()
            part = view[: min(self._credit, _LARGEST_MESSAGE)]
            await self._stream.send(_encode(streaming_pb2.Data(data=bytes(part))))
            self._credit -= len(part)
            self._sent += len(part)
            view = view[len(part) :]

    async def finish(self) -> None:
        """End the stream once the client could take a whole window again.

        One that asks in other amounts is not waited for longer than five seconds.
        """
        with suppress(TimeoutError, Cancelled):
            async with asyncio.timeout(None if self._by_windows else _PATIENCE):
                while self._credit < WINDOW:
                    await self._take_credit()
        await self._stream.close()

    async def finish_archive(self) -> None:
        """End the stream once the client has taken all of an archive, which gets zeros behind its end.

        A client of containerd ends as soon as its transfer is done and loses what it has not taken by then. Its
        requests come once in a window, when it has taken the first bytes of that: so the zeros reach just into the
        next window, and whoever asks then has taken everything before them. How many they are depends on nothing but
        the archive's size.
        """
        await self.write(bytes(-self._sent % WINDOW + _BLOCK))
        await self.finish()

    async def _take_credit(self) -> None:
        message = await self._stream.receive()
        if message is None:
            raise Cancelled("the client stopped asking for data")
        update = _decode(message, streaming_pb2.WindowUpdate).update
        self._credit += update
        self._by_windows = self._by_windows and update == WINDOW


def _decode(message: AnyValue, kind: type[_Message]) -> _Message:
    """Return the message under `message`, whatever comes before the name in its type URL."""
    name = kind.DESCRIPTOR.full_name
    if message.type_url.rpartition("/")[2] != name:
        raise InvalidArgument(f"a byte stream carries {message.type_url[:100]!r} instead of {name}")
    try:
        return kind.FromString(message.value)
    except DecodeError as error:
        raise InvalidArgument(f"a byte stream carries a damaged {name}") from error


def _encode(message: Message) -> AnyValue:
    return AnyValue(message.DESCRIPTOR.full_name, message.SerializeToString())
