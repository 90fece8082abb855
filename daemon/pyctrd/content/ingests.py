"""Ingests: blobs that are being written, kept over restarts, hashed again when resumed.

    <root>/ingest/<sha256 of namespace and ref>/data

Size and time of the last write are the file's own; total, expected digest and start are a row.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pyctrd.core.digests import HEX_LENGTHS, Digest

_CHUNK: Final = 1 << 20
_WRITEBACK: Final = 8 << 20  # bytes between hints to the kernel


class IngestFile:
    """The bytes of one ingest, with their hash; not thread-safe."""

    def __init__(self, directory: Path, algorithm: str) -> None:
        """Open the file, made if it is not there, and hash what it has."""
        directory.mkdir(exist_ok=True, mode=0o700)
        self.path = directory / "data"
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self.offset = self._hinted = os.fstat(self._fd).st_size
        self._hash = hash_file(self._fd, algorithm)

    def append(self, data: bytes | memoryview) -> None:
        """Add all of `data`. Raises OSError, ENOSPC or EDQUOT for a full disk: what was written then counts."""
        rest = memoryview(data)
        while rest:
            written = os.write(self._fd, rest)
            self._hash.update(rest[:written])
            self.offset += written
            rest = rest[written:]
        if self.offset - self._hinted >= _WRITEBACK:
            # Starts writing to disk now, while more is still arriving, so that fsync finds little left.
            os.posix_fadvise(self._fd, self._hinted, self.offset - self._hinted, os.POSIX_FADV_DONTNEED)
            self._hinted = self.offset

    def truncate(self) -> None:
        """Start over."""
        os.ftruncate(self._fd, 0)
        self.offset = self._hinted = 0
        self._hash = hashlib.new(self._hash.name)

    def digest(self, algorithm: str = "") -> Digest:
        """Return the digest of what is there, by `algorithm` if that is another one than the ingest's own."""
        if algorithm and algorithm != self._hash.name and algorithm in HEX_LENGTHS:
            self._hash = hash_file(self._fd, algorithm)
        return Digest(f"{self._hash.name}:{self._hash.hexdigest()}")

    def updated_at(self) -> datetime:
        """Return the time of the last write."""
        return datetime.fromtimestamp(os.fstat(self._fd).st_mtime, UTC)

    def seal(self) -> None:
        """Make the file read-only and durable."""
        os.fchmod(self._fd, 0o444)
        os.fsync(self._fd)

    def close(self) -> None:
        """Let go of the file; its bytes stay."""
        os.close(self._fd)


class Ingests:
    """The directories of all ingests."""

    def __init__(self, root: Path) -> None:
        """Own `root`/ingest."""
        self._root = root / "ingest"
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def open(self, ns: str, ref: str, algorithm: str) -> IngestFile:
        """Open an ingest, new or begun."""
        return IngestFile(self.directory(ns, ref), algorithm)

    def directory(self, ns: str, ref: str) -> Path:
        """Return the ingest's directory; refs are free texts, so their hash names it."""
        return self._root / hashlib.sha256(f"{ns}/{ref}".encode()).hexdigest()

    def progress(self, ns: str, ref: str) -> tuple[int, datetime | None]:
        """Return the bytes that are there and the time of the last write, None if nothing has been written."""
        try:
            stat = (self.directory(ns, ref) / "data").stat()
        except FileNotFoundError:
            return 0, None
        return stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC)

    def remove(self, directory: Path) -> None:
        """Delete an ingest's directory, if it is there."""
        (directory / "data").unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            directory.rmdir()

    def __iter__(self) -> Iterator[Path]:
        """Yield all directories."""
        with os.scandir(self._root) as entries:
            yield from [Path(entry.path) for entry in entries]


def hash_file(fd: int, algorithm: str) -> "hashlib._Hash":
    """Return the hash of a whole file, read from its start without moving its offset."""
    result, at = hashlib.new(algorithm), 0
    while chunk := os.pread(fd, _CHUNK, at):
        result.update(chunk)
        at += len(chunk)
    return result
