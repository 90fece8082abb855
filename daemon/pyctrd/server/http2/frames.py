"""Frames of HTTP/2. Source: RFC 9113, section 6.

0..2  length of the payload       big endian
3     type
4     flags
5..8  stream, 0 for what concerns the connection
"""

from enum import IntEnum
from struct import Struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_SIZE: Final = 9
HEADER: Final = Struct(">BHBBI")  # the length in two parts
MAX_WINDOW: Final = (1 << 31) - 1  # and the highest number of a stream
DEFAULT_WINDOW: Final = (1 << 16) - 1
DEFAULT_FRAME_SIZE: Final = 1 << 14

# Types. Plain numbers: a peer may send any, and they are compared for every frame.
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

# Flags.
ACK: Final = 0x1  # of SETTINGS and PING
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

_SETTING: Final = Struct(">HI")
_NUMBER: Final = Struct(">I")


class Setting(IntEnum):
    """What one end asks of the other."""

    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class Reason(IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9


class Violation(Exception):
    """The peer did what it may not: the connection ends, for `reason`."""

    def __init__(self, reason: Reason, text: str) -> None:
        """Keep the reason for the peer, and a text for people."""
        super().__init__(text)
        self.reason = reason


def frame(kind: int, flags: int, stream: int, payload: bytes | bytearray = b"") -> bytes:
    """Return the bytes of a frame."""
    return HEADER.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def settings(values: dict[Setting, int]) -> bytes:
    """Return a frame that asks for `values`."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*item) for item in values.items()))


def parse_settings(payload: bytes) -> dict[int, int]:
    """Return what a peer asks for, by number. Raises Violation."""
    if len(payload) % _SETTING.size:
        raise Violation(Reason.FRAME_SIZE_ERROR, "settings that are cut")
    return dict(_SETTING.iter_unpack(payload))


def window_update(stream: int, size: int) -> bytes:
    """Return a frame that lets the peer send `size` bytes more."""
    return frame(WINDOW_UPDATE, 0, stream, _NUMBER.pack(size))


def parse_window_update(payload: bytes) -> int:
    """Return how many bytes more we may send. Raises Violation."""
    size = parse_number(payload) & MAX_WINDOW
    if not size:
        raise Violation(Reason.PROTOCOL_ERROR, "a window grows by nothing")
    return size


def reset(stream: int, reason: Reason) -> bytes:
    """Return a frame that ends a stream at once."""
    return frame(RST_STREAM, 0, stream, _NUMBER.pack(reason))


def go_away(last_stream: int, reason: Reason, text: str = "") -> bytes:
    """Return a frame that says: of your streams we serve those up to `last_stream`, and then leave."""
    return frame(GOAWAY, 0, 0, _NUMBER.pack(last_stream) + _NUMBER.pack(reason) + text.encode())


def parse_number(payload: bytes) -> int:
    """Return the number that a payload consists of. Raises Violation."""
    if len(payload) != _NUMBER.size:
        raise Violation(Reason.FRAME_SIZE_ERROR, f"a payload of {len(payload)} bytes instead of {_NUMBER.size}")
    (number,) = _NUMBER.unpack(payload)
    return int(number)


def without_padding(flags: int, payload: bytes) -> bytes:
    """Return the payload of a DATA or HEADERS frame without what fills it up. Raises Violation."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Violation(Reason.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]
