"""gRPC calls over one HTTP/2 connection: one thread, no event loop.

grpcio costs a command 75 ms before it has done anything; this costs none. A caller opens calls,
then pumps the channel until they have what it waits for. Sources: RFC 9113; gRPC over HTTP/2
(PROTOCOL-HTTP2.md).
"""

import select
import struct
import time
from collections import deque
from collections.abc import Iterable
from enum import IntEnum, IntFlag
from typing import Final

from pyctr import hpack
from pyctr.transport import Transport
from pyctr_wire.errors import ApiError, Code, DeadlineExceeded, Internal, Unavailable, error_for

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DEFAULT_WINDOW: Final = 65535
_WIDE_WINDOW: Final = 0x7FFFFFFF
_REFILL: Final = 1 << 24  # bytes received before a window is topped up
_MAX_MESSAGE: Final = 64 << 20
_MAX_FRAME: Final = 16384  # bytes that a frame to us may have: we ask for no more
_STRANGER: Final = "who answers there speaks no gRPC that can be understood: is it the daemon's socket?"
# What the parts of a frame raise that are not as the RFC says.
_MALFORMED: Final = (ValueError, IndexError, struct.error, hpack.HeaderError)


class Kind(IntEnum):
    """Frame types. Source: RFC 9113 section 6."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Flag(IntFlag):
    """Frame flags; ACK shares its bit with END_STREAM."""

    END_STREAM = 0x1
    ACK = 0x1
    END_HEADERS = 0x4
    PADDED = 0x8
    PRIORITY = 0x20


class ConnectionLost(Unavailable):
    """The connection ended before the call did; what the daemon made of it is unknown."""


class NotSent(ConnectionLost):
    """The call never reached a daemon: trying again is safe."""


class Call:
    """One gRPC call: what has been received, and how it ended."""

    def __init__(self, stream: int, deadline: float | None, window: int) -> None:
        """Belongs to `Channel.open`; `deadline` is monotonic seconds."""
        self.stream = stream
        self.deadline = deadline
        self.messages: deque[bytes] = deque()
        self.done = False
        self.error: ApiError | None = None
        self.window = window  # bytes that we may still send
        self.unacknowledged = 0  # bytes received since the last window update
        self._partial = bytearray()

    def take(self, data: bytes) -> None:
        """Cut received bytes into messages. Source: gRPC's Length-Prefixed-Message."""
        self._partial += data
        while len(self._partial) >= 5:
            compressed, size = struct.unpack_from(">BI", self._partial)
            if compressed or size > _MAX_MESSAGE:
                raise Internal(f"an answer of {size} bytes, compressed: {bool(compressed)}, is not acceptable")
            if len(self._partial) < 5 + size:
                return
            self.messages.append(bytes(self._partial[5 : 5 + size]))
            del self._partial[: 5 + size]

    def end(self, error: ApiError | None) -> None:
        """Note how the call ended; the first verdict stays."""
        if not self.done:
            self.done = True
            self.error = error

    def end_by_headers(self, headers: dict[str, str]) -> None:
        """End as the trailers say."""
        status = headers.get("grpc-status")
        if status is None:
            http = headers.get(":status", "none")
            self.end(Unavailable(f"the server does not speak gRPC (HTTP status {http})"))
        elif int(status) == Code.OK:
            self.end(None)
        else:
            self.end(error_for(int(status), _unescape(headers.get("grpc-message", ""))))


def _unescape(text: str) -> str:
    """Return a grpc-message with its percent-encoded bytes put back; urllib would cost more than the call."""
    first, *parts = text.split("%")
    data = bytearray(first.encode())
    for part in parts:
        try:
            data += bytes.fromhex(part[:2]) + part[2:].encode()
        except ValueError:
            data += b"%" + part.encode()
    return data.decode(errors="replace")


def _frame(kind: Kind, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


class Channel:
    """A connection and its calls. Not for use by several threads."""

    def __init__(self, transport: Transport) -> None:
        """Speak over `transport`, which is ours from now on."""
        self._socket = transport
        self._calls: dict[int, Call] = {}
        self._next_stream = 1
        self._inbox = bytearray()
        self._headers: tuple[int, int, bytearray] | None = None  # stream, flags, block so far
        self._window = _DEFAULT_WINDOW
        self._stream_window = _DEFAULT_WINDOW
        self._max_frame = _MAX_FRAME
        self._unacknowledged = 0
        self.usable = True  # new calls may be opened
        # No header table, no push, windows wide open: a call's first answer waits for nothing.
        settings = struct.pack(">HIHIHI", 1, 0, 2, 0, 4, _WIDE_WINDOW)
        widen = struct.pack(">I", _WIDE_WINDOW - _DEFAULT_WINDOW)
        self._outbox = _PREFACE + _frame(Kind.SETTINGS, 0, 0, settings) + _frame(Kind.WINDOW_UPDATE, 0, 0, widen)

    @property
    def idle(self) -> bool:
        """Whether no call is open."""
        return not self._calls

    def fileno(self) -> int:
        """Return the socket, for a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the connection; open calls are cancelled by that."""
        self.usable = False
        self._socket.close()

    def open(self, method: str, metadata: Iterable[tuple[str, str]], timeout: float | None) -> Call:
        """Open a call of `method` ("/package.Service/Method"); `timeout` in seconds, None is for ever."""
        headers = [
            (":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "localhost"),
            ("te", "trailers"), ("content-type", "application/grpc"), ("user-agent", "pyctr"), *metadata,
        ]  # fmt: skip
        deadline = None
        if timeout is not None:
            headers.append(("grpc-timeout", f"{max(1, round(timeout * 1000))}m"))
            deadline = time.monotonic() + timeout
        call = Call(self._next_stream, deadline, self._stream_window)
        self._next_stream += 2
        self._calls[call.stream] = call
        # Kept back until the first message, so that both leave in one write.
        self._outbox += _frame(Kind.HEADERS, Flag.END_HEADERS, call.stream, hpack.encode(headers))
        return call

    def send(self, call: Call, message: bytes, *, last: bool) -> None:
        """Send one message; blocks while the peer's windows are shut."""
        data = struct.pack(">BI", 0, len(message)) + message
        at = 0
        while at < len(data) and not call.done:
            room = min(self._max_frame, self._window, call.window, len(data) - at)
            if room <= 0:
                self.pump(None)
                continue
            end = at + room
            flags = Flag.END_STREAM if last and end == len(data) else 0
            self._outbox += _frame(Kind.DATA, flags, call.stream, data[at:end])
            self._window -= room
            call.window -= room
            at = end
            self._flush()

    def finish(self, call: Call) -> None:
        """Say that no message follows."""
        if not call.done:
            self._outbox += _frame(Kind.DATA, Flag.END_STREAM, call.stream)
            self._flush()

    def cancel(self, call: Call) -> None:
        """Give the call up; the server is told."""
        if self._calls.pop(call.stream, None) is not None and not call.done:
            self._outbox += _frame(Kind.RST_STREAM, 0, call.stream, struct.pack(">I", 8))
            self._flush()

    def pump(self, timeout: float | None) -> None:
        """Take in what the server sent, after waiting for it at most `timeout` seconds (None: for ever)."""
        self._flush()
        self._receive(timeout)
        self._flush()
        now = time.monotonic()
        for call in [call for call in self._calls.values() if call.deadline is not None and now >= call.deadline]:
            self.cancel(call)
            call.end(DeadlineExceeded("the daemon did not answer in time"))

    def wait(self, call: Call) -> None:
        """Pump until `call` has a message or is done."""
        while not call.messages and not call.done:
            left = None if call.deadline is None else max(0.0, call.deadline - time.monotonic())
            self.pump(left)

    def _flush(self) -> None:
        if self._outbox:
            data, self._outbox = self._outbox, b""
            try:
                self._socket.sendall(data)
            except OSError as error:
                self._lose(f"the connection to the daemon broke: {error.strerror}")

    def _receive(self, timeout: float | None) -> None:
        if self._socket.fileno() < 0:
            self._lose("the connection to the daemon is closed")
            return
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not self._socket.has_more and not poll.poll(None if timeout is None else timeout * 1000):
            return
        try:
            data = self._socket.receive(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose("the daemon closed the connection")
            return
        self._inbox += data
        at = 0
        while len(self._inbox) - at >= 9:
            size = int.from_bytes(self._inbox[at : at + 3], "big")
            if size > _MAX_FRAME:
                self._lose(_STRANGER)
                return
            if len(self._inbox) - at < 9 + size:
                break
            kind, flags, stream = struct.unpack_from(">BBI", self._inbox, at + 3)
            try:
                self._take(kind, flags, stream & _WIDE_WINDOW, bytes(self._inbox[at + 9 : at + 9 + size]))
            except _MALFORMED:
                self._lose(_STRANGER)
                return
            at += 9 + size
        del self._inbox[:at]

    def _lose(self, reason: str) -> None:
        self.close()
        for call in self._calls.values():
            call.end(ConnectionLost(reason))
        self._calls.clear()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Act on one frame; types that we have no use for are ignored, as the RFC asks."""
        if flags & Flag.PADDED and kind in (Kind.DATA, Kind.HEADERS):
            payload = payload[1 : len(payload) - payload[0]]
        match kind:
            case Kind.DATA:
                self._take_data(stream, flags, payload)
            case Kind.HEADERS:
                block = payload[5:] if flags & Flag.PRIORITY else payload
                self._take_headers(stream, flags, bytearray(block))
            case Kind.CONTINUATION if self._headers is not None:
                stream, first_flags, block_so_far = self._headers
                self._take_headers(stream, first_flags | flags, block_so_far + payload)
            case Kind.RST_STREAM:
                self._end(stream, Unavailable(f"the daemon reset the call (code {int.from_bytes(payload, 'big')})"))
            case Kind.SETTINGS if not flags & Flag.ACK:
                self._take_settings(payload)
            case Kind.PING if not flags & Flag.ACK:
                self._outbox += _frame(Kind.PING, Flag.ACK, 0, payload)
            case Kind.WINDOW_UPDATE:
                self._widen(stream, int.from_bytes(payload, "big"))
            case Kind.GOAWAY:
                self.usable = False
                last = int.from_bytes(payload[:4], "big")
                for number in [number for number in self._calls if number > last]:
                    self._end(number, NotSent("the daemon is going away"))

    def _take_data(self, stream: int, flags: int, payload: bytes) -> None:
        call = self._calls.get(stream)
        self._unacknowledged += len(payload)
        if self._unacknowledged >= _REFILL:
            self._outbox += _frame(Kind.WINDOW_UPDATE, 0, 0, struct.pack(">I", self._unacknowledged))
            self._unacknowledged = 0
        if call is None:
            return
        call.take(payload)
        call.unacknowledged += len(payload)
        if call.unacknowledged >= _REFILL:
            self._outbox += _frame(Kind.WINDOW_UPDATE, 0, stream, struct.pack(">I", call.unacknowledged))
            call.unacknowledged = 0
        if flags & Flag.END_STREAM:
            self._end(stream, Internal("the daemon ended a call without a status"))

    def _take_headers(self, stream: int, flags: int, block: bytearray) -> None:
        if not flags & Flag.END_HEADERS:
            self._headers = (stream, flags, block)
            return
        self._headers = None
        headers = hpack.decode(bytes(block))
        call = self._calls.get(stream)
        if call is not None and flags & Flag.END_STREAM:
            call.end_by_headers(headers)
            del self._calls[stream]

    def _take_settings(self, payload: bytes) -> None:
        for setting, value in struct.iter_unpack(">HI", payload):
            if setting == 4:  # INITIAL_WINDOW_SIZE also changes the windows of open streams
                for call in self._calls.values():
                    call.window += value - self._stream_window
                self._stream_window = value
            elif setting == 5:
                self._max_frame = min(value, 1 << 18)
        self._outbox += _frame(Kind.SETTINGS, Flag.ACK, 0)

    def _widen(self, stream: int, size: int) -> None:
        if stream == 0:
            self._window += size
        elif stream in self._calls:
            self._calls[stream].window += size

    def _end(self, stream: int, error: ApiError) -> None:
        call = self._calls.pop(stream, None)
        if call is not None:
            call.end(error)
