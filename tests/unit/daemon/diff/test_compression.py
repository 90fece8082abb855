"""Codecs: whole streams come out, damaged and oversized ones do not."""

import contextlib
import gzip
import os
import tempfile
from collections.abc import Iterator

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pyctrd.diff.compression import Compression, check_frames, compressor, decompressor, sniff
from pyctrd.diff.errors import ArchiveError, TooLarge

SKIPPABLE = b"\x50\x2a\x4d\x18\x03\0\0\0abc"


def unpacked(blob: bytes, compression: Compression, budget: int = 1 << 30) -> bytes:
    with tempfile.TemporaryFile() as file:
        file.write(blob)
        file.seek(0)
        return b"".join(decompressor(compression, file.fileno(), budget))


def packed(data: bytes, compression: Compression) -> bytes:
    codec = compressor(compression)
    return codec.compress(data[:10]) + codec.compress(data[10:]) + codec.flush()


@given(
    st.binary(max_size=5000),
    st.sampled_from((Compression.NONE, Compression.GZIP, Compression.ZSTD)),
    st.integers(1, 400),
)
def test_what_we_compress_comes_out_again(data: bytes, compression: Compression, times: int) -> None:
    """By the named codec and by sniffing, also where one chunk is not enough."""
    data *= times
    blob = packed(data, compression)
    assert unpacked(blob, compression) == data
    if compression is not Compression.NONE:
        assert unpacked(blob, Compression.SNIFF) == data


def test_several_members_and_frames() -> None:
    """Concatenated streams are one stream; padding of a gzip file and skippable frames of zstd are passed over."""
    assert unpacked(
        gzip.compress(b"a" * 9) + gzip.compress(b"") + gzip.compress(b"b") + bytes(99), Compression.GZIP
    ) == (b"a" * 9 + b"b")
    blob = SKIPPABLE + zstandard.compress(b"a" * 9) + SKIPPABLE + zstandard.compress(b"b") + SKIPPABLE
    assert unpacked(blob, Compression.ZSTD) == unpacked(blob, Compression.SNIFF) == b"a" * 9 + b"b"


@pytest.mark.parametrize(
    ("head", "compression"),
    [
        (b"\x1f\x8b\x08\0", Compression.GZIP),
        (b"\x28\xb5\x2f\xfd", Compression.ZSTD),
        (b"\x5f\x2a\x4d\x18", Compression.ZSTD),
        (b"etc/", Compression.NONE),
        (b"", Compression.NONE),
    ],
)
def test_sniffing(head: bytes, compression: Compression) -> None:
    """By the magic numbers that containerd knows."""
    assert sniff(head) is compression


def frames() -> Iterator[bytes]:
    noise = os.urandom(1000)
    yield zstandard.ZstdCompressor(write_checksum=True).compress(noise * 500)
    yield zstandard.ZstdCompressor(write_content_size=False).compress(bytes(300_000))
    stream = zstandard.ZstdCompressor().compressobj()
    yield stream.compress(noise * 300) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) + stream.flush()
    yield SKIPPABLE


def test_whole_zstd_frames_are_recognised_and_cut_ones_too() -> None:
    """With and without checksum, size, several blocks, runs; cut anywhere, they are refused."""
    for blob in frames():
        with tempfile.TemporaryFile() as file:
            file.write(blob)
            file.flush()
            check_frames(file.fileno())
            for size in {*range(1, min(len(blob), 40)), len(blob) // 2, len(blob) - 1}:
                file.truncate(size)
                with pytest.raises(ArchiveError):
                    check_frames(file.fileno())


@pytest.mark.parametrize("compression", [Compression.NONE, Compression.GZIP, Compression.ZSTD])
def test_a_budget(compression: Compression) -> None:
    """Exactly so many bytes and no more; nothing much beyond it is ever made."""
    blob = packed(bytes(3_000_000), compression)
    assert len(unpacked(blob, compression, 3_000_000)) == 3_000_000
    with pytest.raises(TooLarge, match="2999999 bytes"):
        unpacked(blob, compression, 2_999_999)


@given(st.binary(max_size=300), st.sampled_from((Compression.GZIP, Compression.ZSTD)), st.data())
def test_damage_is_an_archive_error(data: bytes, compression: Compression, choose: st.DataObject) -> None:
    """A changed byte gives an error or, in a header, no difference: never anything else."""
    blob = bytearray(packed(data, compression))
    blob[choose.draw(st.integers(0, len(blob) - 1))] ^= choose.draw(st.integers(1, 255))
    with contextlib.suppress(ArchiveError, TooLarge):
        unpacked(bytes(blob), compression, 1 << 20)
