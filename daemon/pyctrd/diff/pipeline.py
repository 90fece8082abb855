"""A thread for decompression and one for hashing: both let go of the interpreter while they work."""

import hashlib
from collections.abc import Iterator
from queue import Queue
from threading import Thread

# Chunks that wait for each of the two readers.
_DEPTH = 8


class Pipeline:
    """Iterates over chunks that a thread gets from a source while another one hashes them."""

    def __init__(self, source: Iterator[bytes]) -> None:
        """Start on `source`, which is only ever used in one thread."""
        self._source = source
        self._chunks: Queue[bytes | None] = Queue(_DEPTH)
        self._unhashed: Queue[bytes | None] = Queue(_DEPTH)
        self._error: Exception | None = None
        self._sha256 = hashlib.sha256()
        self._size = 0
        self._hasher = Thread(target=self._hash, daemon=True)
        self._hasher.start()
        Thread(target=self._produce, daemon=True).start()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the chunks. Raises what the source raises."""
        while (chunk := self._chunks.get()) is not None:
            yield chunk
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
        while (chunk := self._unhashed.get()) is not None:
            self._sha256.update(chunk)
            self._size += len(chunk)
