"""ttrpc without I/O: bytes to frames and back, requests and responses to bytes and back.

    0..3  length of the data that follows, 4 MiB at most     big endian
    4..7  stream id: a client's are odd and rise from 1      big endian
    8     frame type
    9     flags

The shim's selector loop and the daemon's event loop both feed a FrameDecoder with what they read.
Source: github.com/containerd/ttrpc, PROTOCOL.md.
"""

import struct
from collections.abc import Iterable, Mapping
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from pyctr_wire.containerd.ttrpc import ttrpc_pb2 as pb
from pyctr_wire.errors import ApiError, InvalidArgument, ResourceExhausted, error_for

MAX_DATA: Final = 4 << 20
HEADER_SIZE: Final = 10
_HEADER: Final = struct.Struct(">IIBB")


class FrameType(IntEnum):
    """What a frame carries."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3


class FrameFlag(IntFlag):
    """Flags of streaming calls; a unary call has none."""

    NONE = 0
    REMOTE_CLOSED = 1
    REMOTE_OPEN = 2
    NO_DATA = 4


class Frame(NamedTuple):
    """One frame; `type` and `flags` are plain numbers because a peer may send any."""

    stream_id: int
    type: int
    flags: int
    data: bytes


class Oversized(NamedTuple):
    """A frame whose data was longer than MAX_DATA and has been skipped."""

    stream_id: int
    type: int
    length: int


class Request(NamedTuple):
    """A call. `timeout_nano` is relative, in nanoseconds, 0 for none; metadata keys are in lower case."""

    service: str
    method: str
    payload: bytes
    timeout_nano: int
    metadata: Mapping[str, str]


def encode_frame(stream_id: int, kind: FrameType, data: bytes, flags: FrameFlag = FrameFlag.NONE) -> bytes:
    """Return the frame's bytes; raises ResourceExhausted if `data` is longer than MAX_DATA."""
    if len(data) > MAX_DATA:
        raise ResourceExhausted(f"message of {len(data)} bytes is longer than the limit of {MAX_DATA}")
    return _HEADER.pack(len(data), stream_id, kind, flags) + data


class FrameDecoder:
    """Turns a byte stream, cut anywhere, into frames; holds at most one incomplete frame."""

    def __init__(self) -> None:
        """Start at a frame boundary."""
        self._buffer = bytearray()
        self._to_skip = 0

    @property
    def idle(self) -> bool:
        """Whether the stream stands at a frame boundary: an end of file here cuts nothing."""
        return not self._buffer and not self._to_skip

    def feed(self, data: bytes) -> list[Frame | Oversized]:
        """Return the frames that `data` completes, in order.

        An oversized frame is reported as soon as its header is there and its data is dropped as it arrives.
        """
        if self._to_skip:
            skipped = min(self._to_skip, len(data))
            self._to_skip -= skipped
            data = data[skipped:]
        buffer = self._buffer
        buffer += data
        frames: list[Frame | Oversized] = []
        start, size = 0, len(buffer)
        while (body := start + HEADER_SIZE) <= size:
            length, stream_id, kind, flags = _HEADER.unpack_from(buffer, start)
            end = body + length
            if length > MAX_DATA:
                frames.append(Oversized(stream_id, kind, length))
                self._to_skip = max(0, end - size)
                start = min(end, size)
                continue
            if end > size:
                break
            frames.append(Frame(stream_id, kind, flags, bytes(buffer[body:end])))
            start = end
        del buffer[:start]
        return frames


def encode_request(request: Request) -> bytes:
    """Return the data of a request frame."""
    message = pb.Request(
        service=request.service, method=request.method, payload=request.payload, timeout_nano=request.timeout_nano
    )
    for key, value in request.metadata.items():
        message.metadata.add(key=key.lower(), value=value)
    return message.SerializeToString()


def decode_request(data: bytes) -> Request:
    """Return the call in a request frame's data; raises InvalidArgument if it is not one.

    Where a metadata key is repeated its first value counts.
    """
    try:
        message = pb.Request.FromString(data)
    except DecodeError as error:
        raise InvalidArgument("request frame does not hold a ttrpc request") from error
    return Request(
        message.service, message.method, message.payload, message.timeout_nano, _first_values(message.metadata)
    )


def encode_response(payload: bytes) -> bytes:
    """Return the data of a successful response frame."""
    return pb.Response(payload=payload).SerializeToString()


def encode_error(error: ApiError) -> bytes:
    """Return the data of a response frame that carries the error's code and text."""
    response = pb.Response()
    response.status.code = error.code
    # A file name that the text repeats need not be UTF-8.
    response.status.message = str(error).encode(errors="replace").decode()
    return response.SerializeToString()


def decode_response(data: bytes) -> bytes:
    """Return the payload in a response frame's data, or raise the ApiError that its status names.

    Raises InvalidArgument if the data is no ttrpc response.
    """
    try:
        response = pb.Response.FromString(data)
    except DecodeError as error:
        raise InvalidArgument("response frame does not hold a ttrpc response") from error
    if response.status.code:
        raise error_for(response.status.code, response.status.message)
    return response.payload


def _first_values(pairs: Iterable[pb.KeyValue]) -> dict[str, str]:
    values: dict[str, str] = {}
    for pair in pairs:
        values.setdefault(pair.key.lower(), pair.value)
    return values
