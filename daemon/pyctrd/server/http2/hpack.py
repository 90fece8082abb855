"""Header compression: blocks to fields, and fields to blocks. Source: RFC 7541.

What we send is never compressed: it would take longer than it saves on a local socket.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final, TypeAlias

from pyctrd.server.http2.hpack_tables import END_OF_STRING, HUFFMAN_CODES, STATIC_TABLE

Fields: TypeAlias = list[tuple[str, str]]

TABLE_SIZE: Final = 4096  # bytes; the size that a peer may assume before it is told another
MAX_FIELDS_SIZE: Final = 64 << 10  # bytes of a list of fields, as the RFC counts them

_FIELD_OVERHEAD: Final = 32  # bytes that a field counts for beside its own
_STATIC_COUNT: Final = len(STATIC_TABLE)
_MAX_INTEGER_BYTES: Final = 5


class HeaderError(Exception):
    """A block that cannot be decoded: the connection has no future, as both ends disagree on its table."""


class Decoder:
    """Decodes the blocks of one connection, in their order."""

    def __init__(self) -> None:
        """Start with an empty table."""
        self._table: deque[tuple[str, str]] = deque()  # the newest first
        self._size = 0
        self._limit = TABLE_SIZE

    def decode(self, block: bytes) -> Fields:
        """Return the fields of a block in their order. Raises HeaderError."""
        fields: Fields = []
        position, end, total = 0, len(block), 0
        while position < end:
            first = block[position]
            if first & 0x80:
                index, position = _integer(block, position, 0x7F)
                field = self._field(index)
            elif first & 0xE0 == 0x20:
                size, position = _integer(block, position, 0x1F)
                self._resize(size)
                continue
            else:
                keep = first & 0x40
                index, position = _integer(block, position, 0x3F if keep else 0x0F)
                name, position = (self._field(index)[0], position) if index else _string(block, position)
                value, position = _string(block, position)
                field = name, value
                if keep:
                    self._add(field)
            fields.append(field)
            total += _size_of(field)
            if total > MAX_FIELDS_SIZE:
                raise HeaderError(f"more than {MAX_FIELDS_SIZE} bytes of headers")
        return fields

    def _field(self, index: int) -> tuple[str, str]:
        if 0 < index <= _STATIC_COUNT:
            return STATIC_TABLE[index - 1]
        position = index - _STATIC_COUNT - 1
        if not 0 <= position < len(self._table):
            raise HeaderError(f"no field has the number {index}")
        return self._table[position]

    def _add(self, field: tuple[str, str]) -> None:
        self._table.appendleft(field)
        self._size += _size_of(field)
        self._shrink()

    def _resize(self, limit: int) -> None:
        if limit > TABLE_SIZE:
            raise HeaderError(f"a table of {limit} bytes, where {TABLE_SIZE} are allowed")
        self._limit = limit
        self._shrink()

    def _shrink(self) -> None:
        while self._size > self._limit:
            self._size -= _size_of(self._table.pop())


def encode(fields: Iterable[tuple[str, str]]) -> bytes:
    """Return a block that any decoder reads, whatever its table holds, and that leaves the table as it is."""
    return b"".join(b"\0" + _literal(name) + _literal(value) for name, value in fields)


def _size_of(field: tuple[str, str]) -> int:
    return len(field[0]) + len(field[1]) + _FIELD_OVERHEAD


def _literal(text: str) -> bytes:
    data = text.encode("latin-1")
    if len(data) < 0x7F:
        return bytes((len(data),)) + data
    length, rest = bytearray(b"\x7f"), len(data) - 0x7F
    while rest >= 0x80:
        length.append(rest & 0x7F | 0x80)
        rest >>= 7
    length.append(rest)
    return bytes(length) + data


def _integer(block: bytes, position: int, mask: int) -> tuple[int, int]:
    """Return the number whose first bits are those of `mask`, and the position behind it."""
    value = block[position] & mask
    position += 1
    if value < mask:
        return value, position
    for shift in range(0, 7 * _MAX_INTEGER_BYTES, 7):
        if position == len(block):
            break
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise HeaderError("a number that does not end")


def _string(block: bytes, position: int) -> tuple[str, int]:
    """Return the string at a position, and the position behind it."""
    if position == len(block):
        raise HeaderError("a string is missing")
    is_huffman = block[position] & 0x80
    length, position = _integer(block, position, 0x7F)
    end = position + length
    if end > len(block):
        raise HeaderError("a string that does not end")
    data = block[position:end]
    return (_decode_huffman(data) if is_huffman else data).decode("latin-1"), end


def _decode_huffman(data: bytes) -> bytes:
    decoded = bytearray()
    code = length = 0
    for byte in data:
        for shift in range(7, -1, -1):
            code = code << 1 | byte >> shift & 1
            length += 1
            symbol = HUFFMAN_CODES.get((length, code))
            if symbol is not None:
                if symbol == END_OF_STRING:
                    raise HeaderError("a string ends before its end")
                decoded.append(symbol)
                code = length = 0
    # What is left is padding: less than a byte of the code that ends a string, all ones.
    if length > 7 or code != (1 << length) - 1:
        raise HeaderError("a string ends within a code")
    return bytes(decoded)
