"""Header blocks: what we send, and what servers may answer."""

import pytest

from pyctr import hpack
from pyctr.hpack import HeaderError


def test_what_we_encode_we_can_decode() -> None:
    long = "v" * 1000
    block = hpack.encode([("grpc-status", "0"), ("x-long", long), ("x-empty", "")])
    assert hpack.decode(block) == {"grpc-status": "0", "x-long": long, "x-empty": ""}


def test_entries_of_the_static_table_count_only_as_status() -> None:
    # :status 200 as an index, content-type (31) with a literal value, a size update to 0 in front.
    block = b"\x20\x88\x0f\x10" + b"\x10application/grpc"
    assert hpack.decode(block) == {":status": "200"}


@pytest.mark.parametrize(
    ("coded", "text"),
    [
        ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),  # RFC 7541 C.4.1
        ("a8eb10649cbf", "no-cache"),  # C.4.2
        ("d07abe941054d444a8200595040b8166e082a62d1bff", "Mon, 21 Oct 2013 20:13:21 GMT"),  # C.6.1
        ("9d29ad171863c78f0b97c8e9ae82ae43d3", "https://www.example.com"),  # C.6.1
    ],
)
def test_huffman_strings_of_the_rfc(coded: str, text: str) -> None:
    data = bytes.fromhex(coded)
    block = b"\x00\x01x" + bytes([0x80 | len(data)]) + data
    assert hpack.decode(block) == {"x": text}


@pytest.mark.parametrize("block", [b"\x00", b"\x00\x05ab", b"\x00\x01x\x7f", b"\x00\x01x\x84\xff\xff\xff\xff"])
def test_damaged_blocks_are_refused(block: bytes) -> None:
    with pytest.raises(HeaderError):
        hpack.decode(block)
