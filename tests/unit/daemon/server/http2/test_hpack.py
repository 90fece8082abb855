"""Header compression, by the examples of its specification and by what it must refuse."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyctrd.server.http2.hpack import MAX_FIELDS_SIZE, TABLE_SIZE, Decoder, Fields, HeaderError, encode

_NAMES = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=300)
_VALUES = st.text(st.characters(max_codepoint=255), max_size=300)

_FIRST = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")]
_SECOND = [*_FIRST, ("cache-control", "no-cache")]
_THIRD = [
    *[(":method", "GET"), (":scheme", "https"), (":path", "/index.html"), (":authority", "www.example.com")],
    ("custom-key", "custom-value"),
]


@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param(
            [
                "828684410f7777772e6578616d706c652e636f6d",
                "828684be58086e6f2d6361636865",
                "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
            ],
            id="C.3, without Huffman coding",
        ),
        pytest.param(
            [
                "828684418cf1e3c2e5f23a6ba0ab90f4ff",
                "828684be5886a8eb10649cbf",
                "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
            ],
            id="C.4, with Huffman coding",
        ),
    ],
)
def test_requests_of_the_specification(blocks: list[str]) -> None:
    decoder = Decoder()

    assert [decoder.decode(bytes.fromhex(block)) for block in blocks] == [_FIRST, _SECOND, _THIRD]


@pytest.mark.parametrize(
    ("block", "fields"),
    [
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", [("custom-key", "custom-header")]),  # C.2.1
        ("040c2f73616d706c652f70617468", [(":path", "/sample/path")]),  # C.2.2
        ("100870617373776f726406736563726574", [("password", "secret")]),  # C.2.3, never to be indexed
        ("", []),
    ],
)
def test_forms_of_a_field(block: str, fields: Fields) -> None:
    assert Decoder().decode(bytes.fromhex(block)) == fields


def test_the_oldest_fields_make_room() -> None:
    decoder = Decoder()
    large = "v" * (TABLE_SIZE // 2)
    for name in ("a", "b", "c"):  # two of them are more than the table holds
        decoder.decode(b"\x40" + encode([(name, large)])[1:])

    assert decoder.decode(b"\xbe") == [("c", large)]
    with pytest.raises(HeaderError, match="63"):
        decoder.decode(b"\xbf")


def test_a_smaller_table_forgets() -> None:
    decoder = Decoder()
    decoder.decode(bytes.fromhex("400a637573746f6d2d6b65790d637573746f6d2d686561646572"))

    assert decoder.decode(b"\x20\x82") == [(":method", "GET")]
    with pytest.raises(HeaderError, match="62"):
        decoder.decode(b"\xbe")


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (b"\x80", "the number 0"),
        (b"\xbe", "the number 62"),
        (b"\x00", "missing"),
        (b"\x00\x03ab", "does not end"),
        (b"\x00\x01a", "missing"),
        (b"\xff\x80", "does not end"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff", "does not end"),
        (b"\x3f\xe2\x1f", "4097 bytes"),
        (b"\x00\x82\xff\xff\x00", "within a code"),  # padding of more than seven bits
        (b"\x00\x81\x00\x00", "within a code"),  # padding of zeros
        (b"\x00\x84\xff\xff\xff\xff\x00", "before its end"),
        (b"\x00\x01a\x7f\xff\xff\x7f", "does not end"),
    ],
)
def test_damaged_blocks_are_refused(block: bytes, reason: str) -> None:
    with pytest.raises(HeaderError, match=reason):
        Decoder().decode(block)


def test_few_bytes_cannot_stand_for_many() -> None:
    decoder = Decoder()
    decoder.decode(b"\x40" + encode([("a", "v" * 4000)])[1:])

    with pytest.raises(HeaderError, match="more than"):
        decoder.decode(b"\xbe" * (MAX_FIELDS_SIZE // 4000 + 1))


@given(st.lists(st.tuples(_NAMES, _VALUES), max_size=20))
def test_what_is_encoded_is_decoded(fields: Fields) -> None:
    assert Decoder().decode(encode(fields)) == fields


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(block: bytes) -> None:
    with suppress(HeaderError):
        Decoder().decode(block)
