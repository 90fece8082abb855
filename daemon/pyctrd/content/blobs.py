"""Blob files: immutable, named by their digest, complete once they have their name.

<root>/blobs/<algorithm>/<hex>   0444
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from pyctr_wire.errors import NotFound
from pyctrd.content.arrivals import Arrivals
from pyctrd.core.digests import HEX_LENGTHS, Digest
from pyctrd.metadata.durable import fsync


class Blobs:
    """The files of all blobs; rows are somebody else's."""

    def __init__(self, root: Path) -> None:
        """Own `root`/blobs."""
        self._root = root / "blobs"
        for algorithm in HEX_LENGTHS:
            (self._root / algorithm).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._arrivals = Arrivals()

    def path(self, digest: str) -> Path:
        """Return where the blob's file is, if it is there."""
        algorithm, _, digits = digest.partition(":")
        return self._root / algorithm / digits

    def size(self, digest: str) -> int | None:
        """Return the size of the blob's file in bytes, None if there is none."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def open(self, digest: str) -> int:
        """Return a descriptor, the caller's to close. Raises NotFound if the file is not there."""
        try:
            return os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"content {digest}") from None

    def arriving(self, digest: str) -> AbstractContextManager[None]:
        """Keep the blob's file from `remove_unless` until the block, which stores its row, is left."""
        return self._arrivals.holding(digest)

    def place(self, data: Path, digest: str) -> None:
        """Give a finished, fsynced file its name, durably; it replaces an older one of the same digest.

        That one may be damaged; this one has just been verified.
        """
        target = self.path(digest)
        data.replace(target)
        fsync(target.parent)

    def remove_unless(self, digest: str, is_used: Callable[[str], bool]) -> int | None:
        """Delete the blob's file unless a row for it is on its way or there; return the bytes freed, else None."""
        with self._arrivals.removing(digest, is_used) as may_go:
            if not may_go:
                return None
            size = self.size(digest) or 0
            self.path(digest).unlink(missing_ok=True)
        return size

    def __iter__(self) -> Iterator[Digest]:
        """Yield the digests of all files, as the directories list them."""
        for algorithm, length in HEX_LENGTHS.items():
            with os.scandir(self._root / algorithm) as entries:
                yield from (Digest(f"{algorithm}:{entry.name}") for entry in entries if len(entry.name) == length)
