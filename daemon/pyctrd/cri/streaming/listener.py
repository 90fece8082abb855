"""The HTTP server of the streams: a token in the path, an upgrade, and then no HTTP any more.

Loaded with the first stream: aiohttp costs a daemon that serves none 20 MiB.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from typing import Any, Final, cast

from aiohttp import web

from pyctrd.cri.streaming import port_forward
from pyctrd.cri.streaming.clients import (
    SPDY_PROTOCOLS,
    WEBSOCKET_PROTOCOLS,
    SpdyClient,
    WebSocketClient,
    open_streams,
)
from pyctrd.cri.streaming.flow import Activity
from pyctrd.cri.streaming.port_forward import Ports, SpdyForwarding, forward_channels
from pyctrd.cri.streaming.remote_command import Session, Sessions, first_of, run
from pyctrd.cri.streaming.requests import Attach, Exec, PortForward, Request
from pyctrd.cri.streaming.spdy import Connection, Link
from pyctrd.cri.streaming.tokens import Tokens
from pyctrd.cri.streaming.websocket import TUNNEL_PREFIX, Channels, Tunnel, accept
from pyctrd.log import Logger

_SPDY: Final = "SPDY/3.1"
_UPGRADES: Final = (_SPDY.lower(), "websocket")
_PATHS: Final[Mapping[str, type[Request]]] = {"exec": Exec, "attach": Attach, "portforward": PortForward}
# Of connections that have not shown a token: anybody on this machine may make one.
_MAX_STRANGERS: Final = 128
# Seconds to send a request in.
_PATIENCE: Final = 30.0
_READ_SIZE: Final = 64 << 10

_log = Logger("pyctrd.cri.streaming")


class Listener:
    """Accepts connections, and serves each with what its token stands for."""

    def __init__(
        self, tokens: Tokens[Request], sessions: Sessions, ports: Ports, *, idle_timeout: float, creation_timeout: float
    ) -> None:
        """Redeem `tokens`; the timeouts, in seconds, are for silence and for the client to open its streams."""
        self._tokens = tokens
        self._sessions = sessions
        self._ports = ports
        self._idle_timeout = idle_timeout
        self._creation_timeout = creation_timeout
        self._http = web.Server(self._handle, keepalive_timeout=_PATIENCE, access_log=None)
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[Any]] = set()

    async def start(self, host: str, port: int, context: ssl.SSLContext | None) -> int:
        """Listen, and return the port: 0 takes a free one. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connected, host, port, ssl=context)
        address: tuple[str, int] = self._server.sockets[0].getsockname()
        return address[1]

    async def close(self, seconds: float) -> None:
        """Accept no more, wait up to `seconds` for what is being served, then cut it off."""
        if self._server is not None:
            self._server.close()
        if self._serving:
            _, late = await asyncio.wait(self._serving, timeout=seconds)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        for connection in self._http.connections:
            connection.force_close()

    def _connected(self) -> asyncio.BaseProtocol:
        if len(self._http.connections) - len(self._serving) >= _MAX_STRANGERS:
            return _TurnedAway()
        return self._http()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Redeem the token and serve the connection to its end."""
        if request.method not in ("GET", "POST"):
            raise web.HTTPMethodNotAllowed(request.method, ["GET", "POST"])
        kind, _, token = request.path.removeprefix("/").partition("/")
        wanted = self._tokens.redeem(token)
        if wanted is None or type(wanted) is not _PATHS.get(kind):
            raise web.HTTPNotFound
        upgrade = request.headers.get("Upgrade", "").strip().lower()
        if "upgrade" not in request.headers.get("Connection", "").lower() or upgrade not in _UPGRADES:
            raise web.HTTPBadRequest(text=f"unable to upgrade: send Upgrade: {_SPDY} or Upgrade: websocket")
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            if upgrade == "websocket":
                return await self._websocket(request, wanted)
            return await self._spdy(request, wanted)
        finally:
            self._serving.discard(task)

    # -- SPDY

    async def _spdy(self, request: web.BaseRequest, wanted: Request) -> web.StreamResponse:
        known = port_forward.SPDY_PROTOCOLS if isinstance(wanted, PortForward) else SPDY_PROTOCOLS
        protocol = _negotiate(request, known)
        headers = {"Connection": "Upgrade", "Upgrade": _SPDY, "X-Stream-Protocol-Version": protocol}
        response = web.StreamResponse(status=101, headers=headers)
        response.force_close()
        await response.prepare(request)
        wire = _Wire(request)
        try:
            await self._speak_spdy(wire, Activity(), wanted, protocol)
        finally:
            wire.close()
        return response

    async def _speak_spdy(self, link: Link, activity: Activity, wanted: Request, protocol: str) -> None:
        connection = Connection(link, activity)
        await self._until_idle(activity, connection.run(), self._over_spdy(connection, wanted, protocol))

    async def _over_spdy(self, connection: Connection, wanted: Request, protocol: str) -> None:
        if isinstance(wanted, PortForward):
            await SpdyForwarding(connection, self._ports, wanted.sandbox_id, self._creation_timeout).run()
        else:
            streams = await open_streams(connection, wanted.streams, protocol, self._creation_timeout)
            await run(SpdyClient(connection, streams, protocol), lambda: self._start(wanted))
            await connection.finish()

    # -- WebSocket

    async def _websocket(self, request: web.BaseRequest, wanted: Request) -> web.StreamResponse:
        known = port_forward.WEBSOCKET_PROTOCOLS if isinstance(wanted, PortForward) else WEBSOCKET_PROTOCOLS
        socket, protocol = await accept(request, known)
        activity = Activity()
        channels = Channels(socket, protocol, activity)
        if protocol.startswith(TUNNEL_PREFIX):
            tunnel = Tunnel(socket, activity)
            await self._speak_spdy(tunnel, activity, wanted, protocol.removeprefix(TUNNEL_PREFIX))
        elif isinstance(wanted, PortForward):
            forwarding = forward_channels(channels, self._ports, wanted.sandbox_id, wanted.ports)
            await self._until_idle(activity, forwarding)
        else:
            client = WebSocketClient(channels, wanted.streams, protocol)
            await self._until_idle(activity, client.receive(), self._over_channels(client, wanted))
        await channels.close()
        return socket

    async def _over_channels(self, client: WebSocketClient, wanted: Exec | Attach) -> None:
        await client.greet()
        await run(client, lambda: self._start(wanted))

    # -- both

    def _start(self, wanted: Exec | Attach) -> Awaitable[Session]:
        if isinstance(wanted, Exec):
            return self._sessions.exec(wanted.container_id, wanted.command, wanted.streams)
        return self._sessions.attach(wanted.container_id, wanted.streams)

    async def _until_idle(self, activity: Activity, *parts: Coroutine[Any, Any, None]) -> None:
        """Run the last of `parts` to its end beside the others, or until the client leaves or is silent for long."""
        try:
            async with asyncio.TaskGroup() as group:
                idle = group.create_task(_end_when_idle(activity, self._idle_timeout))
                *others, serving = [group.create_task(part) for part in parts]
                await asyncio.wait((serving,))
                for task in (idle, *others):
                    task.cancel()
        except* ConnectionError as ended:
            # That a client leaves is no news.
            if isinstance(error := first_of(ended), ConnectionAbortedError):
                _log.info("streaming.ended", reason=str(error))


async def _end_when_idle(activity: Activity, seconds: float) -> None:
    await activity.until_idle(seconds)
    raise ConnectionAbortedError(f"nothing was sent or received for {seconds:g} s")


def _negotiate(request: web.BaseRequest, known: Sequence[str]) -> str:
    """Return the version that the client likes best of those that are `known`."""
    lines = request.headers.getall("X-Stream-Protocol-Version", [])
    wanted = [name for line in lines for part in line.split(",") if (name := part.strip())]
    if not wanted:
        raise web.HTTPBadRequest(text="X-Stream-Protocol-Version is missing")
    for name in wanted:
        if name in known:
            return name
    raise web.HTTPForbidden(
        headers=[("X-Accepted-Stream-Protocol-Versions", name) for name in known],
        text=f"none of {', '.join(wanted)} is served; {', '.join(known)} are",
    )


class _Wire:
    """An HTTP connection after the upgrade: its transport, taken over from aiohttp, which knows only WebSockets."""

    def __init__(self, request: web.BaseRequest) -> None:
        """Take over; what has been sent stays sent, what comes from now on is read here."""
        transport, loop = request.transport, asyncio.get_running_loop()
        if transport is None:
            raise ConnectionResetError("the client has closed the connection")
        self._reader = asyncio.StreamReader(_READ_SIZE, loop)
        protocol = _TakenOver(self._reader, request.protocol)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        self._writer = asyncio.StreamWriter(transport, protocol, self._reader, loop)

    async def read(self) -> bytes:
        """Return what has come, nothing at the end, however that came about."""
        try:
            return await self._reader.read(_READ_SIZE)
        except OSError:
            return b""

    async def write(self, data: bytes) -> None:
        """Send, waiting while the client takes nothing. Raises ConnectionError if it has gone."""
        try:
            if not self._writer.is_closing():  # uvloop takes it for a mistake of ours; `drain` tells
                self._writer.write(data)
            await self._writer.drain()
        except OSError as error:  # not always one of its own class: ENOTCONN
            raise ConnectionResetError("the client has closed the connection") from error

    async def close_writing(self) -> None:
        """Say that nothing more comes; TLS cannot."""
        if self._writer.can_write_eof() and not self._writer.is_closing():
            self._writer.write_eof()

    def close(self) -> None:
        """Close once everything is sent."""
        self._writer.close()


class _TakenOver(asyncio.StreamReaderProtocol):
    """Tells aiohttp of the end: it keeps account of connections."""

    def __init__(self, reader: asyncio.StreamReader, former: asyncio.Protocol) -> None:
        super().__init__(reader)
        self._former = former

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._former.connection_lost(exc)


class _TurnedAway(asyncio.Protocol):
    """A connection beyond those that are allowed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()  # uvloop's is one in all but name
