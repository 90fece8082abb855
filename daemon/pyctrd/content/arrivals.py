"""Blobs that are there before their rows are: what is to be kept until then."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Arrivals:
    """Which blobs a row is on its way for; thread-safe."""

    def __init__(self) -> None:
        """None so far."""
        self._digests: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def holding(self, digest: str) -> Iterator[None]:
        """Keep the blob from `removing` until the block, which stores its row, is left."""
        with self._lock:
            self._digests[digest] += 1
        try:
            yield
        finally:
            with self._lock:
                self._digests[digest] -= 1
                self._digests += Counter()  # drops the zeros

    @contextmanager
    def removing(self, digest: str, is_used: Callable[[str], bool]) -> Iterator[bool]:
        """Yield whether no row for the blob is on its way or there; none begins to be until the block is left."""
        with self._lock:
            yield digest not in self._digests and not is_used(digest)
