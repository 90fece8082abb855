"""The client's end of exec and attach: as SPDY streams, and as channels of a WebSocket."""

import asyncio
from collections.abc import Set
from typing import TYPE_CHECKING, Final

from pyctrd.cri.streaming.flow import Inbox, Room
from pyctrd.cri.streaming.remote_command import Outcome, Output, Streams
from pyctrd.cri.streaming.spdy import Connection, Stream
from pyctrd.cri.streaming.spdy_frames import ResetStatus

if TYPE_CHECKING:
    from pyctrd.cri.streaming.websocket import Channels

# Oldest last. v5 is of WebSockets only.
SPDY_PROTOCOLS: Final = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
WEBSOCKET_PROTOCOLS: Final = (
    *("v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"),
    *("channel.k8s.io", "base64.channel.k8s.io"),
)
_WITHOUT_RESIZE: Final = ("v2.channel.k8s.io", "channel.k8s.io")
_STDIN, _ERROR, _RESIZE = 0, 3, 4


def _tells_json(protocol: str) -> bool:
    return protocol.startswith(("v4.", "v5."))


class SpdyClient:
    """A client that opens a stream for each thing it wants."""

    def __init__(self, connection: Connection, streams: dict[str, Stream], protocol: str) -> None:
        """Speak `protocol` over `streams`, by what they are for; `open_streams` has awaited them."""
        self._connection = connection
        self._streams = streams
        self._json = _tells_json(protocol)
        self.stdin = streams["stdin"].inbox if "stdin" in streams else None
        self.sizes = streams["resize"].inbox if "resize" in streams else None
        for kind in streams.keys() - {"stdin", "resize"}:
            streams[kind].inbox.discard()

    async def send(self, output: Output, data: bytes) -> None:
        """Send on the output's stream, if there is one."""
        if (stream := self._streams.get(output.name.lower())) is not None:
            await stream.write(data)

    async def finish(self, outcome: Outcome) -> None:
        """End the output, then tell the outcome on the error stream."""
        for kind in self._streams.keys() - {"error"}:
            await self._streams[kind].close()
        error = self._streams["error"]
        await error.write(outcome.as_json() if self._json else outcome.as_text().encode())
        await error.close()

    async def closed(self) -> None:
        """Return once the client is gone."""
        await self._connection.closed()


async def open_streams(connection: Connection, streams: Streams, protocol: str, seconds: float) -> dict[str, Stream]:
    """Wait until the client has opened all that `streams` says, and return them by what they are for.

    Raises ConnectionError if it has not within `seconds`, or leaves.
    """
    wanted = {"error"} | {kind for kind in ("stdin", "stdout", "stderr") if getattr(streams, kind)}
    if streams.tty:
        wanted = wanted - {"stderr"} | (set() if protocol in _WITHOUT_RESIZE else {"resize"})
    opened: dict[str, Stream] = {}
    try:
        async with asyncio.timeout(seconds):
            while missing := wanted - opened.keys():
                stream = await connection.accept()
                kind = stream.headers.get("streamtype", "")
                if kind in missing:
                    opened[kind] = stream
                else:
                    await stream.reset(ResetStatus.REFUSED_STREAM)
    except TimeoutError as error:
        raise ConnectionAbortedError(_late(wanted - opened.keys(), seconds)) from error
    return opened


def _late(missing: Set[str], seconds: float) -> str:
    return f"the client has not opened {', '.join(sorted(missing))} within {seconds:g} s"


class WebSocketClient:
    """A client of a WebSocket with channels."""

    def __init__(self, channels: "Channels", streams: Streams, protocol: str) -> None:
        """Speak `protocol` about `streams`."""
        self._channels = channels
        self._streams = streams
        self._json = _tells_json(protocol)
        room = Room()
        self.stdin = Inbox(room) if streams.stdin else None
        self.sizes = Inbox(room) if streams.tty else None
        self._closed = asyncio.Event()

    async def greet(self) -> None:
        """Send an empty message: some clients take the connection for established only then."""
        written = (kind for kind in Output if getattr(self._streams, kind.name.lower()))
        await self._channels.send(next(written, _ERROR), b"")

    async def receive(self) -> None:
        """Take what the client sends, until it is gone."""
        inboxes = {_STDIN: self.stdin, _RESIZE: self.sizes}
        try:
            while True:
                channel, data = await self._channels.receive()
                inbox = inboxes.get(channel)
                if inbox is None:
                    continue
                if data is None:
                    inbox.end()
                else:
                    await inbox.put(data)
        except ConnectionError as error:
            for inbox in inboxes.values():
                if inbox is not None:
                    inbox.end(error)
        finally:
            self._closed.set()

    async def send(self, output: Output, data: bytes) -> None:
        """Send on the output's channel, if the client wants it."""
        if getattr(self._streams, output.name.lower()):
            await self._channels.send(output, data)

    async def finish(self, outcome: Outcome) -> None:
        """Tell the outcome on the error channel."""
        told = outcome.as_json() if self._json else outcome.as_text().encode()
        if told:
            await self._channels.send(_ERROR, told)

    async def closed(self) -> None:
        """Return once the client is gone."""
        await self._closed.wait()
