"""The attach socket: clients that share a process's terminal or streams, framed, any number at a time.

    u8 type   u32 length, big endian   payload

    0 hello   client: {"exec_id", "stdin", "stdout", "stderr", "patient", "ends_input", "left"}
              answer: {"terminal", "status"} or {"error"}
    1 stdin   client's bytes; an empty one ends the input
    2 stdout  3 stderr   the process's bytes
    4 resize  u16 columns, u16 rows
    5 exit    {"exit_status"}, once the process has ended and its output has been sent
    6 message text for a person
    7 ping    ignored

Only what is written after the hello is sent: what came before is in the log. A client that is slow holds the
output back for a moment; one that takes nothing for a second is cut off with a message, so that it cannot
hold the container. One that says that it is patient is not: it is for a process's only client, which may
hold it as the reader of a pipe would. With one that says that it ends the input that goes when it goes,
however that comes about; and an exec that is there for one client only gets the signal `left` when that goes before
its end.
"""

import json
import signal
import socket
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from pyctr_shim import journal
from pyctr_shim.loop import READ, WRITE, Future, Loop, Timer
from pyctr_wire.errors import ApiError, InvalidArgument

if TYPE_CHECKING:
    from pyctr_shim.stdio.streams import Streams

_HEADER: Final = struct.Struct(">BI")
_SIZE: Final = struct.Struct(">2H")
_MAX_PAYLOAD: Final = 1 << 20
_READ_SIZE: Final = 32 << 10
_HIGH_WATER: Final = 256 << 10
_PATIENCE: Final = 1.0
_LAST_WORDS: Final = 30.0
_FOR_THOSE_LEFT: Final = (0, int(signal.SIGHUP), int(signal.SIGKILL))
CUT_OFF: Final = "cut off: this client took no output for a second while the container wrote more"


class FrameType(IntEnum):
    """What an attach frame carries."""

    HELLO = 0
    STDIN = 1
    STDOUT = 2
    STDERR = 3
    RESIZE = 4
    EXIT = 5
    MESSAGE = 6
    PING = 7


def encode(kind: int, payload: bytes) -> bytes:
    """Return a frame's bytes."""
    return _HEADER.pack(kind, len(payload)) + payload


class Decoder:
    """Turns a byte stream into (type, payload) pairs."""

    def __init__(self) -> None:
        """Start at a frame boundary."""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return the frames that `data` completes; raises InvalidArgument for one above 1 MiB."""
        buffer = self._buffer
        buffer += data
        frames = []
        start = 0
        while len(buffer) - start >= _HEADER.size:
            kind, length = _HEADER.unpack_from(buffer, start)
            if length > _MAX_PAYLOAD:
                raise InvalidArgument(f"attach frame of {length} bytes")
            end = start + _HEADER.size + length
            if end > len(buffer):
                break
            frames.append((kind, bytes(buffer[start + _HEADER.size : end])))
            start = end
        del buffer[:start]
        return frames


class Client:
    """One attached client, from its connection to its end."""

    def __init__(
        self,
        loop: Loop,
        peer: socket.socket,
        find: Callable[[str], "Streams"],
        when_left: Callable[[str, int], None],
    ) -> None:
        """Own `peer`; `find` returns the streams of an exec id ("" is the container) or raises ApiError.

        `when_left` is told which exec has lost its client before its end, and the signal that is for it.
        """
        peer.setblocking(False)
        self._loop = loop
        self._peer = peer
        self._find = find
        self._decoder = Decoder()
        self._streams: Streams | None = None
        self._kinds: frozenset[int] = frozenset()
        self._sends_input = False
        self._patient = False
        self._ends_input = False
        self._when_left = when_left
        self._exec_id = ""
        self._left = 0
        self._unsent = bytearray()
        self._holds_input = False
        self._closing = False
        self._room: Future[None] | None = None
        self._timer: Timer | None = None
        self._open = True
        loop.watch(peer.fileno(), READ, self._ready)

    @property
    def sends_input(self) -> bool:
        """Whether this client said that it sends the process's input."""
        return self._sends_input

    def listening(self, kind: int) -> bool:
        """Whether the client takes this stream."""
        return kind in self._kinds and not self._closing

    def send(self, kind: int, payload: bytes) -> Future[None] | None:
        """Send or queue a frame; a future means that the client has enough for now."""
        if not self._open or self._closing:
            return None
        self._unsent += encode(kind, payload)
        self._flush()
        if len(self._unsent) < _HIGH_WATER:
            return None
        if self._room is None:
            self._room = Future()
            self._limit_patience()
        return self._room

    def finish(self, exit_status: int) -> None:
        """The process has ended and all of its output was queued: say so, and close once it is sent."""
        self.send(FrameType.EXIT, json.dumps({"exit_status": exit_status}).encode())
        self._close_when_sent()

    def close(self) -> None:
        """Close now."""
        if not self._open:
            return
        self._open = False
        self._loop.unwatch(self._peer.fileno())
        self._peer.close()
        self._unsent.clear()
        if self._streams is not None:
            self._streams.detach(self)
            if self._ends_input:
                self._streams.write_input(b"")
            self._streams = None
            if self._left and not self._closing:
                self._when_left(self._exec_id, self._left)
        self._release()

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
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
        try:
            for kind, payload in self._decoder.feed(data):
                self._handle(kind, payload)
        except ApiError as error:
            self._refuse(str(error))

    def _handle(self, kind: int, payload: bytes) -> None:
        if self._closing:
            return
        if self._streams is None:
            if kind == FrameType.HELLO:
                self._hello(payload)
            elif kind != FrameType.PING:
                raise InvalidArgument("the first attach frame is a hello")
        elif kind == FrameType.STDIN and self._sends_input:
            self._streams.write_input(payload)
            if self._streams.input_full and not self._holds_input:
                self._holds_input = True
                self._watch()
                self._streams.when_input_has_room(self._listen_again)
        elif kind == FrameType.RESIZE and len(payload) == _SIZE.size:
            self._streams.resize(*_SIZE.unpack(payload))

    def _hello(self, payload: bytes) -> None:
        hello = _parse_hello(payload)
        self._exec_id = str(hello.get("exec_id", ""))
        streams = self._find(self._exec_id)
        wanted = {FrameType.STDOUT: "stdout", FrameType.STDERR: "stderr"}
        self._kinds = frozenset(kind for kind, name in wanted.items() if hello.get(name))
        self._sends_input = bool(hello.get("stdin"))
        self._patient = bool(hello.get("patient"))
        self._ends_input = self._sends_input and bool(hello.get("ends_input"))
        self._left = _signal(hello.get("left", 0)) if self._exec_id else 0
        streams.attach(self)
        self._streams = streams
        answer = {"terminal": streams.names.terminal, "status": streams.status}
        self.send(FrameType.HELLO, json.dumps(answer).encode())
        streams.finish_if_ended(self)

    def _refuse(self, reason: str) -> None:
        self.send(
            FrameType.HELLO if self._streams is None else FrameType.MESSAGE, json.dumps({"error": reason}).encode()
        )
        self._close_when_sent()

    def _cut_off(self) -> None:
        """It took nothing for a while: end here, but let it have what is queued and the reason."""
        journal.log("attached client cut off", unsent=len(self._unsent))
        self.send(FrameType.MESSAGE, CUT_OFF.encode())
        self._close_when_sent()
        self._release()

    def _close_when_sent(self) -> None:
        if not self._open or self._closing:
            return
        self._closing = True
        if self._streams is not None:
            self._streams.detach(self)
        if not self._unsent:
            self.close()
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(_LAST_WORDS, self.close)

    def _flush(self) -> None:
        if not self._unsent:
            return
        try:
            sent = self._peer.send(self._unsent, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        del self._unsent[:sent]
        if self._closing and not self._unsent:
            self.close()
            return
        self._watch()
        if sent and self._room is not None and not self._closing:
            self._progressed()

    def _progressed(self) -> None:
        """Give the client its patience again, and let the output go on when half is gone."""
        if len(self._unsent) < _HIGH_WATER // 2:
            self._release()
        else:
            self._limit_patience()

    def _limit_patience(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if self._patient else self._loop.call_later(_PATIENCE, self._cut_off)

    def _release(self) -> None:
        if self._timer is not None and not self._closing:
            self._timer.cancel()
            self._timer = None
        room, self._room = self._room, None
        if room is not None:
            room.set(None)

    def _listen_again(self) -> None:
        self._holds_input = False
        if self._open:
            self._watch()

    def _watch(self) -> None:
        """Listen for what can be taken: no input while that is full, whatever else is sent meanwhile."""
        self._loop.rewatch(self._peer.fileno(), (0 if self._holds_input else READ) | (WRITE if self._unsent else 0))


def _signal(number: object) -> int:
    if number not in _FOR_THOSE_LEFT:
        raise InvalidArgument(f"attach: left is {number!r}, not one of {_FOR_THOSE_LEFT}")
    return int(number)


def _parse_hello(payload: bytes) -> dict[str, Any]:
    try:
        hello = json.loads(payload)
    except ValueError as error:
        raise InvalidArgument("attach hello is not JSON") from error
    if not isinstance(hello, dict):
        raise InvalidArgument("attach hello is not a JSON object")
    if hello.get("since_start"):
        raise InvalidArgument("attach: since_start is not served; read the log for earlier output")
    return hello
