"""The attach socket of a shim: a container's streams, past the daemon.

A stream of frames, each a type byte, a length (u32, big-endian) and a payload. The shim owns the
socket, so no restart of the daemon cuts a session. It sends what is written after the hello, and cuts off
a client that takes nothing for a second.
"""

import json
import os
import socket
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, Final

from pyctr_wire.errors import Unavailable

_HEADER: Final = struct.Struct(">BI")
_MAX_PAYLOAD: Final = 16 << 20
_TIMEOUT: Final = 10.0  # seconds, for the shim's answer to hello


class Frame(IntEnum):
    """Frame types."""

    HELLO = 0
    STDIN = 1
    STDOUT = 2
    STDERR = 3
    RESIZE = 4
    EXIT = 5
    MESSAGE = 6
    PING = 7


def encode(kind: Frame, payload: bytes = b"") -> bytes:
    """Return one frame."""
    return _HEADER.pack(kind, len(payload)) + payload


class Decoder:
    """Cuts received bytes into frames. No I/O."""

    def __init__(self) -> None:
        """Start at a frame's border."""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield (type, payload) of every frame that is complete now. Raises Unavailable on nonsense."""
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            kind, size = _HEADER.unpack_from(self._buffer)
            if size > _MAX_PAYLOAD:
                raise Unavailable(f"the attach socket sent a frame of {size} bytes")
            end = _HEADER.size + size
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield kind, payload


def _connect(peer: socket.socket, path: str) -> None:
    """Connect as whoever the socket belongs to, if we are root: a shim takes nobody but its own user for that one."""
    owner = os.stat(path) if os.geteuid() == 0 else None
    if owner is None or owner.st_uid == 0:
        peer.connect(path)
        return
    group = os.getegid()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        peer.connect(path)
    finally:
        os.seteuid(0)
        os.setegid(group)


class AttachSocket:
    """A connection to a shim's attach socket; non-blocking after the hello."""

    def __init__(self, path: str, exec_id: str = "", *, stdin: bool) -> None:
        """Connect and say whether input will be sent. Raises Unavailable if the shim is gone or refuses."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._decoder = Decoder()
        self._outbox = bytearray()
        self._early: list[tuple[int, bytes]] = []
        hello = {"exec_id": exec_id, "stdin": stdin, "stdout": True, "stderr": True}
        try:
            self._socket.settimeout(_TIMEOUT)
            _connect(self._socket, path)
            self._socket.sendall(encode(Frame.HELLO, json.dumps(hello).encode()))
            self.terminal = bool(self._greeting().get("terminal"))
            self._socket.setblocking(False)
        except OSError as error:
            self._socket.close()
            raise Unavailable(f"cannot attach at {path}: {error.strerror or error}") from None
        except BaseException:
            self._socket.close()
            raise

    def _greeting(self) -> dict[str, Any]:
        """Return the shim's answer to hello; frames that came with it wait for `receive`."""
        while not self._early:
            data = self._socket.recv(1 << 16)
            if not data:
                raise Unavailable("the shim closed the attach socket")
            self._early.extend(self._decoder.feed(data))
        kind, payload = self._early.pop(0)
        answer: dict[str, Any] = json.loads(payload) if kind == Frame.HELLO else {"error": "no answer to hello"}
        if "error" in answer:
            raise Unavailable(f"cannot attach: {answer['error']}")
        return answer

    def fileno(self) -> int:
        """Return the socket, for a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the connection: the container does not notice."""
        self._socket.close()

    @property
    def pending(self) -> int:
        """Bytes that wait to be sent."""
        return len(self._outbox)

    def send(self, kind: Frame, payload: bytes = b"") -> None:
        """Queue a frame and send what the socket takes."""
        self._outbox += encode(kind, payload)
        self.flush()

    def resize(self, columns: int, rows: int) -> None:
        """Tell the terminal's size."""
        self.send(Frame.RESIZE, struct.pack(">HH", columns, rows))

    def flush(self) -> None:
        """Send what the socket takes. A broken connection shows up in `receive`."""
        try:
            while self._outbox:
                sent = self._socket.send(self._outbox)
                del self._outbox[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._outbox.clear()

    def receive(self) -> list[tuple[int, bytes]] | None:
        """Return the frames that are there, None at the end of the connection."""
        early, self._early = self._early, []
        try:
            data = self._socket.recv(1 << 17)
        except BlockingIOError:
            return early
        except OSError:
            data = b""
        if not data:
            return early or None
        return early + list(self._decoder.feed(data))
