"""A call: what arrives on one stream as messages, what its handler says as frames, and its end as a status.

A message is preceded by five bytes: whether it is compressed, and its length. Source: the gRPC project,
doc/PROTOCOL-HTTP2.md.
"""

import asyncio
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from struct import Struct
from typing import Any, Final, NamedTuple, Protocol, Self
from urllib.parse import quote

from pyctr_wire.errors import ApiError, Code, DeadlineExceeded, Internal, ResourceExhausted, Unimplemented, UnknownError
from pyctrd.log import Logger
from pyctrd.server.http2 import frames, hpack
from pyctrd.server.http2.frames import Reason, Violation

MAX_MESSAGE_BYTES: Final = 16 << 20  # containerd's, in both directions
STREAM_WINDOW: Final = 4 << 20  # bytes that a client may send before the handler has read what came before

# It travels in a header: peers refuse lists of headers of more than 8 KiB or so.
_MAX_TEXT: Final = 4096  # characters of an error

_PREFIX: Final = Struct(">BI")
_TIMEOUT_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}  # seconds

_RESPONSE: Final = hpack.encode([(":status", "200"), ("content-type", "application/grpc")])
_GOOD: Final = hpack.encode([("grpc-status", "0")])
_PRINTABLE: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")

_log = Logger("pyctrd.server")


class Handler(NamedTuple):
    """How the calls of one method are served.

    `behaviour` is called with the request, or with the call itself if the client streams, and the call. What it
    returns is the response, unless the server streams: then it writes messages to the call.
    """

    behaviour: "Callable[[Any, Call], Awaitable[Any]]"
    client_streams: bool
    server_streams: bool
    deserialize: Callable[[bytes], Any]
    serialize: Callable[[Any], bytes]


class Link(Protocol):
    """The connection that a call belongs to."""

    def write(self, data: bytes, /) -> None:
        """Send whole frames."""

    def pump(self, call: "Call", /) -> None:
        """Send as much as may be sent of what waits in a call."""


class Call:
    """One call. Its connection gives it frames, its handler reads and writes messages."""

    __slots__ = (
        "_deadline", "_drained", "_handler", "_handler_for", "_has_headers", "_incoming", "_link", "_messages",
        "_metadata", "_method", "_reader", "_task", "_timer", "_unacknowledged",
        "ended", "head", "outbox", "over", "stream", "trailers", "window",
    )  # fmt: skip

    def __init__(
        self, link: Link, stream: int, method: str, metadata: hpack.Fields, handler_for: Callable[[str], Handler]
    ) -> None:
        """Be the call on `stream` of `link`."""
        self._link = link
        self._method = method
        self._metadata = metadata
        self._handler_for = handler_for
        self._handler: Handler | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline: float | None = None
        self._incoming = bytearray()
        self._messages: deque[bytes] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._unacknowledged = 0  # bytes by which the client's window is smaller
        self._has_headers = False
        self._drained: asyncio.Future[None] | None = None
        self.stream = stream
        self.ended = False
        """Whether the client has said all."""
        self.over = False
        """Whether nothing more will be queued for the client."""
        self.head = b""
        self.outbox = bytearray()
        self.trailers = b""
        """What is to be sent: a frame of headers, payload of DATA frames, a frame that ends the stream."""
        self.window = 0
        """Bytes of payload that the client takes on this stream."""

    # What a handler sees.

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        """Return the client's headers but for HTTP's own; the values of those that end in -bin are bytes."""
        return [(name, _from_base64(value) if name.endswith("-bin") else value) for name, value in self._metadata]

    def time_remaining(self) -> float | None:
        """Return the seconds until the client gives up, None if it has set no limit."""
        return None if self._deadline is None else max(0.0, self._deadline - asyncio.get_running_loop().time())

    async def read(self) -> Any:
        """Return the next message of the client, None when it has said all."""
        while not self._messages:
            if self.ended:
                return None
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        message = self._messages.popleft()
        self._acknowledge()
        assert self._handler is not None
        return self._handler.deserialize(message)

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> Any:
        """Return the client's next message."""
        message = await self.read()
        if message is None:
            raise StopAsyncIteration
        return message

    async def send_initial_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Send the response's headers, which else go with its first message."""
        if not self.over:
            self._queue_headers(hpack.encode([(name, _to_text(value)) for name, value in metadata]))
            self._link.pump(self)

    async def write(self, message: Any) -> None:
        """Send a message, and return when it is on its way; it goes on its way also if the caller is cancelled."""
        if self.over:
            await asyncio.sleep(0)  # the client has gone: here the handler learns it
            return
        assert self._handler is not None
        self._queue_headers()
        self._queue(self._handler.serialize(message))
        self._link.pump(self)
        if self.outbox:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    # What the connection tells.

    def begin(self, timeout: str) -> None:
        """Begin, with the client's limit in gRPC's words, "" for none."""
        loop = asyncio.get_running_loop()
        if timeout:
            seconds = _TIMEOUT_UNITS.get(timeout[-1])
            if seconds is None or not timeout[:-1].isdecimal():
                self.end(Internal(f"grpc-timeout {timeout!r} is none"))
                return
            seconds *= int(timeout[:-1])
            self._deadline = loop.time() + seconds
            self._timer = loop.call_later(seconds, self._expire)
        if self._handler_for(self._method).client_streams:
            self._start()

    def receive(self, data: bytes, size: int) -> None:
        """Take in payload that took `size` bytes of the client's window. Raises Violation."""
        self._unacknowledged += size
        if self._unacknowledged > STREAM_WINDOW:
            raise Violation(Reason.FLOW_CONTROL_ERROR, f"stream {self.stream} is longer than its window")
        self._incoming += data
        try:
            self._take_messages()
        except ApiError as error:
            self.end(error)
            return
        self._acknowledge()
        if self._messages:
            self._wake_reader()

    def receive_end(self) -> None:
        """Note that the client has said all."""
        self.ended = True
        if self.over:
            return
        if self._incoming:
            self.end(Internal("the last message is cut"))
        elif self._task is None:
            self._start()
        else:
            self._wake_reader()

    def sent(self) -> None:
        """Note that nothing is left to be sent for now."""
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def drop(self) -> None:
        """Give up: the client has gone."""
        self._close()
        self.head = self.trailers = b""
        self.outbox.clear()
        self._cancel()

    def end(self, error: ApiError) -> None:
        """End with a status, whatever the handler is doing."""
        self._finish(error.code, str(error))
        self._cancel()

    def _take_messages(self) -> None:
        """Move what has arrived as a whole to the messages. Raises Unimplemented, ResourceExhausted."""
        incoming = self._incoming
        while len(incoming) >= _PREFIX.size:
            compressed, length = _PREFIX.unpack_from(incoming)
            if compressed:
                raise Unimplemented("compressed messages")
            if length > MAX_MESSAGE_BYTES:
                raise ResourceExhausted(f"message of {length} bytes is longer than the limit of {MAX_MESSAGE_BYTES}")
            end = _PREFIX.size + length
            if len(incoming) < end:
                return
            with memoryview(incoming) as view:
                self._messages.append(bytes(view[_PREFIX.size : end]))
            del incoming[:end]

    def _acknowledge(self) -> None:
        """Let the client send more, unless whole messages wait to be read."""
        if self._unacknowledged >= STREAM_WINDOW // 2 and not self._messages and not self.ended:
            self._link.write(frames.window_update(self.stream, self._unacknowledged))
            self._unacknowledged = 0

    def _start(self) -> None:
        """Let the handler begin: the one that is right by now, as another daemon may have taken over meanwhile."""
        self._handler = self._handler_for(self._method)
        self._task = asyncio.get_running_loop().create_task(self._serve(self._handler))

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def _serve(self, handler: Handler) -> None:
        """Run the handler. Nothing that it raises goes further."""
        try:
            request = self if handler.client_streams else handler.deserialize(self._only_message())
            response = await handler.behaviour(request, self)
            self._finish(Code.OK, "", None if handler.server_streams else handler.serialize(response))
        except ApiError as error:
            self._finish(error.code, str(error))
        except asyncio.CancelledError:
            self._finish(Code.CANCELLED, "the call was cancelled")
            raise
        except Exception as error:
            # A bug.
            _log.error("call.failed", method=self._method, exc_info=error)
            self._finish(Code.UNKNOWN, f"unexpected {type(error).__name__}: {error}")

    def _only_message(self) -> bytes:
        """Return the request of a client that does not stream. Raises Internal."""
        if len(self._messages) != 1:
            raise Internal(f"{self._method}: {len(self._messages)} messages where one was expected")
        return self._messages.popleft()

    def _queue_headers(self, fields: bytes = b"") -> None:
        if not self._has_headers:
            self._has_headers = True
            self.head = frames.frame(frames.HEADERS, frames.END_HEADERS, self.stream, _RESPONSE + fields)

    def _queue(self, message: bytes) -> None:
        if len(message) > MAX_MESSAGE_BYTES:
            raise ResourceExhausted(f"message of {len(message)} bytes is longer than the limit of {MAX_MESSAGE_BYTES}")
        self.outbox += _PREFIX.pack(0, len(message))
        self.outbox += message

    def _finish(self, code: Code, text: str, message: bytes | None = None) -> None:
        """Send the last message, if there is one, and the status."""
        if self.over:
            return
        if message is not None:
            self._queue_headers()
            self._queue(message)
        self._close()
        fields = _GOOD if code is Code.OK else hpack.encode(_status(code, text))
        # Without headers before, the trailers are all there is.
        block = fields if self._has_headers else _RESPONSE + fields
        self.trailers = frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, self.stream, block)
        self._link.pump(self)

    def _close(self) -> None:
        self.over = True
        if self._timer is not None:
            self._timer.cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _expire(self) -> None:
        self.end(DeadlineExceeded(self._method))


def _status(code: Code, text: str) -> list[tuple[str, str]]:
    """Return the fields that tell of an error."""
    message = quote(text[:_MAX_TEXT], safe=_PRINTABLE)
    return [("grpc-status", str(int(code))), ("grpc-message", message[: 2 * _MAX_TEXT])]


def _to_text(value: str | bytes) -> str:
    return value if isinstance(value, str) else b64encode(value).decode()


def _from_base64(text: str) -> bytes:
    """Return the bytes of a header's value, for which peers omit the padding. Raises UnknownError."""
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except Base64Error as error:
        raise UnknownError(f"a binary header is not base64: {error}") from error
