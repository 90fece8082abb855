"""Threads for compression and for hashing: they let go of the interpreter while they work."""

import hashlib
import os
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Thread

from pyctrd.diff.compression import CHUNK, Compressor

# Chunks that wait for each of the two readers.
_DEPTH = 4


class _Channel:
    """Hands chunks from one thread to another, a few at most; None is the end.

    Two queues that are written in C cost a fraction of queue.Queue, whose waiting is Python code under the lock that
    all threads of the interpreter share.
    """

    def __init__(self) -> None:
        self._chunks: SimpleQueue[bytes | None] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(_DEPTH):
            self._room.put(None)

    def put(self, chunk: bytes | None) -> None:
        """Pass a chunk on, once there is room for it."""
        self._room.get()
        self._chunks.put(chunk)

    def __iter__(self) -> Iterator[bytes]:
        """Yield chunks until the end."""
        while (chunk := self._chunks.get()) is not None:
            self._room.put(None)
            yield chunk


class Pipeline:
    """Iterates over chunks that a thread gets from a source while another one hashes them."""

    def __init__(self, source: Iterator[bytes]) -> None:
        """Start on `source`, which is only ever used in one thread."""
        self._source = source
        self._chunks = _Channel()
        self._unhashed = _Channel()
        self._error: Exception | None = None
        self._sha256 = hashlib.sha256()
        self._size = 0
        self._hasher = Thread(target=self._hash, daemon=True)
        self._hasher.start()
        Thread(target=self._produce, daemon=True).start()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the chunks. Raises what the source raises."""
        yield from self._chunks
        if self._error is not None:
            raise self._error

    def digest(self) -> tuple[str, int]:
        """Return digest and size in bytes of all chunks, once they have been iterated over."""
        self._hasher.join()
        return f"sha256:{self._sha256.hexdigest()}", self._size

    def _produce(self) -> None:
        try:
            for chunk in self._source:
                self._unhashed.put(chunk)
                self._chunks.put(chunk)
        except Exception as error:
            self._error = error
        self._unhashed.put(None)
        self._chunks.put(None)

    def _hash(self) -> None:
        for chunk in self._unhashed:
            self._sha256.update(chunk)
            self._size += len(chunk)


class Sink:
    """Takes an archive in pieces, hashes it in one thread, and compresses and writes it in another one."""

    def __init__(self, compressor: Compressor, out_fd: int) -> None:
        """Write to `out_fd` (borrowed)."""
        self._compressor, self._out_fd = compressor, out_fd
        self._pieces: list[bytes] = []
        self._pending = 0
        self._unhashed = _Channel()
        self._unwritten = _Channel()
        self._sha256 = hashlib.sha256()
        self._size = 0
        self._error: OSError | None = None
        self._threads = [Thread(target=target, daemon=True) for target in (self._hash, self._compress)]
        for thread in self._threads:
            thread.start()

    def write(self, data: bytes) -> None:
        """Take a piece. Raises OSError if an earlier one could not be written."""
        self._pieces.append(data)
        self._pending += len(data)
        if self._pending >= CHUNK:
            self._pass_on()

    def finish(self) -> tuple[str, int]:
        """Write what is left; return digest and size of the uncompressed archive. Raises OSError."""
        self._pass_on()
        self._unhashed.put(None)
        self._unwritten.put(None)
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error
        return f"sha256:{self._sha256.hexdigest()}", self._size

    def _pass_on(self) -> None:
        if self._error is not None:
            raise self._error
        chunk = b"".join(self._pieces)
        self._pieces, self._pending = [], 0
        self._size += len(chunk)
        self._unhashed.put(chunk)
        self._unwritten.put(chunk)

    def _hash(self) -> None:
        for chunk in self._unhashed:
            self._sha256.update(chunk)

    def _compress(self) -> None:
        for chunk in self._unwritten:
            self._send(self._compressor.compress(chunk))
        self._send(self._compressor.flush())

    def _send(self, data: bytes) -> None:
        """Write all of `data`; after an error, nothing, so that whoever puts chunks into the queue never hangs."""
        view = memoryview(data)
        try:
            while view and self._error is None:
                view = view[os.write(self._out_fd, view) :]
        except OSError as error:
            self._error = error
