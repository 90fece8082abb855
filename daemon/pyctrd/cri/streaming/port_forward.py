"""Port-forward: each connection that a client accepts is continued inside a pod's network namespace.

SPDY        a pair of streams for each connection: `error` and `data`, with the same `requestid` and `port`
WebSocket   two channels for each port of the request, 2i for data and 2i+1 for errors; the first message on
            each is the port, u16 little endian
"""

import asyncio
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from pyctr_wire.errors import ApiError
from pyctrd.cri.streaming.flow import Activity, Inbox, Room
from pyctrd.cri.streaming.spdy import MAX_STREAMS, Connection, Stream
from pyctrd.cri.streaming.spdy_frames import ResetStatus

if TYPE_CHECKING:
    from pyctrd.cri.streaming.websocket import Channels

SPDY_PROTOCOLS: Final = ("portforward.k8s.io",)
WEBSOCKET_PROTOCOLS: Final = ("SPDY/3.1+portforward.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io")
MAX_PORTS: Final = 127  # channels are one byte

_READ_SIZE: Final = 64 << 10
# Seconds for the client to finish once the pod has closed its side.
_PATIENCE: Final = 1.0
# Seconds without a byte from the pod that end a connection whose client has nothing more to say.
_SILENCE: Final = 30.0


class Ports(Protocol):
    """Who can connect to ports inside pods."""

    async def port_forward(self, sandbox_id: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to `port` on localhost in the sandbox's network namespace. Raises ApiError."""


class Near(Protocol):
    """The client's side of one forwarded connection."""

    @property
    def inbox(self) -> Inbox:
        """What the client sends."""

    async def write(self, data: bytes) -> None:
        """Send, waiting while the client takes nothing. Raises ConnectionError if it is gone."""

    async def close(self) -> None:
        """Say that nothing more comes, and that nothing failed; once more does nothing."""

    async def fail(self, message: str) -> None:
        """Tell what failed, and end."""


async def forward(near: Near, ports: Ports, sandbox_id: str, port: int) -> None:
    """Continue one connection to `port` until it ends; what fails is told to the client and ends nothing else."""
    try:
        try:
            reader, writer = await ports.port_forward(sandbox_id, port)
        except ApiError as error:
            await near.fail(f"error forwarding port {port} to pod {sandbox_id}, uid : {error}")
            return
        try:
            await _both_ways(near, reader, writer)
        finally:
            writer.close()
        await near.close()
    except* ConnectionError:
        pass  # the client has gone
    finally:
        near.inbox.discard()


async def _both_ways(near: Near, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until both sides have ended, or one has and the other takes too long."""
    activity = Activity()
    async with asyncio.TaskGroup() as group:
        to_client = group.create_task(_to_client(near, reader, activity))
        to_pod = group.create_task(_to_pod(near.inbox, writer))
        await asyncio.wait((to_client, to_pod), return_when=asyncio.FIRST_COMPLETED)
        if to_client.done():
            await asyncio.wait((to_pod,), timeout=_PATIENCE)
        else:
            activity.touch()
            silence = group.create_task(activity.until_idle(_SILENCE))
            await asyncio.wait((to_client, silence), return_when=asyncio.FIRST_COMPLETED)
            silence.cancel()
        to_client.cancel()
        to_pod.cancel()


async def _to_client(near: Near, reader: asyncio.StreamReader, activity: Activity) -> None:
    while data := await _read(reader):
        activity.touch()
        await near.write(data)
    await near.close()


async def _read(reader: asyncio.StreamReader) -> bytes:
    """Return what the pod sends, nothing at the end: a reset is one too."""
    try:
        return await reader.read(_READ_SIZE)
    except OSError:
        return b""


async def _to_pod(inbox: Inbox, writer: asyncio.StreamWriter) -> None:
    while data := await inbox.read():
        try:
            if not writer.is_closing():  # uvloop takes it for a mistake of ours; `drain` tells
                writer.write(data)
            await writer.drain()
        except OSError:
            inbox.discard()  # the pod takes nothing more; it may still say something
            return
    if writer.can_write_eof() and not writer.is_closing():
        writer.write_eof()


# -- over SPDY


class _Pair(NamedTuple):
    """Two streams of one connection."""

    data: Stream
    error: Stream

    @property
    def inbox(self) -> Inbox:
        return self.data.inbox

    async def write(self, data: bytes) -> None:
        await self.data.write(data)

    async def close(self) -> None:
        await self.data.close()
        await self.error.close()

    async def fail(self, message: str) -> None:
        await self.error.write(message.encode())
        await self.error.close()
        await self.data.reset(ResetStatus.INTERNAL_ERROR)


class SpdyForwarding:
    """The streams of a client that forwards ports, paired as they come."""

    def __init__(self, connection: Connection, ports: Ports, sandbox_id: str, seconds: float) -> None:
        """Forward to `sandbox_id`; the second stream of a pair must come within `seconds` of the first."""
        self._connection = connection
        self._ports = ports
        self._sandbox_id = sandbox_id
        self._seconds = seconds
        self._halves: dict[str, tuple[Stream, asyncio.TimerHandle]] = {}
        self._forwarding: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Forward until the client leaves; raises ConnectionError then."""
        async with asyncio.TaskGroup() as group:
            try:
                while True:
                    await self._accept(await self._connection.accept(), group)
            finally:
                for _, timer in self._halves.values():
                    timer.cancel()

    async def _accept(self, stream: Stream, group: asyncio.TaskGroup) -> None:
        kind, port = stream.headers.get("streamtype"), _port(stream.headers.get("port", ""))
        # A client that resets what it has opened may have more of these than streams.
        full = max(len(self._halves), len(self._forwarding)) >= MAX_STREAMS
        if kind not in ("data", "error") or port is None or full:
            await stream.reset(ResetStatus.REFUSED_STREAM)
            return
        if kind == "error":
            stream.inbox.discard()
        # Without an id it is that of the error stream, which is opened right before the data stream.
        key = stream.headers.get("requestid") or str(stream.stream_id - (2 if kind == "data" else 0))
        first, timer = self._halves.pop(key, (None, None))
        if first is None or timer is None:
            loop = asyncio.get_running_loop()
            late = loop.call_later(self._seconds, self._give_up, key, group)
            self._halves[key] = (stream, late)
            return
        timer.cancel()
        if first.headers.get("streamtype") == kind or first.headers.get("port") != stream.headers.get("port"):
            await first.reset(ResetStatus.PROTOCOL_ERROR)
            await stream.reset(ResetStatus.PROTOCOL_ERROR)
            return
        pair = _Pair(stream, first) if kind == "data" else _Pair(first, stream)
        task = group.create_task(forward(pair, self._ports, self._sandbox_id, port))
        self._forwarding.add(task)
        task.add_done_callback(self._forwarding.discard)

    def _give_up(self, key: str, group: asyncio.TaskGroup) -> None:
        stream, _ = self._halves.pop(key)
        group.create_task(_reset(stream))


async def _reset(stream: Stream) -> None:
    with suppress(ConnectionError):  # gone already
        await stream.reset(ResetStatus.CANCEL)


def _port(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 and 0 < int(text) < 1 << 16 else None


# -- over a WebSocket with channels


class _ChannelPair:
    """Two channels of one port."""

    def __init__(self, channels: "Channels", data_channel: int, room: Room) -> None:
        self._channels = channels
        self._data_channel = data_channel
        self.inbox = Inbox(room)

    async def greet(self, port: int) -> None:
        for channel in (self._data_channel, self._data_channel + 1):
            await self._channels.send(channel, struct.pack("<H", port))

    async def write(self, data: bytes) -> None:
        await self._channels.send(self._data_channel, data)

    async def close(self) -> None:
        """Nothing: a channel cannot be closed."""

    async def fail(self, message: str) -> None:
        await self._channels.send(self._data_channel + 1, message.encode())


async def forward_channels(channels: "Channels", ports: Ports, sandbox_id: str, wanted: Sequence[int]) -> None:
    """Forward one connection to each of the `wanted` ports, until all have ended or the client leaves.

    Raises ConnectionError if it leaves.
    """
    room = Room()
    pairs = [_ChannelPair(channels, 2 * index, room) for index in range(len(wanted))]
    async with asyncio.TaskGroup() as group:
        for pair, port in zip(pairs, wanted, strict=True):
            await pair.greet(port)
        receiving = group.create_task(_receive(channels, pairs))
        connections = [
            group.create_task(forward(pair, ports, sandbox_id, port)) for pair, port in zip(pairs, wanted, strict=True)
        ]
        if connections:
            await asyncio.wait(connections)
        receiving.cancel()


async def _receive(channels: "Channels", pairs: Sequence[_ChannelPair]) -> None:
    while True:
        try:
            channel, data = await channels.receive()
        except ConnectionError as error:
            for pair in pairs:
                pair.inbox.end(error)
            raise
        if data is not None and channel % 2 == 0 and channel // 2 < len(pairs):
            await pairs[channel // 2].inbox.put(data)
