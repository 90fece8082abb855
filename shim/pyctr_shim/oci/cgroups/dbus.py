"""As much of D-Bus as it takes to call systemd: method calls, their answers, and signals.

A message is a header, padded to eight bytes, and a body; every value is aligned to its own size.
Source: D-Bus specification 0.43, "Type System" and "Message Protocol".
"""

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_TO, _DESTINATION, _SIGNATURE = 1, 2, 3, 4, 5, 6, 8
_FIELD_TYPES: Final = {
    _PATH: "o",
    _INTERFACE: "s",
    _MEMBER: "s",
    _ERROR_NAME: "s",
    _REPLY_TO: "u",
    _DESTINATION: "s",
    _SIGNATURE: "g",
}
_FIXED: Final = {"y": "B", "n": "h", "q": "H", "b": "I", "i": "i", "u": "I", "h": "I", "x": "q", "t": "Q", "d": "d"}
_BRACKETS: Final = {"(": ")", "{": "}"}  # a structure; an entry of a dictionary, which is an array of such
_ALIGNMENTS: Final = {"(": 8, "{": 8, "x": 8, "t": 8, "d": 8, "n": 2, "q": 2, "y": 1, "g": 1, "v": 1}
_LARGEST: Final = 1 << 20  # a message of systemd's is a few hundred bytes
_FIXED_HEADER_BYTES: Final = 16
_BUS: Final = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")


class DBusError(OSError):
    """The peer has answered with an error, `name`, or not as D-Bus has it."""

    def __init__(self, name: str, text: str) -> None:
        """Keep the error's D-Bus name."""
        super().__init__(0, f"{text} ({name})" if text else name)
        self.name = name


@dataclass(frozen=True, slots=True)
class Message:
    """A message that has been received."""

    kind: int
    reply_to: int
    member: str
    error: str
    body: list[Any]


class Connection:
    """A connection to systemd itself, or to the system bus; made by `connect`."""

    def __init__(self, peer: socket.socket, destination: str) -> None:
        """Take over a socket that has been let in; `destination` is whom calls are for, "" without a bus."""
        self._socket = peer
        self._destination = destination
        self._serial = 0

    def __enter__(self) -> "Connection":
        """Close it at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the socket."""
        self._socket.close()

    def call(self, path: str, interface: str, member: str, signature: str = "", *arguments: Any) -> list[Any]:
        """Call a method and return what it returns.

        Raises DBusError if that is an error, TimeoutError, or ConnectionError if the peer goes away.
        """
        return self._call(self._destination, path, interface, member, signature, arguments)

    def listen(self, rule: str) -> None:
        """Be sent the signals of a match rule; without a bus they come anyway."""
        if self._destination:
            name, path, interface = _BUS
            self._call(name, path, interface, "AddMatch", "s", (rule,))

    def say_hello(self) -> None:
        """Introduce oneself to a bus, which must come first."""
        name, path, interface = _BUS
        self._call(name, path, interface, "Hello", "", ())

    def signals(self, member: str) -> Iterator[list[Any]]:
        """Wait for signals of that name; those that have come since are not kept. Raises as `call`."""
        while True:
            message = self._receive()
            if message.kind == SIGNAL and message.member == member:
                yield message.body

    def _call(
        self, destination: str, path: str, interface: str, member: str, signature: str, arguments: Sequence[Any]
    ) -> list[Any]:
        self._serial += 1
        fields = {_PATH: path, _INTERFACE: interface, _MEMBER: member}
        if destination:
            fields[_DESTINATION] = destination
        self._socket.sendall(pack_message(CALL, self._serial, fields, signature, arguments))
        while True:
            message = self._receive()
            if message.reply_to != self._serial:
                continue  # a signal, or an answer that nobody waits for any more
            if message.kind == ERROR:
                raise DBusError(message.error, str(message.body[0]) if message.body else "")
            return message.body

    def _receive(self) -> Message:
        start = self._read(_FIXED_HEADER_BYTES)
        if start[:1] != b"l":
            raise DBusError("pyctr.ByteOrder", "the peer sends big-endian messages")
        body_length, _, fields_length = struct.unpack_from("<III", start, 4)
        header_length = -(-(_FIXED_HEADER_BYTES + fields_length) // 8) * 8
        if header_length + body_length > _LARGEST:
            raise DBusError("pyctr.TooLong", f"a message of {header_length + body_length} bytes")
        return unpack_message(start + self._read(header_length + body_length - _FIXED_HEADER_BYTES))

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            chunk = self._socket.recv(count - len(data))
            if not chunk:
                raise ConnectionResetError("the connection was closed")
            data += chunk
        return bytes(data)


def connect(path: str, destination: str, timeout: float) -> Connection:
    """Connect as this user, with `timeout` seconds for each answer. Raises OSError; `destination` as in Connection."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        peer.settimeout(timeout)
        peer.connect(path)
        _authenticate(peer, path)
        connection = Connection(peer, destination)
        if destination:
            connection.say_hello()
    except BaseException:
        peer.close()
        raise
    return connection


def _authenticate(peer: socket.socket, path: str) -> None:
    """Be let in as who the kernel says that we are.

    BEGIN goes out with the request, as systemd's own clients send it. On its own it could arrive together with
    the first call, which systemd then leaves lying until something else arrives.
    """
    user = str(os.geteuid()).encode().hex().encode()
    peer.sendall(b"\0AUTH EXTERNAL " + user + b"\r\nBEGIN\r\n")
    answer = bytearray()
    while not answer.endswith(b"\r\n"):  # byte by byte: what follows is no line any more
        byte = peer.recv(1)
        if not byte:
            raise ConnectionResetError("the connection was closed")
        answer += byte
    if not answer.startswith(b"OK "):
        raise DBusError("pyctr.Refused", f"{path}: not let in")


# -- the wire format; variants are pairs of signature and value


def pack_message(
    kind: int, serial: int, fields: dict[int, Any], signature: str = "", arguments: Sequence[Any] = ()
) -> bytes:
    """Return a message; `fields` are those of the header by their numbers."""
    body = bytearray()
    for part, value in zip(_split(signature), arguments, strict=True):
        _pack(body, part, value)
    if signature:
        fields = {**fields, _SIGNATURE: signature}
    message = bytearray(struct.pack("<BBBBII", ord("l"), kind, 0, 1, len(body), serial))
    _pack(message, "a(yv)", [(number, (_FIELD_TYPES[number], value)) for number, value in fields.items()])
    _align(message, 8)
    return bytes(message + body)


def unpack_message(data: bytes) -> Message:
    """Return what a whole message says."""
    (body_length,) = struct.unpack_from("<I", data, 4)
    fields, _ = _unpack(data, 12, "a(yv)")
    header = {number: value for number, (_, value) in fields}
    body, place = [], 0
    content = data[len(data) - body_length :]
    for part in _split(header.get(_SIGNATURE, "")):
        value, place = _unpack(content, place, part)
        body.append(value)
    return Message(data[1], header.get(_REPLY_TO, 0), header.get(_MEMBER, ""), header.get(_ERROR_NAME, ""), body)


def _split(signature: str) -> Iterator[str]:
    """Yield the complete types of a signature, one after the other."""
    start = 0
    while start < len(signature):
        end = _end_of_type(signature, start)
        yield signature[start:end]
        start = end


def _end_of_type(signature: str, start: int) -> int:
    if signature[start] == "a":
        return _end_of_type(signature, start + 1)
    if signature[start] not in _BRACKETS:
        return start + 1
    end = _BRACKETS[signature[start]]
    start += 1
    while signature[start] != end:
        start = _end_of_type(signature, start)
    return start + 1


def _alignment(kind: str) -> int:
    return _ALIGNMENTS.get(kind[0], 4)


def _align(data: bytearray, size: int) -> None:
    data += bytes(-len(data) % size)


def _pack(data: bytearray, kind: str, value: Any) -> None:
    _align(data, _alignment(kind))
    if (code := _FIXED.get(kind)) is not None:
        data += struct.pack(f"<{code}", value)
    elif kind in {"s", "o"}:
        text = value.encode()
        data += struct.pack("<I", len(text)) + text + b"\0"
    elif kind == "g":
        data += bytes([len(value)]) + value.encode() + b"\0"
    elif kind == "v":
        signature, inner = value
        _pack(data, "g", signature)
        _pack(data, signature, inner)
    elif kind[0] in _BRACKETS:
        for part, inner in zip(_split(kind[1:-1]), value, strict=True):
            _pack(data, part, inner)
    else:
        place = len(data)
        data += bytes(4)
        _align(data, _alignment(kind[1:]))  # not counted, and there even if nothing follows
        first = len(data)
        for inner in value:
            _pack(data, kind[1:], inner)
        struct.pack_into("<I", data, place, len(data) - first)


def _unpack(data: bytes, place: int, kind: str) -> tuple[Any, int]:
    """Return a value and where it ends."""
    size = _alignment(kind)
    place = -(-place // size) * size
    if (code := _FIXED.get(kind)) is not None:
        return struct.unpack_from(f"<{code}", data, place)[0], place + struct.calcsize(f"<{code}")
    if kind in {"s", "o"}:
        (length,) = struct.unpack_from("<I", data, place)
        return data[place + 4 : place + 4 + length].decode(), place + length + 5
    if kind == "g":
        length = data[place]
        return data[place + 1 : place + 1 + length].decode(), place + length + 2
    if kind == "v":
        signature, place = _unpack(data, place, "g")
        value, place = _unpack(data, place, signature)
        return (signature, value), place
    if kind[0] in _BRACKETS:
        values = []
        for part in _split(kind[1:-1]):
            value, place = _unpack(data, place, part)
            values.append(value)
        return tuple(values), place
    if kind[0] != "a":
        raise DBusError("pyctr.Type", f"a value of type {kind!r}")
    return _unpack_array(data, place, kind[1:])


def _unpack_array(data: bytes, place: int, kind: str) -> tuple[list[Any], int]:
    (length,) = struct.unpack_from("<I", data, place)
    size = _alignment(kind)
    place = -(-(place + 4) // size) * size
    end = place + length
    values = []
    while place < end:
        value, place = _unpack(data, place, kind)
        values.append(value)
    return values, place
