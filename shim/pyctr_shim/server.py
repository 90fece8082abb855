"""A ttrpc server on the shim's loop: accept, frame, dispatch; calls run side by side and answer in any order.

A call is a coroutine of the service. One that waits (Wait for an exit, Delete for the last bytes of output)
is parked and costs nothing; it is dropped when its connection closes or its time is up.

A client whose calls carry the header `pyctr-events` answers requests too, whose numbers are even: what the shim has to
tell travels with the answers to it.
Source: BEHAVIOUR of containerd's shims; github.com/containerd/ttrpc, PROTOCOL.md.
"""

import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Final, Protocol

from pyctr_shim import journal
from pyctr_shim.loop import READ, WRITE, Call, Loop, Timer
from pyctr_wire import ttrpc
from pyctr_wire.errors import ApiError, DeadlineExceeded, Internal, InvalidArgument, ResourceExhausted

_BACKLOG: Final = 16
_READ_SIZE: Final = 64 << 10
_MAX_UNSENT: Final = 16 << 20
_MAX_CONNECTIONS: Final = 64
_MAX_CALLS: Final = 4096  # that wait, on one connection
_UCRED: Final = struct.Struct("3i")
_TAKES_EVENTS: Final = "pyctr-events"


class Service(Protocol):
    """What the server serves."""

    async def call(self, service: str, method: str, payload: bytes) -> bytes:
        """Answer one call; raises ApiError for the client, Unimplemented for an unknown service or method."""
        ...


class Teller(Protocol):
    """Who has something to tell."""

    def offered(self, way: "Connection") -> None:
        """Note that the client of `way` takes events; called for each call of such a client."""

    def answered(self, way: "Connection", number: int, data: bytes) -> None:
        """Take the answer to what was posted on `way` as `number`."""

    def lost(self, way: "Connection") -> None:
        """Note that `way` has closed: what was not answered will not be."""


class Server:
    """Serves one service on any number of connections."""

    def __init__(self, loop: Loop, service: Service, teller: Teller, when_quiet: Callable[[], None]) -> None:
        """Serve `service`, let `teller` tell; call `when_quiet` whenever the last connection has closed."""
        self._loop = loop
        self._service = service
        self._teller = teller
        self._when_quiet = when_quiet
        self._connections: set[Connection] = set()
        self._listener: socket.socket | None = None

    @property
    def quiet(self) -> bool:
        """Whether nobody is connected."""
        return not self._connections

    def listen(self, listener: socket.socket) -> None:
        """Accept connections of this very user on a listening socket, which the server then owns."""
        listener.setblocking(False)
        self._listener = listener
        self._loop.watch(listener.fileno(), READ, self._accept)

    def adopt(self, connection: socket.socket) -> None:
        """Serve a connected socket, which the server then owns."""
        connection.setblocking(False)
        self._connections.add(Connection(self._loop, connection, self._service, self._teller, self._closed))

    def close(self) -> None:
        """Close the listener and every connection; calls under way are dropped."""
        if self._listener is not None:
            self._loop.unwatch(self._listener.fileno())
            self._listener.close()
            self._listener = None
        for connection in list(self._connections):
            connection.close()

    def _accept(self, _events: int) -> None:
        assert self._listener is not None
        try:
            connection, _address = self._listener.accept()
        except OSError as error:  # gone again, or out of descriptors: the next event tries again
            journal.log("accept failed", error=str(error))
            return
        if not same_user(connection) or len(self._connections) >= _MAX_CONNECTIONS:
            journal.log("connection refused", connections=len(self._connections))
            connection.close()
            return
        self.adopt(connection)

    def _closed(self, connection: "Connection") -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._when_quiet()


class Connection:
    """One client: its half-read frame, its calls under way and the bytes that it has not taken yet."""

    def __init__(
        self,
        loop: Loop,
        peer: socket.socket,
        service: Service,
        teller: Teller,
        when_closed: Callable[["Connection"], None],
    ) -> None:
        """Serve `peer`, which the connection owns."""
        self._loop = loop
        self._peer = peer
        self._service = service
        self._teller = teller
        self._when_closed = when_closed
        self._decoder = ttrpc.FrameDecoder()
        self._unsent = bytearray()
        self._posted = b""
        self._last_posted = 0
        self._last_stream = -1
        self._calls: dict[int, tuple[Call, Timer | None]] = {}
        self._open = True
        loop.watch(peer.fileno(), READ, self._ready)

    def close(self) -> None:
        """Close the socket and drop the calls under way."""
        if not self._open:
            return
        self._open = False
        self._loop.unwatch(self._peer.fileno())
        self._peer.close()
        calls, self._calls = self._calls, {}
        for call, timer in calls.values():
            call.cancel()
            if timer is not None:
                timer.cancel()
        self._teller.lost(self)
        self._when_closed(self)

    def post(self, data: bytes) -> int:
        """Send the data of a request of our own with the next answer, or after the current round of the loop.

        Returns its number.
        """
        self._last_posted += 2
        self._posted += ttrpc.encode_frame(self._last_posted, ttrpc.FrameType.REQUEST, data)
        self._loop.call_soon(self._send_posted)
        return self._last_posted

    def _send_posted(self) -> None:
        if self._posted:
            self._send(b"")

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._send(b"")
        if events & ~WRITE and self._open:
            self._receive()

    def _receive(self) -> None:
        try:
            data = self._peer.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        for frame in self._decoder.feed(data):
            if self._open:
                self._dispatch(frame)

    def _dispatch(self, frame: ttrpc.Frame | ttrpc.Oversized) -> None:
        """Start the call that a frame asks for, or answer why not."""
        stream = frame.stream_id
        try:
            if isinstance(frame, ttrpc.Oversized):
                raise ResourceExhausted(f"message of {frame.length} bytes is longer than the limit of {ttrpc.MAX_DATA}")
            if frame.type == ttrpc.FrameType.RESPONSE and stream % 2 == 0:
                self._teller.answered(self, stream, frame.data)
                return
            if frame.type != ttrpc.FrameType.REQUEST:
                raise InvalidArgument("only unary requests are served")
            if stream % 2 == 0:
                raise InvalidArgument("StreamID must be odd for client initiated streams")
            if stream <= self._last_stream:
                raise InvalidArgument("StreamID cannot be re-used")
            self._last_stream = stream
            if len(self._calls) >= _MAX_CALLS:
                raise ResourceExhausted(f"{_MAX_CALLS} calls of this connection are under way")
            request = ttrpc.decode_request(frame.data)
        except ApiError as error:
            self._reply(stream, ttrpc.encode_error(error))
            return
        if _TAKES_EVENTS in request.metadata:
            self._teller.offered(self)
        call = self._loop.spawn(self._run(stream, request))
        if call.done:
            return
        timer = None
        if request.timeout_nano > 0:
            timer = self._loop.call_later(request.timeout_nano / 1e9, lambda: self._expire(stream))
        self._calls[stream] = (call, timer)

    async def _run(self, stream: int, request: ttrpc.Request) -> None:
        try:
            payload = await self._service.call(request.service, request.method, request.payload)
            data = ttrpc.encode_response(payload)
        except ApiError as error:
            data = ttrpc.encode_error(error)
        except Exception as error:
            journal.log_exception("call failed", method=request.method)
            data = ttrpc.encode_error(Internal(f"{request.method}: {error!r}"))
        under_way = self._calls.pop(stream, None)
        if under_way is not None and under_way[1] is not None:
            under_way[1].cancel()
        self._reply(stream, data)

    def _expire(self, stream: int) -> None:
        call, _timer = self._calls.pop(stream)
        call.cancel()
        self._reply(stream, ttrpc.encode_error(DeadlineExceeded("the call's time is up")))

    def _reply(self, stream: int, data: bytes) -> None:
        try:
            frame = ttrpc.encode_frame(stream, ttrpc.FrameType.RESPONSE, data)
        except ResourceExhausted as error:
            frame = ttrpc.encode_frame(stream, ttrpc.FrameType.RESPONSE, ttrpc.encode_error(error))
        self._send(frame)

    def _send(self, data: bytes) -> None:
        """Send what the client takes now and keep the rest; a client that takes nothing is dropped in the end."""
        if not self._open:
            return
        data, self._posted = self._posted + data, b""
        had_unsent = bool(self._unsent)
        if had_unsent:
            self._unsent += data
            data = bytes(self._unsent)
        try:
            sent = self._peer.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        self._unsent = bytearray(data[sent:])
        if len(self._unsent) > _MAX_UNSENT:
            journal.log("connection dropped: it does not read its answers")
            self.close()
        elif bool(self._unsent) != had_unsent:
            self._loop.rewatch(self._peer.fileno(), READ | WRITE if self._unsent else READ)


def listen_at(path: str) -> socket.socket:
    """Return a socket that listens at `path`, mode 0600; a stale file there is removed.

    Raises FileExistsError if a server answers at `path`, OSError without errno for a path beyond 107 bytes.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(path)
            listener.bind(path)
        os.chmod(path, 0o600)  # before listen(2) nobody can connect
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_stale(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(path) == 0:
            raise FileExistsError(f"a server answers at {path}")
    os.unlink(path)


def same_user(connection: socket.socket) -> bool:
    """Whether the peer is of our own user and group. Source: unix(7), SO_PEERCRED."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _pid, uid, gid = _UCRED.unpack(data)
    return bool(uid == os.geteuid() and gid == os.getegid())
