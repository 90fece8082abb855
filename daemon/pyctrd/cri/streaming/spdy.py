"""A SPDY/3.1 connection whose streams the client opens, and its streams.

Kubernetes' clients use no flow control of SPDY's; what they send and nobody takes holds the whole connection up.
"""

import asyncio
from collections.abc import Mapping
from typing import Final, Protocol

from pyctrd.cri.streaming import spdy_frames as frames
from pyctrd.cri.streaming.flow import Activity, Inbox, Room
from pyctrd.cri.streaming.spdy_frames import Flag, GoAwayStatus, ResetStatus, SpdyError
from pyctrd.log import Logger

# Of one connection, at a time. A forwarded connection takes two.
MAX_STREAMS: Final = 512
_PIECE: Final = 64 << 10
# Seconds that a client has to take the last bytes and close; it need not.
_LINGER: Final = 10.0

_log = Logger("pyctrd.cri.streaming")


class Link(Protocol):
    """What a connection goes over: TCP, TLS or a WebSocket."""

    async def read(self) -> bytes:
        """Return what has come, nothing at the end."""

    async def write(self, data: bytes) -> None:
        """Send, waiting while the client takes nothing. Raises ConnectionError if it has gone."""

    async def close_writing(self) -> None:
        """Say that nothing more comes, if the link can do that."""


class Stream:
    """A stream that the client has opened."""

    def __init__(self, connection: "Connection", stream_id: int, headers: Mapping[str, str], room: Room) -> None:
        """Belong to `connection`; what comes waits in `room`."""
        self._connection = connection
        self.stream_id = stream_id
        self.headers = headers
        self.inbox = Inbox(room)
        self.closed_here = False
        self.closed_there = False

    async def write(self, data: bytes) -> None:
        """Send bytes, waiting while the client takes nothing. Raises ConnectionError if it or the stream is gone."""
        for start in range(0, len(data), _PIECE):
            if self.closed_here:
                raise ConnectionResetError("the client has reset the stream")
            await self._connection.send(frames.data(self.stream_id, data[start : start + _PIECE]))

    async def close(self) -> None:
        """Say that nothing more comes. Raises ConnectionError if the client is gone."""
        if not self.closed_here:
            self.closed_here = True
            self._connection.forget_closed(self)
            await self._connection.send(frames.data(self.stream_id, b"", Flag.FIN))

    async def reset(self, status: ResetStatus) -> None:
        """End the stream at once, both ways. Raises ConnectionError if the client is gone."""
        if not (self.closed_here and self.closed_there):
            self.end(None)
            self._connection.forget_closed(self)
            await self._connection.send(frames.reset(self.stream_id, status))

    def end(self, error: Exception | None) -> None:
        """Take note that the stream has ended both ways; `error` is what a reader gets."""
        self.closed_here = self.closed_there = True
        self.inbox.end(error)


class Connection:
    """One client's connection, after the upgrade."""

    def __init__(self, link: Link, activity: Activity) -> None:
        """Speak over `link`, and tell `activity` when something is sent or received."""
        self._link = link
        self._activity = activity
        self._encoder = frames.Encoder()
        self._decoder = frames.Decoder()
        self._sending = asyncio.Lock()  # whoever waits for room is first in, first out
        self._room = Room()
        self._streams: dict[int, Stream] = {}
        self._last_id = 0
        self._opened: asyncio.Queue[Stream | None] = asyncio.Queue()  # no more than MAX_STREAMS
        self._closed = asyncio.Event()

    async def run(self) -> None:
        """Take what the client sends, until it closes or goes beyond what is allowed."""
        try:
            while received := await self._link.read():
                self._activity.touch()
                for frame in self._decoder.feed(received):
                    await self._handle(frame)
        except SpdyError as error:
            _log.warning("streaming.refused", reason=str(error))
            await self.send(frames.go_away(self._last_id, GoAwayStatus.PROTOCOL_ERROR))
        except ConnectionError:
            pass  # as if it had closed
        finally:
            self._end()

    async def accept(self) -> Stream:
        """Return the next stream that the client opens. Raises ConnectionResetError once it is gone."""
        stream = await self._opened.get()
        if stream is None:
            self._opened.put_nowait(None)
            raise ConnectionResetError("the client has closed the connection")
        return stream

    async def closed(self) -> None:
        """Return once the client is gone."""
        await self._closed.wait()

    async def finish(self) -> None:
        """Say that this was all, and give the client time to take it: closed too early, the status would be lost."""
        for stream in self._streams.values():
            stream.inbox.discard()
        await self.send(frames.go_away(self._last_id, GoAwayStatus.OK))
        await self._link.close_writing()
        try:
            async with asyncio.timeout(_LINGER):
                await self._closed.wait()
        except TimeoutError:
            pass  # closed without it

    async def send(self, frame: bytes) -> None:
        """Send a frame, waiting while the client takes nothing. Raises ConnectionError if it is gone."""
        async with self._sending:
            await self._link.write(frame)
        self._activity.touch()

    def forget_closed(self, stream: Stream) -> None:
        """Forget `stream` if it is closed both ways."""
        if stream.closed_here and stream.closed_there:
            self._streams.pop(stream.stream_id, None)

    def _end(self) -> None:
        for stream in self._streams.values():
            stream.end(ConnectionResetError("the client has closed the connection"))
        self._streams.clear()
        self._opened.put_nowait(None)
        self._closed.set()

    async def _handle(self, frame: frames.Frame) -> None:
        match frame:
            case frames.Data(stream_id, data, fin):
                await self._data(stream_id, data, fin=fin)
            case frames.SynStream():
                await self._open(frame)
            case frames.Headers(stream_id, _, fin):
                await self._data(stream_id, b"", fin=fin)
            case frames.Reset(stream_id):
                if (stream := self._streams.pop(stream_id, None)) is not None:
                    stream.end(ConnectionResetError("the client has reset the stream"))
            case frames.Ping(ping_id):
                if ping_id % 2:  # even ones would answer ours
                    await self.send(frames.ping(ping_id))
            case frames.SynReply(stream_id):
                raise SpdyError(f"an answer to stream {stream_id}, which nobody has opened")
            case frames.GoAway():
                pass  # it opens no more streams; those that there are go on

    async def _data(self, stream_id: int, data: bytes, *, fin: bool) -> None:
        if stream_id > self._last_id or not stream_id % 2:
            raise SpdyError(f"data of stream {stream_id}, which nobody has opened")
        stream = self._streams.get(stream_id)
        if stream is None or stream.closed_there:
            return  # sent before the client knew that we had reset it
        await stream.inbox.put(data)
        if fin:
            stream.closed_there = True
            stream.inbox.end()
            self.forget_closed(stream)

    async def _open(self, frame: frames.SynStream) -> None:
        stream_id = frame.stream_id
        if stream_id <= self._last_id or not stream_id % 2:
            raise SpdyError(f"stream {stream_id} is opened after stream {self._last_id}")
        self._last_id = stream_id
        # Streams that were reset before anybody accepted them count too.
        if max(len(self._streams), self._opened.qsize()) >= MAX_STREAMS:
            await self.send(frames.reset(stream_id, ResetStatus.REFUSED_STREAM))
            return
        stream = Stream(self, stream_id, frame.headers, self._room)
        self._streams[stream_id] = stream
        async with self._sending:  # the compressed headers must be sent in the order in which they are made
            await self._link.write(self._encoder.syn_reply(stream_id, {}))
        if frame.fin:
            stream.closed_there = True
            stream.inbox.end()
        self._opened.put_nowait(stream)
