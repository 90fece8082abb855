"""SPDY's frames: what is encoded is decoded however it is cut, and what is wrong ends there."""

import struct
import zlib
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyctrd.cri.streaming import spdy_frames as frames
from pyctrd.cri.streaming.spdy_frames import DICTIONARY, Decoder, Encoder, Flag, GoAwayStatus, ResetStatus, SpdyError

STREAM_IDS = st.integers(1, 2**31 - 1)
NAMES = st.text(st.characters(codec="latin-1"), min_size=1, max_size=40).map(str.lower).filter(lambda x: x == x.lower())
# Lower-casing latin-1 stays within it.
HEADERS = st.dictionaries(NAMES, st.text(st.characters(codec="latin-1"), max_size=200), max_size=8)
FLAGS = st.sampled_from(list(Flag))


def decode(pieces: Iterable[bytes]) -> list[frames.Frame]:
    decoder = Decoder()
    return [frame for piece in pieces for frame in decoder.feed(piece)]


def join(decoded: Iterable[frames.Frame]) -> list[frames.Frame]:
    """Return frames with the pieces of each data frame put together."""
    joined: list[frames.Frame] = []
    for frame in decoded:
        last = joined[-1] if joined else None
        if isinstance(frame, frames.Data) and isinstance(last, frames.Data) and not last.fin:
            joined[-1] = frames.Data(frame.stream_id, last.data + frame.data, frame.fin)
        else:
            joined.append(frame)
    return joined


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[frames.Frame]]:
    """Bytes of a connection, and what they say. Data frames end with FIN, so that they can be told apart."""
    encoder, sent, said = Encoder(), b"", list[frames.Frame]()
    for kind in draw(st.lists(st.sampled_from("sradpgh"), max_size=12)):
        stream_id = draw(STREAM_IDS)
        match kind:
            case "s" | "a" | "h":
                headers, flags = draw(HEADERS), draw(FLAGS)
                fin = flags is Flag.FIN
                if kind == "s":
                    sent += encoder.syn_stream(stream_id, headers, flags)
                    said.append(frames.SynStream(stream_id, headers, fin))
                elif kind == "a":
                    sent += encoder.syn_reply(stream_id, headers, flags)
                    said.append(frames.SynReply(stream_id, headers, fin))
                else:
                    sent += encoder.headers(stream_id, headers, flags)
                    said.append(frames.Headers(stream_id, headers, fin))
            case "r":
                sent += frames.reset(stream_id, ResetStatus.CANCEL)
                said.append(frames.Reset(stream_id, ResetStatus.CANCEL))
            case "d":
                payload = draw(st.binary(max_size=300))
                sent += frames.data(stream_id, payload, Flag.FIN)
                said.append(frames.Data(stream_id, payload, fin=True))
            case "p":
                sent += frames.ping(stream_id)
                said.append(frames.Ping(stream_id))
            case "g":
                sent += frames.go_away(stream_id, GoAwayStatus.OK)
                said.append(frames.GoAway(stream_id, GoAwayStatus.OK))
    return sent, said


@given(conversations(), st.lists(st.integers(1, 40), min_size=1))
def test_what_is_encoded_is_decoded_however_it_is_cut(
    conversation: tuple[bytes, list[frames.Frame]], sizes: list[int]
) -> None:
    sent, said = conversation
    pieces: list[bytes] = []
    position = 0
    while position < len(sent):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(sent[position : position + size])
        position += size

    assert join(decode(pieces)) == said


@given(st.binary(max_size=400))
def test_garbage_is_refused_or_is_frames_and_nothing_else(garbage: bytes) -> None:
    try:
        decoded = decode([garbage])
    except SpdyError:
        return
    assert sum(len(frame.data) for frame in decoded if isinstance(frame, frames.Data)) <= len(garbage)


def test_the_dictionary_is_the_specification_s() -> None:
    """zlib names the dictionary by its checksum; so does every SPDY/3 stream, in its third to sixth byte."""
    assert (len(DICTIONARY), zlib.adler32(DICTIONARY)) == (1423, 0xE3C6A7C2)
    assert Encoder().syn_reply(1, {})[12:18] == bytes.fromhex("78bbe3c6a7c2")


def test_a_frame_of_a_client_that_is_not_ours() -> None:
    """SYN_STREAM as the specification draws it, by hand."""
    block = struct.pack(">I", 1) + b"\0\0\0\x0astreamtype\0\0\0\x05stdin"
    compress = zlib.compressobj(9, zdict=DICTIONARY)
    compressed = compress.compress(block) + compress.flush(zlib.Z_SYNC_FLUSH)
    payload = b"\x00\x00\x00\x05" + b"\x00\x00\x00\x00" + b"\xe0\x00" + compressed
    frame = b"\x80\x03\x00\x01" + b"\x01" + len(payload).to_bytes(3, "big") + payload

    assert decode([frame]) == [frames.SynStream(5, {"streamtype": "stdin"}, fin=True)]


def test_settings_and_windows_are_passed_over() -> None:
    settings = b"\x80\x03\x00\x04\x00\x00\x00\x04\x00\x00\x00\x00"
    window = b"\x80\x03\x00\x09\x00\x00\x00\x08\x00\x00\x00\x01\x00\x00\x10\x00"

    assert decode([settings + window + frames.ping(1)]) == [frames.Ping(1)]


def syn_stream(block: bytes) -> bytes:
    """Return a frame with these headers, compressed."""
    compress = zlib.compressobj(zdict=DICTIONARY)
    payload = b"\0\0\0\1" + bytes(6) + compress.compress(block) + compress.flush(zlib.Z_SYNC_FLUSH)
    return b"\x80\x03\x00\x01\x00" + len(payload).to_bytes(3, "big") + payload


def block_of(headers: Mapping[str, str]) -> bytes:
    texts = [text.encode() for pair in headers.items() for text in pair]
    return struct.pack(">I", len(headers)) + b"".join(struct.pack(">I", len(text)) + text for text in texts)


@pytest.mark.parametrize(
    ("received", "complaint"),
    [
        (b"\x80\x02\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01", "version 2"),
        (b"\x80\x03\x00\x01\x00\x01\x00\x01", "a control frame of 65537 bytes"),
        (b"\x80\x03\x00\x06\x00\x00\x00\x03\x00\x00\x01", "breaks off"),
        (b"\x80\x03\x00\x01\x00\x00\x00\x04\x00\x00\x00\x01", "breaks off"),
        (b"\x80\x03\x00\x01\x00\x00\x00\x10" + bytes(16), "cannot be decompressed"),
        (syn_stream(struct.pack(">I", 2**32 - 1)), "a block of 4294967295 headers"),
        (syn_stream(struct.pack(">I", 129)), "a block of 129 headers"),
        (syn_stream(struct.pack(">II", 1, 2**32 - 1) + b"name"), "breaks off"),
        (syn_stream(block_of({"": "value"})), "a header named ''"),
        (syn_stream(block_of({"Name": "value"})), "a header named 'Name'"),
        (syn_stream(struct.pack(">I", 2) + block_of({"a": "1"})[4:] * 2), "there already"),
        (syn_stream(block_of({"a": "1"}) + b"more"), "bytes after"),
        (syn_stream(bytes(100_000)), "above 65536 bytes"),
        (syn_stream(bytes(50_000_000)), "above 65536 bytes"),
    ],
)
def test_what_is_wrong_is_named(received: bytes, complaint: str) -> None:
    with pytest.raises(SpdyError, match=complaint):
        decode([received])
