"""A ttrpc server on the event loop, for what shims tell the daemon. Handlers answer at once: none may wait.

Every peer must be of the daemon's own user and group; others are disconnected without an answer.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, cast

from pyctr_wire import ttrpc
from pyctr_wire.errors import ApiError, InvalidArgument, ResourceExhausted, Unavailable, Unimplemented
from pyctrd.log import Logger
from pyctrd.server import public_socket

_BACKLOG: Final = 1024  # a daemon that comes back meets all shims at once
_UCRED: Final = struct.Struct("3i")
_log = Logger("pyctrd.server")

Handler = Callable[[ttrpc.Request], bytes]
Services = Mapping[str, Mapping[str, Handler]]  # by service and method


class TtrpcListener:
    """Serves handlers at a public path, which it takes from whoever has it."""

    def __init__(self, services: Services, address: Path, *, uid: int, gid: int) -> None:
        """Prepare to serve at `address`; the socket gets the owner `uid` and the group `gid`."""
        self._services = services
        self._public = address
        self._private = public_socket.private_path(address)
        self._owner = (uid, gid)
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self._withholding = False
        self._stopped = False

    async def start(self) -> None:
        """Listen. Raises FailedPrecondition if the path cannot be bound."""
        with public_socket.naming(self._public):
            public_socket.clear(self._public)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(str(self._private))
            loop = asyncio.get_running_loop()
            self._server = await loop.create_unix_server(self._connected, sock=listener, backlog=_BACKLOG)
            public_socket.publish(self._private, self._public, *self._owner)

    def withhold(self) -> None:
        """Acknowledge nothing from now on: what is told is taken in, but it is the next daemon that can pass it on."""
        self._withholding = True

    async def stop(self) -> None:
        """Stop listening and close all connections; what a peer was not told it will tell again."""
        self._stopped = True
        public_socket.withdraw(self._private, self._public)
        self._private.unlink(missing_ok=True)
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.close()

    def take(self, request: ttrpc.Request) -> bytes:
        """Answer a request, whatever connection it has come by. ApiError; Unavailable after `withhold` or `stop`."""
        answer = b"" if self._stopped else _answer(self._services, request)
        if self._stopped or self._withholding:
            raise Unavailable("the daemon is stopping")
        return answer

    def _connected(self) -> "_Connection":
        return _Connection(self.take, self._admit, self._connections.discard)

    def _admit(self, connection: "_Connection", pid: int, uid: int, gid: int) -> bool:
        """Whether a new connection may call: not another user's, nor one that was on its way when we stopped."""
        if (uid, gid) != (os.geteuid(), os.getegid()):
            _log.warning("peer.refused", pid=pid, uid=uid, gid=gid)
            return False
        if self._stopped:
            return False
        self._connections.add(connection)
        return True


class _Connection(asyncio.Protocol):
    """One peer."""

    def __init__(
        self,
        take: Handler,
        admit: Callable[["_Connection", int, int, int], bool],
        leave: Callable[["_Connection"], None],
    ) -> None:
        self._take = take
        self._admit = admit
        self._leave = leave
        self._decoder = ttrpc.FrameDecoder()
        self._last_stream = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it
        peer: socket.socket = transport.get_extra_info("socket")
        pid, uid, gid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if not self._admit(self, pid, uid, gid):
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._leave(self)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        answers = [self._answer(frame) for frame in self._decoder.feed(data)]
        if self._transport is not None:
            self._transport.writelines(answers)

    def _answer(self, frame: ttrpc.Frame | ttrpc.Oversized) -> bytes:
        """Return the response frame for what the peer sent."""
        try:
            data = ttrpc.encode_response(self._call(frame))
        except ApiError as error:
            data = ttrpc.encode_error(error)
        return ttrpc.encode_frame(frame.stream_id, ttrpc.FrameType.RESPONSE, data)

    def _call(self, frame: ttrpc.Frame | ttrpc.Oversized) -> bytes:
        stream = frame.stream_id
        if isinstance(frame, ttrpc.Oversized):
            raise ResourceExhausted(f"message of {frame.length} bytes is longer than the limit of {ttrpc.MAX_DATA}")
        if frame.type != ttrpc.FrameType.REQUEST:
            raise InvalidArgument("only unary requests are served")
        if stream % 2 == 0:
            raise InvalidArgument("StreamID must be odd for client initiated streams")
        if stream <= self._last_stream:
            raise InvalidArgument("StreamID cannot be re-used")
        self._last_stream = stream
        return self._take(ttrpc.decode_request(frame.data))


def _answer(services: Services, request: ttrpc.Request) -> bytes:
    methods = services.get(request.service)
    if methods is None:
        raise Unimplemented(f"service {request.service}")
    handler = methods.get(request.method)
    if handler is None:
        raise Unimplemented(f"method {request.method}")
    return handler(request)
