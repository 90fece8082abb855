"""Taking the compression off a layer, in pieces of bounded size, and putting it on.

Codecs are imported by the function that needs them: the worker calls it before it locks itself in.
"""

import os
from collections.abc import Callable, Iterator
from enum import Enum

from pyctrd.diff.errors import ArchiveError, TooLarge

# Small enough for a cache, large enough that a chunk costs more than the hand-over between threads.
CHUNK = 512 << 10
_INPUT = 256 << 10
# Memory that a zstd frame may ask for, in bytes; zstd's own default limit.
_MAX_WINDOW = 1 << 27
_GZIP_LEVEL = 2
_ZSTD_LEVEL = 3


class Compression(Enum):
    """What a blob is compressed with. SNIFF: its first bytes say."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"
    SNIFF = "sniff"


def sniff(head: bytes) -> Compression:
    """Return the compression of a blob that starts with `head`, at least four bytes of it."""
    if head.startswith(b"\x1f\x8b\x08"):
        return Compression.GZIP
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
        return Compression.ZSTD
    return Compression.NONE


def decompressor(compression: Compression, fd: int, budget: int) -> Iterator[bytes]:
    """Return an iterator over the uncompressed bytes of the file `fd` (borrowed), from its start.

    It raises ArchiveError for damage and TooLarge after `budget` bytes.
    """
    if compression is Compression.SNIFF:
        compression = sniff(os.pread(fd, 4, 0))
    return _metered({Compression.GZIP: _gunzip, Compression.ZSTD: _unzstd}.get(compression, _read)(fd), budget)


def _metered(chunks: Iterator[bytes], budget: int) -> Iterator[bytes]:
    left = budget
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise TooLarge(f"uncompressed, the layer is larger than {budget} bytes, which is the limit for its blob")
        yield chunk


def _read(fd: int) -> Iterator[bytes]:
    while chunk := os.read(fd, CHUNK):
        yield chunk


def _gunzip(fd: int) -> Iterator[bytes]:
    """Decompress all members; zeros that pad the file are ignored, as by gzip(1)."""
    from isal.igzip_lib import DECOMP_GZIP, IgzipDecompressor, IsalError

    def members() -> Iterator[bytes]:
        data = os.read(fd, _INPUT)
        while data:
            decoder = IgzipDecompressor(flag=DECOMP_GZIP)
            while not decoder.eof:
                try:
                    chunk = decoder.decompress(data, CHUNK)
                except IsalError as error:  # type: ignore[misc]  # its stub takes the class for an instance
                    raise ArchiveError(f"gzip: {error}") from error
                if chunk:
                    yield chunk
                data = b""
                if decoder.needs_input and not decoder.eof:
                    data = os.read(fd, _INPUT)
                    if not data:
                        raise ArchiveError("gzip: the blob is cut short")
            data = decoder.unused_data
            while not data.strip(b"\0"):
                data = os.read(fd, _INPUT)
                if not data:
                    return

    return members()


def _unzstd(fd: int) -> Iterator[bytes]:
    import zstandard

    def frames() -> Iterator[bytes]:
        decoder = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        with (
            open(fd, "rb", buffering=0, closefd=False) as source,
            decoder.stream_reader(source, read_size=_INPUT, read_across_frames=True, closefd=False) as reader,
        ):
            try:
                while chunk := reader.read(CHUNK):
                    yield chunk
            except zstandard.ZstdError as error:
                raise ArchiveError(f"zstd: {error}") from error
        check_frames(fd)

    return frames()


def check_frames(fd: int) -> None:
    """Raise ArchiveError unless the file `fd` (borrowed) is a row of whole zstd frames.

    The decoder reports damage but takes a file that is cut short for one that ends; this follows the
    lengths of its blocks. Source: RFC 8878, section 3.1.
    """
    size, at = os.fstat(fd).st_size, 0

    def number(length: int) -> int:
        nonlocal at
        data = os.pread(fd, length, at)
        at += length
        if len(data) < length:
            raise ArchiveError("zstd: the blob is cut short")
        return int.from_bytes(data, "little")

    while at < size:
        if number(4) & 0xFFFFFFF0 == 0x184D2A50:  # a skippable frame
            length = number(4)  # which moves `at` itself
            at += length
        else:
            descriptor = number(1)
            single_segment = descriptor >> 5 & 1
            at += (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]  # window, dictionary
            at += (single_segment, 2, 4, 8)[descriptor >> 6]  # content size
            last = 0
            while not last:
                block = number(3)
                last = block & 1
                at += 1 if block >> 1 & 3 == 1 else block >> 3  # a run is one byte, repeated
            at += descriptor & 4  # checksum
    if at != size:
        raise ArchiveError("zstd: the blob is cut short")


class Compressor:
    """Something with `compress(data)` and `flush()`, as zlib has."""

    def __init__(self, compress: Callable[[bytes], bytes], flush: Callable[[], bytes]) -> None:
        """Keep both."""
        self.compress, self.flush = compress, flush


def compressor(compression: Compression) -> Compressor:
    """Return what compresses a new layer."""
    if compression is Compression.GZIP:
        from isal import isal_zlib

        gzip = isal_zlib.compressobj(_GZIP_LEVEL, wbits=31)
        return Compressor(gzip.compress, gzip.flush)
    if compression is Compression.ZSTD:
        import zstandard

        zstd = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compressobj()
        return Compressor(zstd.compress, zstd.flush)
    return Compressor(lambda data: data, lambda: b"")
