"""SPDY/3.1 frames, without I/O: what Kubernetes' older clients speak after `Upgrade: SPDY/3.1`.

    control   1 bit set   u15 version 3   u16 type   u8 flags   u24 length   payload
    data      0 bit       u31 stream id              u8 flags   u24 length   payload

Header blocks are a u32 number of pairs and for each a u32 length and name, a u32 length and value, compressed
with zlib. All blocks of a direction are one compressed stream with a dictionary known to both ends, flushed
after each: a block can be read only after all before it. Source: SPDY protocol, draft 3.1.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple, TypeAlias

VERSION: Final = 3
MAX_DATA: Final = (1 << 24) - 1
MAX_CONTROL: Final = 64 << 10
MAX_HEADERS: Final = 64 << 10  # of a block, once decompressed
MAX_PAIRS: Final = 128

_HEAD: Final = struct.Struct(">II")
_CONTROL_BIT: Final = 1 << 31
_ID_MASK: Final = _CONTROL_BIT - 1

# The specification prints the dictionary as bytes: words in the form that headers have, then text run together.
_WORDS: Final = (
    "options,head,post,put,delete,trace,accept,accept-charset,accept-encoding,accept-language,accept-ranges,"
    "age,allow,authorization,cache-control,connection,content-base,content-encoding,content-language,"
    "content-length,content-location,content-md5,content-range,content-type,date,etag,expect,expires,from,"
    "host,if-match,if-modified-since,if-none-match,if-range,if-unmodified-since,last-modified,location,"
    "max-forwards,pragma,proxy-authenticate,proxy-authorization,range,referer,retry-after,server,te,"
    "trailer,transfer-encoding,upgrade,user-agent,vary,via,warning,www-authenticate,method,get,status,200 OK,"
    "version,HTTP/1.1,url,public,set-cookie,keep-alive,origin"
)
_TEXT: Final = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,"
    "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY: Final = (
    b"".join(struct.pack(">I", len(word)) + word.encode() for word in _WORDS.split(",")) + _TEXT.encode()
)


class SpdyError(Exception):
    """The peer does not speak SPDY/3.1, or goes beyond a limit; the connection cannot go on."""


class Type(IntEnum):
    """Control frames."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class Flag(IntFlag):
    """Of SYN_STREAM, SYN_REPLY, HEADERS and data: the sender's side of the stream ends with this frame."""

    NONE = 0
    FIN = 1


class ResetStatus(IntEnum):
    """Why a stream is reset."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    CANCEL = 5
    INTERNAL_ERROR = 6


class GoAwayStatus(IntEnum):
    """Why a connection ends."""

    OK = 0
    PROTOCOL_ERROR = 1


class SynStream(NamedTuple):
    """The peer opens a stream."""

    stream_id: int
    headers: Mapping[str, str]
    fin: bool = False


class SynReply(NamedTuple):
    """The peer takes a stream that we opened."""

    stream_id: int
    headers: Mapping[str, str]
    fin: bool = False


class Headers(NamedTuple):
    """More headers of a stream."""

    stream_id: int
    headers: Mapping[str, str]
    fin: bool = False


class Data(NamedTuple):
    """A piece of a data frame, of which `fin` tells in the last piece."""

    stream_id: int
    data: bytes
    fin: bool = False


class Reset(NamedTuple):
    """A stream ends at once, both ways."""

    stream_id: int
    status: int


class Ping(NamedTuple):
    """To be sent back as it is."""

    ping_id: int


class GoAway(NamedTuple):
    """The peer opens no more streams."""

    last_stream_id: int
    status: int


Frame: TypeAlias = SynStream | SynReply | Headers | Data | Reset | Ping | GoAway


class Encoder:
    """Makes the frames of one direction of a connection."""

    def __init__(self) -> None:
        """Begin the direction's compressed stream."""
        self._compress = zlib.compressobj(zdict=DICTIONARY)

    def syn_stream(self, stream_id: int, headers: Mapping[str, str], flags: Flag = Flag.NONE) -> bytes:
        """Return the frame that opens a stream."""
        return _control(Type.SYN_STREAM, flags, struct.pack(">IIH", stream_id, 0, 0) + self._block(headers))

    def syn_reply(self, stream_id: int, headers: Mapping[str, str], flags: Flag = Flag.NONE) -> bytes:
        """Return the frame that takes a stream."""
        return _control(Type.SYN_REPLY, flags, struct.pack(">I", stream_id) + self._block(headers))

    def headers(self, stream_id: int, headers: Mapping[str, str], flags: Flag = Flag.NONE) -> bytes:
        """Return a frame with more headers of a stream."""
        return _control(Type.HEADERS, flags, struct.pack(">I", stream_id) + self._block(headers))

    def _block(self, headers: Mapping[str, str]) -> bytes:
        parts = [struct.pack(">I", len(headers))]
        for pair in headers.items():
            for text in pair:
                encoded = text.encode("latin-1")
                parts += [struct.pack(">I", len(encoded)), encoded]
        return self._compress.compress(b"".join(parts)) + self._compress.flush(zlib.Z_SYNC_FLUSH)


def data(stream_id: int, payload: bytes, flags: Flag = Flag.NONE) -> bytes:
    """Return a data frame; `payload` has at most MAX_DATA bytes."""
    return _HEAD.pack(stream_id, flags << 24 | len(payload)) + payload


def reset(stream_id: int, status: ResetStatus) -> bytes:
    """Return the frame that ends a stream at once."""
    return _control(Type.RST_STREAM, Flag.NONE, struct.pack(">II", stream_id, status))


def ping(ping_id: int) -> bytes:
    """Return a ping, or the answer to one."""
    return _control(Type.PING, Flag.NONE, struct.pack(">I", ping_id))


def go_away(last_stream_id: int, status: GoAwayStatus) -> bytes:
    """Return the frame that says that no more streams are taken."""
    return _control(Type.GOAWAY, Flag.NONE, struct.pack(">II", last_stream_id, status))


def _control(kind: Type, flags: Flag, payload: bytes) -> bytes:
    return _HEAD.pack(_CONTROL_BIT | VERSION << 16 | kind, flags << 24 | len(payload)) + payload


class Decoder:
    """Turns the bytes of one direction of a connection into frames.

    It holds one control frame at most; data is passed on as it comes.
    """

    def __init__(self) -> None:
        """Begin at a frame's border."""
        self._buffer = bytearray()
        self._decompress = zlib.decompressobj(zdict=DICTIONARY)
        self._data: tuple[int, bool] | None = None  # stream and FIN of the data frame that has begun
        self._missing = 0  # bytes of it that have not come

    def feed(self, received: bytes) -> Iterator[Frame]:
        """Yield the frames that `received` completes, and pieces of a data frame. Raises SpdyError."""
        self._buffer += received
        while True:
            if self._data is not None:
                if self._missing and not self._buffer:
                    return
                yield self._piece()
            elif len(self._buffer) < _HEAD.size:
                return
            else:
                first, second = _HEAD.unpack_from(self._buffer)
                length, flags = second & MAX_DATA, second >> 24
                if not first & _CONTROL_BIT:
                    del self._buffer[: _HEAD.size]
                    self._data, self._missing = (first, bool(flags & Flag.FIN)), length
                    continue
                if length > MAX_CONTROL:
                    raise SpdyError(f"a control frame of {length} bytes")
                if len(self._buffer) < _HEAD.size + length:
                    return
                payload = bytes(self._buffer[_HEAD.size : _HEAD.size + length])
                del self._buffer[: _HEAD.size + length]
                frame = self._control(first, fin=bool(flags & Flag.FIN), payload=payload)
                if frame is not None:
                    yield frame

    def _piece(self) -> Data:
        assert self._data is not None
        stream_id, fin = self._data
        payload = bytes(self._buffer[: self._missing])
        del self._buffer[: len(payload)]
        self._missing -= len(payload)
        if self._missing:
            return Data(stream_id, payload)
        self._data = None
        return Data(stream_id, payload, fin)

    def _control(self, first: int, *, fin: bool, payload: bytes) -> Frame | None:
        """Return what a control frame says, None for one without meaning here: settings and windows."""
        version, kind = first >> 16 & 0x7FFF, first & 0xFFFF
        if version != VERSION:
            raise SpdyError(f"version {version} of SPDY")
        match kind:
            case Type.SYN_STREAM:
                return SynStream(_number(payload, 0) & _ID_MASK, self._block(payload[10:]), fin)
            case Type.SYN_REPLY:
                return SynReply(_number(payload, 0) & _ID_MASK, self._block(payload[4:]), fin)
            case Type.HEADERS:
                return Headers(_number(payload, 0) & _ID_MASK, self._block(payload[4:]), fin)
            case Type.RST_STREAM:
                return Reset(_number(payload, 0) & _ID_MASK, _number(payload, 4))
            case Type.PING:
                return Ping(_number(payload, 0))
            case Type.GOAWAY:
                return GoAway(_number(payload, 0) & _ID_MASK, _number(payload, 4))
        return None

    def _block(self, compressed: bytes) -> Mapping[str, str]:
        try:
            block = self._decompress.decompress(compressed, MAX_HEADERS)
        except zlib.error as error:
            raise SpdyError(f"headers that cannot be decompressed: {error}") from error
        if self._decompress.unconsumed_tail or self._decompress.eof:
            raise SpdyError(f"a block of headers above {MAX_HEADERS} bytes, or the end of the compressed stream")
        return _pairs(block)


def _pairs(block: bytes) -> Mapping[str, str]:
    """Return the pairs of a decompressed block."""
    count, position = _number(block, 0), 4
    if count > MAX_PAIRS:
        raise SpdyError(f"a block of {count} headers")
    headers: dict[str, str] = {}
    for _ in range(count):
        name, position = _text(block, position)
        value, position = _text(block, position)
        if not name or name != name.lower() or name in headers:
            raise SpdyError(f"a header named {name[:64]!r}, which is empty, not in lower case, or there already")
        headers[name] = value
    if position != len(block):
        raise SpdyError("bytes after a block of headers")
    return headers


def _text(block: bytes, position: int) -> tuple[str, int]:
    start = position + 4
    end = start + _number(block, position)
    if end > len(block):
        raise SpdyError("a block of headers that breaks off")
    return block[start:end].decode("latin-1"), end


def _number(payload: bytes, position: int) -> int:
    if position + 4 > len(payload):
        raise SpdyError("a frame that breaks off")
    return int.from_bytes(payload[position : position + 4], "big")
