"""A client's connection: frames in, calls; what calls have to say, frames out, as fast as the client takes them.

Source: RFC 9113.
"""

import asyncio
from collections.abc import Callable
from typing import Final, TypeAlias, cast

from pyctr_wire.errors import Unavailable
from pyctrd.log import Logger
from pyctrd.server.http2 import frames, hpack
from pyctrd.server.http2.call import STREAM_WINDOW, Call, Handler
from pyctrd.server.http2.frames import Reason, Setting, Violation

# Whatever arrives is taken in at once: each stream has a window of its own, which holds its client up.
_CONNECTION_WINDOW: Final = 16 << 20  # bytes
_MAX_FRAME: Final = 64 << 10  # bytes of payload
_GREETING: Final = frames.settings(
    {
        Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
        Setting.MAX_FRAME_SIZE: _MAX_FRAME,
        Setting.MAX_HEADER_LIST_SIZE: hpack.MAX_FIELDS_SIZE,
    }
) + frames.window_update(0, _CONNECTION_WINDOW - frames.DEFAULT_WINDOW)
_LEAVING_PING: Final = b"leaving?"
_NOT_GRPC: Final = hpack.encode([(":status", "415")])

HandlerFor: TypeAlias = Callable[[str], Handler]

_log = Logger("pyctrd.server")


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(
        self,
        handler_for: HandlerFor,
        opened: "Callable[[Connection], None]",
        closed: "Callable[[Connection], None]",
    ) -> None:
        """Serve methods by what `handler_for` returns for their paths; tell when it begins and when it has ended."""
        self._handler_for = handler_for
        self._opened = opened
        self._closed = closed
        self._transport: asyncio.Transport | None = None
        self._unparsed = b""
        self._greeted = False
        self._decoder = hpack.Decoder()
        self._block: tuple[int, int, bytearray] | None = None  # stream, flags, and headers that are not complete
        self._last_stream = 0
        self._received = 0  # bytes by which the client's window for us all is smaller
        self._window = frames.DEFAULT_WINDOW
        self._stream_window = frames.DEFAULT_WINDOW
        self._frame_size = frames.DEFAULT_FRAME_SIZE
        self._paused = False
        self._held_up: dict[int, Call] = {}
        self._leaving = self._left = False
        self.calls: dict[int, Call] = {}
        """Those under way, by stream."""

    # What the event loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the client."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it
        self._transport.write(_GREETING)
        self._opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up the calls under way."""
        self._transport = None
        for call in tuple(self.calls.values()):
            call.drop()
        self.calls.clear()
        self._held_up.clear()
        self._closed(self)

    def pause_writing(self) -> None:
        """Hold calls up: the client does not read."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        self._pump_all()

    def data_received(self, data: bytes) -> None:
        """Take in frames, cut anywhere."""
        try:
            self._take_frames(self._unparsed + data if self._unparsed else data)
        except Violation as violation:
            _log.warning("connection.refused", reason=str(violation))
            self.write(frames.go_away(self._last_stream, violation.reason, str(violation)))
            if self._transport is not None:
                self._transport.close()

    # What the listener and the calls want.

    def leave(self) -> None:
        """Ask the client to call elsewhere from now on; the connection ends with its last call.

        Calls on their way are served: the answer to a ping comes after them.
        """
        if not self._leaving:
            self._leaving = True
            self.write(frames.go_away(frames.MAX_WINDOW, Reason.NO_ERROR))
            self.write(frames.frame(frames.PING, 0, 0, _LEAVING_PING))

    def cut_off(self, reason: str) -> None:
        """End all calls as unavailable, and the connection."""
        for call in tuple(self.calls.values()):
            call.end(Unavailable(reason))
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def write(self, data: bytes) -> None:
        """Send whole frames."""
        if self._transport is not None:
            self._transport.write(data)

    def pump(self, call: Call) -> None:
        """Send as much as may be sent of what waits in `call`; the rest goes when its client takes more."""
        parts = [call.head]
        call.head = b""
        outbox = call.outbox
        while outbox:
            size = min(len(outbox), call.window, self._window, self._frame_size)
            if size <= 0 or self._paused:
                self._held_up[call.stream] = call
                break
            parts.append(frames.frame(frames.DATA, 0, call.stream, outbox[:size]))
            del outbox[:size]
            call.window -= size
            self._window -= size
        else:
            self._held_up.pop(call.stream, None)
            call.sent()
            if call.trailers:
                parts.append(call.trailers)
                if not call.ended:
                    parts.append(frames.reset(call.stream, Reason.NO_ERROR))  # what it has to say concerns nobody
                self._forget(call)
        self.write(b"".join(parts))
        self._close_if_left()

    # What the client sends.

    def _take_frames(self, data: bytes) -> None:
        start, end = 0, len(data)
        if not self._greeted:
            start = self._take_preface(data)
        while self._greeted and end - start >= frames.HEADER_SIZE:
            high, low, kind, flags, stream = frames.HEADER.unpack_from(data, start)
            length = high << 16 | low
            if length > _MAX_FRAME:
                raise Violation(Reason.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            payload = start + frames.HEADER_SIZE
            if end - payload < length:
                break
            start = payload + length
            self._take(kind, flags, stream & frames.MAX_WINDOW, data[payload:start])
        self._unparsed = data[start:]

    def _take_preface(self, data: bytes) -> int:
        """Return how much of `data` is the preface: nothing, until it has arrived as a whole."""
        if data.startswith(frames.PREFACE):
            self._greeted = True
            return len(frames.PREFACE)
        if frames.PREFACE.startswith(data):
            return 0
        raise Violation(Reason.PROTOCOL_ERROR, "it does not speak HTTP/2")

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if self._block is not None and kind != frames.CONTINUATION:
            raise Violation(Reason.PROTOCOL_ERROR, "headers that are not continued")
        match kind:
            case frames.DATA:
                self._take_data(flags, stream, payload)
            case frames.HEADERS:
                payload = frames.without_padding(flags, payload)
                if flags & frames.HAS_PRIORITY:
                    payload = payload[5:]
                self._take_headers(stream, flags, payload)
            case frames.CONTINUATION:
                self._take_continuation(stream, flags, payload)
            case frames.WINDOW_UPDATE:
                self._take_window(stream, frames.parse_window_update(payload))
            case frames.PING:
                self._take_ping(flags, payload)
            case frames.SETTINGS:
                if not flags & frames.ACK:
                    self._take_settings(frames.parse_settings(payload))
            case frames.RST_STREAM:
                call = self.calls.get(stream)
                if call is not None:
                    call.drop()
                    self._forget(call)
                    self._close_if_left()
            case frames.PUSH_PROMISE:
                raise Violation(Reason.PROTOCOL_ERROR, "a client promises nothing")
            case _:
                pass  # GOAWAY: it will close; PRIORITY, and what is not known: nothing to do

    def _take_data(self, flags: int, stream: int, payload: bytes) -> None:
        size = len(payload)
        self._received += size
        if self._received >= _CONNECTION_WINDOW // 2:
            self.write(frames.window_update(0, self._received))
            self._received = 0
        call = self.calls.get(stream)
        if call is None or call.over:
            if not 0 < stream <= self._last_stream:
                raise Violation(Reason.PROTOCOL_ERROR, f"data for stream {stream}, which never began")
            return  # its call has ended
        if call.ended:
            raise Violation(Reason.PROTOCOL_ERROR, f"data after the end of stream {stream}")
        call.receive(frames.without_padding(flags, payload), size)
        if flags & frames.END_STREAM:
            call.receive_end()

    def _take_continuation(self, stream: int, flags: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != stream:
            raise Violation(Reason.PROTOCOL_ERROR, "a continuation of nothing")
        _, first_flags, block = self._block
        self._block = None
        block += payload
        if len(block) > hpack.MAX_FIELDS_SIZE:
            raise Violation(Reason.PROTOCOL_ERROR, "headers that do not end")
        self._take_headers(stream, first_flags | flags & frames.END_HEADERS, bytes(block))

    def _take_headers(self, stream: int, flags: int, block: bytes) -> None:
        if not flags & frames.END_HEADERS:
            self._block = stream, flags, bytearray(block)
            return
        try:
            fields = self._decoder.decode(block)
        except hpack.HeaderError as error:
            raise Violation(Reason.COMPRESSION_ERROR, str(error)) from error
        if stream % 2 == 0:
            raise Violation(Reason.PROTOCOL_ERROR, f"a client's stream has the number {stream}")
        if stream > self._last_stream:
            self._last_stream = stream
            self._begin(stream, fields)
        call = self.calls.get(stream)
        if call is not None and flags & frames.END_STREAM:
            call.receive_end()

    def _begin(self, stream: int, fields: hpack.Fields) -> None:
        """Begin a call."""
        if self._left:
            self.write(frames.reset(stream, Reason.REFUSED_STREAM))
            return
        path = timeout = content = ""
        metadata = []
        for field in fields:
            name, value = field
            if name == ":path":
                path = value
            elif not name.startswith(":"):
                metadata.append(field)
                if name == "grpc-timeout":
                    timeout = value
                elif name == "content-type":
                    content = value
        if not content.startswith("application/grpc"):
            self.write(frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, stream, _NOT_GRPC))
            return
        call = Call(self, stream, path, metadata, self._handler_for)
        call.window = self._stream_window
        self.calls[stream] = call
        call.begin(timeout)

    def _take_window(self, stream: int, size: int) -> None:
        if not stream:
            self._window += size
            if self._window > frames.MAX_WINDOW:
                raise Violation(Reason.FLOW_CONTROL_ERROR, "a window that is too large")
            self._pump_all()
        elif (call := self.calls.get(stream)) is not None:
            call.window += size
            if stream in self._held_up:
                self.pump(call)

    def _take_ping(self, flags: int, payload: bytes) -> None:
        if not flags & frames.ACK:
            self.write(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif self._leaving and payload == _LEAVING_PING:
            self._left = True
            self.write(frames.go_away(self._last_stream, Reason.NO_ERROR))
            self._close_if_left()

    def _take_settings(self, wanted: dict[int, int]) -> None:
        self.write(frames.frame(frames.SETTINGS, frames.ACK, 0))
        frame_size = wanted.get(Setting.MAX_FRAME_SIZE, self._frame_size)
        window = wanted.get(Setting.INITIAL_WINDOW_SIZE, self._stream_window)
        if window > frames.MAX_WINDOW or frame_size < frames.DEFAULT_FRAME_SIZE:
            raise Violation(Reason.PROTOCOL_ERROR, "settings that cannot be")
        self._frame_size = frame_size
        # Also of streams that are open.
        for call in self.calls.values():
            call.window += window - self._stream_window
        self._stream_window = window
        self._pump_all()

    def _pump_all(self) -> None:
        for call in tuple(self._held_up.values()):
            self.pump(call)

    def _forget(self, call: Call) -> None:
        self.calls.pop(call.stream, None)
        self._held_up.pop(call.stream, None)

    def _close_if_left(self) -> None:
        if self._left and not self.calls and self._transport is not None:
            self._transport.close()
