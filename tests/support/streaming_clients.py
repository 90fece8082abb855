"""Clients of the streaming server, and containers that do what a test says."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pyctr_wire.errors import ApiError
from pyctrd.cri.streaming import spdy_frames as frames
from pyctrd.cri.streaming.remote_command import Output, Streams
from pyctrd.cri.streaming.spdy_frames import Flag

from .patience import DEADLINE


class ScriptedSession:
    """A process whose test says what it writes and when it ends."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.stdin = bytearray()
        self.stdin_closed = asyncio.Event()
        self.takes_stdin = asyncio.Event()
        self.takes_stdin.set()
        self.sizes: list[tuple[int, int]] = []
        self.resized = asyncio.Event()
        self.abandoned = asyncio.Event()
        self.yielded = 0  # bytes of output that were taken
        self.exit_code = 0
        self._output: asyncio.Queue[tuple[Output, bytes] | ApiError | None] = asyncio.Queue()

    def write(self, output: Output, data: bytes) -> None:
        self._output.put_nowait((output, data))

    def end(self, exit_code: int) -> None:
        self.exit_code = exit_code
        self._output.put_nowait(None)

    def fail(self, error: ApiError) -> None:
        self._output.put_nowait(error)

    async def output(self) -> AsyncIterator[tuple[Output, bytes]]:
        while (item := await self._output.get()) is not None:
            if isinstance(item, ApiError):
                raise item
            yield item
            self.yielded += len(item[1])

    async def write_stdin(self, data: bytes) -> None:
        self.stdin += data
        await self.takes_stdin.wait()

    async def close_stdin(self) -> None:
        self.stdin_closed.set()

    async def resize(self, columns: int, rows: int) -> None:
        self.sizes.append((columns, rows))
        self.resized.set()

    async def wait(self) -> int:
        return self.exit_code

    async def abandon(self) -> None:
        self.abandoned.set()


@dataclass
class ScriptedSessions:
    """Containers in which every command does what `script` does with its session."""

    script: Callable[[ScriptedSession], None] = lambda session: None
    error: ApiError | None = None
    sessions: list[ScriptedSession] = field(default_factory=list)
    commands: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    started: asyncio.Event = field(default_factory=asyncio.Event)

    async def exec(self, container_id: str, command: Sequence[str], streams: Streams) -> ScriptedSession:
        self.commands.append((container_id, tuple(command)))
        return self._session(streams)

    async def attach(self, container_id: str, streams: Streams) -> ScriptedSession:
        self.commands.append((container_id, ()))
        return self._session(streams)

    def _session(self, streams: Streams) -> ScriptedSession:
        if self.error is not None:
            raise self.error
        session = ScriptedSession(streams)
        self.sessions.append(session)
        self.script(session)
        self.started.set()
        return session


@dataclass
class LocalPorts:
    """A pod whose ports are this machine's."""

    error: ApiError | None = None
    asked: list[tuple[str, int]] = field(default_factory=list)

    async def port_forward(self, sandbox_id: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.asked.append((sandbox_id, port))
        if self.error is not None:
            raise self.error
        return await asyncio.open_connection("127.0.0.1", port)


class SpdyStream:
    """A stream that this client has opened."""

    def __init__(self, client: "SpdyClient", stream_id: int) -> None:
        self.stream_id = stream_id
        self.received = bytearray()
        self.accepted = asyncio.Event()
        self.ended = asyncio.Event()  # by FIN or reset
        self.was_reset = False
        self._client = client

    async def write(self, data: bytes) -> None:
        await self._client.send(frames.data(self.stream_id, data))

    async def close(self) -> None:
        await self._client.send(frames.data(self.stream_id, b"", Flag.FIN))

    async def read_all(self) -> bytes:
        """Return everything up to the stream's end."""
        async with asyncio.timeout(DEADLINE):
            await self.ended.wait()
        return bytes(self.received)

    async def read_until(self, wanted: bytes) -> None:
        await until(lambda: wanted in self.received)


class SpdyClient:
    """A client as kubectl once was: an HTTP upgrade, then SPDY."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str) -> None:
        self.reader = reader
        self.writer = writer
        self.status = int(head.split()[1])
        self.head = head
        self.streams: dict[int, SpdyStream] = {}
        self.pongs: list[int] = []
        self.gone_away = asyncio.Event()
        self.ended = asyncio.Event()
        self.encoder = frames.Encoder()
        self._last = -1
        self._decoder = frames.Decoder()

    async def open(self, kind: str, *, fin: bool = False, **headers: str) -> SpdyStream:
        self._last += 2
        stream = self.streams[self._last] = SpdyStream(self, self._last)
        flags = Flag.FIN if fin else Flag.NONE
        await self.send(self.encoder.syn_stream(self._last, {"streamtype": kind, **headers}, flags))
        return stream

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def receive(self) -> None:
        """Take what the server sends, until it closes."""
        try:
            while received := await self.reader.read(1 << 16):
                for frame in self._decoder.feed(received):
                    self._handle(frame)
        except ConnectionError:
            pass
        finally:
            self.ended.set()
            for stream in self.streams.values():
                stream.ended.set()

    def _handle(self, frame: frames.Frame) -> None:
        match frame:
            case frames.SynReply(stream_id):
                self.streams[stream_id].accepted.set()
            case frames.Data(stream_id, data, fin):
                self.streams[stream_id].received += data
                if fin:
                    self.streams[stream_id].ended.set()
            case frames.Reset(stream_id):
                self.streams[stream_id].was_reset = True
                self.streams[stream_id].ended.set()
            case frames.Ping(ping_id):
                self.pongs.append(ping_id)
            case frames.GoAway():
                self.gone_away.set()


async def request(
    url: str, headers: Sequence[tuple[str, str]], *, method: str = "POST", context: ssl.SSLContext | None = None
) -> SpdyClient:
    """Send a request and return the connection with the head of its answer."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port, ssl=context)
    path = where._replace(scheme="", netloc="").geturl()
    lines = [f"{method} {path} HTTP/1.1", f"Host: {where.netloc}", "Content-Length: 0"]
    lines += [f"{name}: {value}" for name, value in headers]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    async with asyncio.timeout(DEADLINE):
        head = await reader.readuntil(b"\r\n\r\n")
    return SpdyClient(reader, writer, head.decode())


def upgrade_to_spdy(*versions: str) -> list[tuple[str, str]]:
    """Return the headers of an upgrade."""
    headers = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")]
    return headers + [("X-Stream-Protocol-Version", version) for version in versions]


@asynccontextmanager
async def streams(
    url: str, *kinds: str, version: str = "v4.channel.k8s.io", context: ssl.SSLContext | None = None
) -> AsyncIterator[list[SpdyStream]]:
    """Open streams, the error stream first, and read what comes until the block is left."""
    spdy = await request(url, upgrade_to_spdy(version), context=context)
    assert spdy.status == 101, spdy.head
    async with asyncio.TaskGroup() as group:
        receiving = group.create_task(spdy.receive())
        yield [await spdy.open(kind) for kind in ("error", *kinds)]
        spdy.writer.transport.abort()
        await within_deadline(receiving)


ECHO = ("sh", "-c", "cat; echo trouble >&2; exit 7")
"""A command for `must_echo`."""


async def must_echo(url: str) -> None:
    """Fail unless `ECHO`, at the URL of an Exec with all three streams, has its streams and its exit code."""
    async with streams(url, "stdin", "stdout", "stderr") as (error, stdin, stdout, stderr):
        await stdin.write(b"x" * 300_000)
        await stdin.close()
        assert await stdout.read_all() == b"x" * 300_000
        assert await stderr.read_all() == b"trouble\n"
        status = json.loads(await error.read_all())
        assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "7"}]


async def until(condition: Callable[[], object]) -> None:
    """Wait until `condition` is true."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.01)


async def within_deadline(waiting: Awaitable[object]) -> None:
    """Wait, but not for ever."""
    async with asyncio.timeout(DEADLINE):
        await waiting


def header(head: str, name: str) -> list[str]:
    """Return a header's values in the head of an answer."""
    pairs = (line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    return [value for key, value in pairs if key.lower() == name.lower()]
