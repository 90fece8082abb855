"""Reading tar archives that nobody vouches for: linear, capped, no seeking, nothing written.

Understood: v7, ustar, star, GNU (long names, base-256 numbers, old sparse files) and PAX (extended
headers, sparse files 0.0, 0.1 and 1.0). Names and links are bytes, exactly as the archive has them.
The standard library's reader is not used: it is slow, and its history of endless loops and of
negative sizes is long (CVE-2024-6232, CVE-2025-8194).

Runs in the worker process, so it imports next to nothing.

Sources: POSIX.1-2017 pax, "ustar Interchange Format"; GNU tar manual, "Tar Internals"; tar(5).
"""

import struct
from collections.abc import Iterator
from zlib import adler32

from pyctrd.diff.errors import ArchiveError
from pyctrd.diff.numbers import decimal, octal
from pyctrd.diff.pax import XATTR, parse_pax, parse_time
from pyctrd.diff.sparse import MAX_SEGMENTS, Segments, checked, parse_map, parse_segments

BLOCK = 512

# Longest long name, long link or extended header, in bytes, as in Go's archive/tar.
MAX_SPECIAL = 1 << 20
# (uid_t) -1 means "leave it" to chown(2).
MAX_ID = (1 << 32) - 2

REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0123456"
_CONTIGUOUS, _V7_REGULAR, _GNU_SPARSE, _GNU_NAME, _GNU_LINK, _PAX, _PAX_GLOBAL = b"7\0SLKxg"
_KNOWN = frozenset(b"0123456")
_WITHOUT_CONTENT = frozenset((HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO))

#                        name mode+uid+gid size mtime checksum  link magic names major minor prefix
_HEADER = struct.Struct("100s 24s          12s  12s   8s    x   100s 8s    64x   8s    8s    155s   12x")
_TYPE_FLAG = 156
_ZEROS = bytes(BLOCK)
_ADLER_PRIME = 65521
_CACHE_SIZE = 4096


class Entry:
    """One member: `kind` is a type flag as a number, times are ns since 1970, sizes bytes.

    `size` is how much content follows in the archive; a sparse file is `real_size` long and has
    `segments` of (offset, size) whose content that is.
    """

    __slots__ = (
        "atime_ns", "gid", "kind", "link", "major", "minor", "mode", "mtime_ns", "name", "real_size", "segments",
        "size", "uid", "xattrs",
    )  # fmt: skip

    name: bytes
    link: bytes
    kind: int
    mode: int
    uid: int
    gid: int
    size: int
    real_size: int
    mtime_ns: int
    atime_ns: int
    major: int
    minor: int
    xattrs: dict[bytes, bytes] | None
    segments: Segments | None


class ByteStream:
    """Chunks of bytes, seen as one stream."""

    __slots__ = ("_at", "_chunk", "_chunks", "_end", "_view")

    def __init__(self, chunks: Iterator[bytes]) -> None:
        """Read what `chunks` yields; none of them may be empty."""
        self._chunks = chunks
        self._chunk, self._view, self._at, self._end = b"", memoryview(b""), 0, 0

    def _refill(self) -> bool:
        """Go on to the next chunk once this one is used up; return whether there is one."""
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        self._chunk, self._view, self._at, self._end = chunk, memoryview(chunk), 0, len(chunk)
        return True

    def block(self) -> bytes | None:
        """Return the next 512 bytes, or None at the end. Raises ArchiveError if fewer are left."""
        at = self._at
        end = at + BLOCK
        if end <= self._end:
            self._at = end
            return self._chunk[at:end]
        if at == self._end and not self._refill():
            return None
        return self.take(BLOCK)

    def take(self, size: int) -> bytes:
        """Return exactly `size` bytes. Raises ArchiveError if fewer are left."""
        return b"".join(self.pieces(size))

    def piece(self, size: int) -> bytes | memoryview:
        """Return exactly `size` bytes, not copied where possible. Raises ArchiveError if fewer are left."""
        at = self._at
        end = at + size
        if end <= self._end:
            self._at = end
            return self._view[at:end]
        return self.take(size)

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Yield the next `size` bytes in pieces. Raises ArchiveError if fewer are left."""
        while size:
            at = self._at
            if at == self._end:
                if not self._refill():
                    raise ArchiveError("the archive is cut short")
                continue
            piece = self._view[at : at + size]
            self._at = at + len(piece)
            size -= len(piece)
            yield piece

    def skip(self, size: int) -> None:
        """Pass over `size` bytes. Raises ArchiveError if fewer are left."""
        end = self._at + size
        if end <= self._end:
            self._at = end
            return
        for _ in self.pieces(size):
            pass

    def drain(self) -> None:
        """Read to the end."""
        while self._refill():
            pass
        self._at = self._end


class TarReader:
    """Iterates over an archive's entries; ask for an entry's content before asking for the next one."""

    def __init__(self, stream: ByteStream) -> None:
        """Read from `stream`, which is left behind the end-of-archive marker."""
        self._stream = stream
        self._left = 0
        self._padding = 0
        self._ids: dict[bytes, tuple[int, int, int]] = {}
        self._times: dict[bytes, int] = {}

    def __iter__(self) -> Iterator[Entry]:
        """Yield entries until two blocks of zeros or the end. Raises ArchiveError for anything else."""
        pax: dict[bytes, bytes] = {}
        long_name: bytes | None = None
        long_link: bytes | None = None
        while (header := self._next_header()) is not None:
            fields = _HEADER.unpack(header)
            _check_sum(header, fields[4])
            kind = header[_TYPE_FLAG]
            if kind == _PAX:
                pax = parse_pax(self._special(fields[2]))
            elif kind == _PAX_GLOBAL:
                self._special(fields[2])  # A comment by git and the like; containerd ignores it too.
            elif kind == _GNU_NAME:
                long_name = _text(self._special(fields[2]))
            elif kind == _GNU_LINK:
                long_link = _text(self._special(fields[2]))
            else:
                yield self._entry(header, fields, pax, long_name, long_link)
                pax, long_name, long_link = {}, None, None
        if pax or long_name is not None or long_link is not None:
            raise ArchiveError("the archive ends after an extended header")

    def content(self) -> Iterator[memoryview]:
        """Yield the content of the entry that was returned last, or what is left of it, in pieces."""
        size, self._left = self._left, 0
        return self._stream.pieces(size)

    def whole(self) -> bytes | memoryview:
        """Return the content of the entry that was returned last at once; for small ones."""
        size, self._left = self._left, 0
        return self._stream.piece(size)

    def part(self, size: int) -> Iterator[memoryview]:
        """Yield the next `size` bytes of that content, of which as many must be left."""
        self._left -= size
        return self._stream.pieces(size)

    def _next_header(self) -> bytes | None:
        """Return the next header block, or None at the end of the archive."""
        skip = self._left + self._padding
        if skip:
            self._stream.skip(skip)
            self._left = self._padding = 0
        header = self._stream.block()
        if header != _ZEROS:
            return header
        if self._stream.block() not in (_ZEROS, None):
            raise ArchiveError("a single block of zeros is followed by something else")
        return None

    def _special(self, field: bytes) -> bytes:
        """Return the content of an entry that describes the next one."""
        size = octal(field, "size")
        if size > MAX_SPECIAL:
            raise ArchiveError(f"an extended header of {size} bytes; at most {MAX_SPECIAL} are read")
        data = self._stream.take(size)
        self._stream.skip(-size % BLOCK)
        return data

    def _entry(
        self, header: bytes, fields: tuple[bytes, ...], pax: dict[bytes, bytes], name: bytes | None, link: bytes | None
    ) -> Entry:
        """Return the entry of `header` with what came before it, and get ready for its content."""
        entry = Entry()
        entry.name = _name(header, fields) if name is None else name
        entry.link = fields[5].split(b"\0", 1)[0] if link is None else link
        entry.kind = _kind(header[_TYPE_FLAG], entry.name)
        entry.mode, entry.uid, entry.gid = self._ids.get(fields[1]) or self._parse_ids(fields[1])
        entry.size = octal(fields[2], "size")
        mtime = self._times.get(fields[3])
        entry.mtime_ns = self._parse_mtime(fields[3]) if mtime is None else mtime
        entry.atime_ns = entry.mtime_ns
        entry.major = entry.minor = 0
        entry.xattrs = entry.segments = None
        if entry.kind in (CHARACTER, BLOCK_DEVICE):
            entry.major, entry.minor = octal(fields[7], "device number"), octal(fields[8], "device number")
        if pax:
            _apply_pax(entry, pax)
        if entry.kind in _WITHOUT_CONTENT:
            entry.size = 0
        self._left, self._padding = entry.size, -entry.size % BLOCK
        entry.real_size = entry.size
        if header[_TYPE_FLAG] == _GNU_SPARSE:
            self._read_old_sparse(entry, header)
        elif entry.kind == REGULAR and pax:
            self._read_pax_sparse(entry, pax)
        return entry

    def _parse_ids(self, field: bytes) -> tuple[int, int, int]:
        """Return mode, uid and gid; remembered, since a layer has few different ones."""
        mode = octal(field[:8], "mode")
        uid, gid = (octal(field[8:16], "uid"), octal(field[16:], "gid"))
        if uid > MAX_ID or gid > MAX_ID:
            raise ArchiveError(f"owner {uid}:{gid} is out of range")
        if len(self._ids) >= _CACHE_SIZE:
            self._ids.clear()
        ids = self._ids[field] = (mode & 0o7777, uid, gid)
        return ids

    def _parse_mtime(self, field: bytes) -> int:
        """Return the time in ns; remembered likewise. Only times may be negative."""
        negative = field[0] == 0xFF
        seconds = int.from_bytes(field, "big", signed=True) if negative else octal(field, "time")
        if len(self._times) >= _CACHE_SIZE:
            self._times.clear()
        mtime = self._times[field] = seconds * 10**9
        return mtime

    def _read_old_sparse(self, entry: Entry, header: bytes) -> None:
        """Read GNU's old sparse map: four segments in the header, 21 in each block that follows it."""
        segments: Segments = []
        more = parse_segments(header[386:482], segments) and header[482]
        entry.real_size = octal(header[483:495], "size of a sparse file")
        while more:
            block = self._stream.take(BLOCK)
            more = parse_segments(block[:504], segments) and block[504]
        entry.segments = checked(segments, entry.real_size, entry.size)

    def _read_pax_sparse(self, entry: Entry, pax: dict[bytes, bytes]) -> None:
        """Read the map of a sparse file as GNU tar writes it into PAX archives, if this is one."""
        version = pax.get(b"GNU.sparse.major"), pax.get(b"GNU.sparse.minor")
        if version == (b"1", b"0"):
            entry.real_size = decimal(pax.get(b"GNU.sparse.realsize", b""), "GNU.sparse.realsize")
            segments = self._read_map(entry)
        elif b"GNU.sparse.map" in pax and version in ((None, None), (b"0", b"0"), (b"0", b"1")):
            entry.real_size = decimal(pax.get(b"GNU.sparse.size", b""), "GNU.sparse.size")
            segments = parse_map(pax[b"GNU.sparse.map"].split(b","))
        else:
            return
        entry.name = pax.get(b"GNU.sparse.name", entry.name)
        entry.segments = checked(segments, entry.real_size, entry.size)

    def _read_map(self, entry: Entry) -> Segments:
        """Read the map of format 1.0: decimal lines at the start of the content, padded to a block."""
        numbers: list[bytes] = []
        rest, wanted = b"", 1
        while len(numbers) < wanted:
            if self._left < BLOCK or len(rest) > 20:
                raise ArchiveError("the map of a sparse file is damaged")
            *lines, rest = (rest + b"".join(self.part(BLOCK))).split(b"\n")
            if not numbers and lines:
                count = decimal(lines[0], "number of segments")
                if count > MAX_SEGMENTS:
                    raise ArchiveError(f"a sparse file of {count} segments; at most {MAX_SEGMENTS} are read")
                wanted = 1 + 2 * count
            numbers += lines
        entry.size = self._left
        return parse_map(numbers[1:wanted])


def _check_sum(header: bytes, field: bytes) -> None:
    """Raise ArchiveError unless the header's bytes add up to what `field` says.

    The low half of Adler-32 is the sum modulo a prime, and much faster than sum(): the true sum,
    below 2**17, differs from it by the prime at most twice.
    """
    stored = octal(field, "checksum")
    total = (adler32(header) & 0xFFFF) - 1 - sum(field) + 8 * 0x20
    if (total - stored) % _ADLER_PRIME:
        # Ancient writers added signed characters.
        signed = sum(header) - sum(field) + 8 * 0x20 - 256 * sum(byte >> 7 for byte in header)
        if signed != stored:
            raise ArchiveError("a header's checksum is wrong")


def _text(data: bytes) -> bytes:
    """Return `data` up to its first NUL."""
    return data.split(b"\0", 1)[0]


def _name(header: bytes, fields: tuple[bytes, ...]) -> bytes:
    """Return the name with the prefix that ustar and star keep apart from it."""
    name = fields[0].split(b"\0", 1)[0]
    if fields[6] == b"ustar\x0000":
        # star has times behind a shorter prefix.
        prefix = fields[9][:131] if header[508:512] == b"tar\0" else fields[9]
        if prefix[0]:
            return prefix.split(b"\0", 1)[0] + b"/" + name
    return name


def _kind(flag: int, name: bytes) -> int:
    """Return what an entry with this type flag is. Raises ArchiveError for one that nobody can unpack."""
    if flag in _KNOWN:
        return flag
    if flag == _V7_REGULAR:
        return DIRECTORY if name.endswith(b"/") else REGULAR
    if flag in (_CONTIGUOUS, _GNU_SPARSE):
        return REGULAR
    raise ArchiveError(f"entry {name[:200].decode(errors='replace')!r} is of unknown type {bytes([flag])!r}")


def _apply_pax(entry: Entry, pax: dict[bytes, bytes]) -> None:
    """Let extended header records replace what the header says."""
    entry.name = pax.get(b"path", entry.name)
    entry.link = pax.get(b"linkpath", entry.link)
    if b"size" in pax:
        entry.size = decimal(pax[b"size"], "size")
    for key in ("uid", "gid"):
        if key.encode() in pax:
            number = decimal(pax[key.encode()], key)
            if number > MAX_ID:
                raise ArchiveError(f"{key} {number} is out of range")
            setattr(entry, key, number)
    if b"mtime" in pax:
        entry.mtime_ns = entry.atime_ns = parse_time(pax[b"mtime"])
    if b"atime" in pax:
        entry.atime_ns = parse_time(pax[b"atime"])
    xattrs = {key[len(XATTR) :]: value for key, value in pax.items() if key.startswith(XATTR)}
    entry.xattrs = xattrs or None
