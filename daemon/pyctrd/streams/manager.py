"""Streams by name: a client opens one with the streaming service, then names it in a call such as Transfer.

Source: containerd docs/transfer.md, "Streaming".
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from pyctr_wire.errors import AlreadyExists, Cancelled, NotFound
from pyctrd.core.anys import AnyValue

# Messages that wait in each direction; whoever sends more waits.
_DEPTH: Final = 16


class Stream:
    """One stream, seen from both sides: a component of ours receives and sends, the servicer feeds and drains."""

    def __init__(self) -> None:
        """Start with no message."""
        self._incoming: asyncio.Queue[AnyValue | None] = asyncio.Queue(_DEPTH)
        self._outgoing: asyncio.Queue[AnyValue | None] = asyncio.Queue(_DEPTH)
        self._has_ended = False
        self._is_gone = False
        self._unwritten = 0
        self._is_written = asyncio.Event()

    async def receive(self) -> AnyValue | None:
        """Return the client's next message, None once it has sent its last. Raises Cancelled if it went away."""
        message = None if self._has_ended else await self._incoming.get()
        if self._is_gone:
            raise Cancelled("the client closed its stream")
        self._has_ended = message is None
        return message

    async def send(self, message: AnyValue) -> None:
        """Queue a message for the client. Raises Cancelled if it went away."""
        if not self._is_gone:
            self._unwritten += 1
            self._is_written.clear()
            await self._outgoing.put(message)
        if self._is_gone:
            raise Cancelled("the client closed its stream")

    async def flush(self) -> None:
        """Return when all that was sent is on its way to the client, or the client is gone."""
        if self._unwritten and not self._is_gone:
            await self._is_written.wait()

    async def close(self) -> None:
        """End the stream for the client, after what was sent before."""
        if not self._is_gone:
            await self._outgoing.put(None)

    async def feed(self, message: AnyValue | None) -> None:
        """Hand over a message from the client, None for its end of sending; waits while the queue is full."""
        await self._incoming.put(message)

    async def drain(self) -> AsyncIterator[AnyValue]:
        """Yield the messages for the client until a component closes the stream."""
        while (message := await self._outgoing.get()) is not None:
            yield message
            # Whoever iterates has written the message when he asks for the next one.
            self._unwritten -= 1
            if not self._unwritten:
                self._is_written.set()

    def abandon(self) -> None:
        """Wake everybody who waits: the client is gone, or the stream must not be used any more."""
        self._is_gone = True
        self._is_written.set()
        for queue in (self._incoming, self._outgoing):
            while not queue.empty():
                queue.get_nowait()
            queue.put_nowait(None)


class StreamManager:
    """The streams that are open, by namespace and id."""

    def __init__(self) -> None:
        """Start with none."""
        self._streams: dict[tuple[str, str], Stream] = {}

    def open(self, ns: str, name: str) -> Stream:
        """Return a new stream called `name`. Raises AlreadyExists."""
        if (ns, name) in self._streams:
            raise AlreadyExists(f'stream "{name}"')
        stream = self._streams[ns, name] = Stream()
        return stream

    def get(self, ns: str, name: str) -> Stream:
        """Return the stream called `name`. Raises NotFound."""
        try:
            return self._streams[ns, name]
        except KeyError:
            raise NotFound(f'stream "{name}"') from None

    def remove(self, ns: str, name: str) -> None:
        """Forget a stream and wake whoever uses it."""
        if stream := self._streams.pop((ns, name), None):
            stream.abandon()
