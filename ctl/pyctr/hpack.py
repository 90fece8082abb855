"""Header blocks of HTTP/2, as far as a gRPC client needs them. No I/O.

We send every header as a literal and announce a dynamic table of size 0, so a peer can only answer
with literals and entries of the static table; of those a client reads nothing but `:status`.
Source: RFC 7541.
"""

from collections.abc import Iterable, Iterator
from typing import Final

# The Huffman code is canonical: codes count up within a length, lengths ascend. Header values of gRPC
# are printable ASCII (grpc-message is percent-encoded), so the codes past 19 bits never occur.
# Source: RFC 7541 appendix B.
_SYMBOLS: Final = {
    5: "012aceiost",
    6: " %-./3456789=A_bdfghlmnpru",
    7: ":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: "&*,;XZ",
    10: '!"()?',
    11: "'+|",
    12: "#>",
    13: "\0$@[]~",
    14: "^}",
    15: "<`{",
    19: "\\",
}
_STATUS_ENTRIES: Final = {8: "200", 9: "204", 10: "206", 11: "304", 12: "400", 13: "404", 14: "500"}


class HeaderError(Exception):
    """A header block that we cannot read: the connection is of no more use."""


def _codes() -> dict[tuple[int, int], str]:
    """Return (length in bits, code) → symbol."""
    codes: dict[tuple[int, int], str] = {}
    code = previous = 0
    for length, symbols in _SYMBOLS.items():
        code <<= length - previous
        previous = length
        for symbol in symbols:
            codes[length, code] = symbol
            code += 1
    return codes


def _huffman(data: bytes) -> str:
    """Decode a Huffman string; up to seven one bits at the end are padding."""
    codes = _codes()
    text: list[str] = []
    code = length = 0
    for byte in data:
        for shift in range(7, -1, -1):
            code = code << 1 | byte >> shift & 1
            length += 1
            symbol = codes.get((length, code))
            if symbol is not None:
                text.append(symbol)
                code = length = 0
            elif length > 19:
                raise HeaderError("unexpected Huffman code in a header")
    return "".join(text)


def _integer(block: bytes, at: int, prefix_bits: int) -> tuple[int, int]:
    """Return the integer that starts in the low `prefix_bits` of `block[at]`, and where it ends."""
    limit = (1 << prefix_bits) - 1
    value = block[at] & limit
    at += 1
    if value < limit:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _string(block: bytes, at: int) -> tuple[str, int]:
    """Return the string literal at `at`, and where it ends."""
    compressed = block[at] & 0x80
    length, at = _integer(block, at, 7)
    data = block[at : at + length]
    if len(data) != length:
        raise IndexError(at)
    return _huffman(data) if compressed else data.decode("latin-1"), at + length


def _fields(block: bytes) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(block):
        first = block[at]
        if first & 0x80:  # an entry of the static table
            index, at = _integer(block, at, 7)
            yield (":status", _STATUS_ENTRIES[index]) if index in _STATUS_ENTRIES else ("", "")
        elif first & 0xE0 == 0x20:  # a new size of the dynamic table: 0, as we announced
            _, at = _integer(block, at, 5)
        else:  # a literal, with incremental indexing (6 bits) or without (4 bits)
            index, at = _integer(block, at, 6 if first & 0x40 else 4)
            if index:
                name = ":status" if index in _STATUS_ENTRIES else ""
            else:
                name, at = _string(block, at)
            value, at = _string(block, at)
            yield name, value


def decode(block: bytes) -> dict[str, str]:
    """Return the headers of a complete block, those of the static table left out except `:status`.

    Raises HeaderError if the block is damaged.
    """
    try:
        headers = dict(_fields(block))
    except IndexError:
        raise HeaderError("a header block ends in the middle of a header") from None
    headers.pop("", None)
    return headers


def _literal(text: str) -> bytes:
    data = text.encode()
    if len(data) < 0x7F:
        return bytes([len(data)]) + data
    length = bytearray([0x7F])
    rest = len(data) - 0x7F
    while rest >= 0x80:
        length.append(rest & 0x7F | 0x80)
        rest >>= 7
    length.append(rest)
    return bytes(length) + data


def encode(headers: Iterable[tuple[str, str]]) -> bytes:
    """Return a block of literals without indexing and without compression."""
    return b"".join(b"\0" + _literal(name) + _literal(value) for name, value in headers)
