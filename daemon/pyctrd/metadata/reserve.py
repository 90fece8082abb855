"""Disk space that is kept for what makes room.

Deleting needs room first: rows are changed by writing them to a log. So a file of a few MiB holds blocks that nobody
else can take. On a full disk a deletion gives them up for as long as it takes; while they are not all there, whatever
would grow is refused.
"""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pyctr_wire.errors import ResourceExhausted
from pyctrd.log import Logger

# Twice what SQLite's log holds before it is written back.
SIZE: Final = 8 << 20  # bytes

_STEP: Final = 64 << 10
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

_log = Logger("pyctrd.metadata")


class Reserve:
    """The file at `path`, which the next daemon finds as it was left; thread-safe."""

    def __init__(self, path: Path) -> None:
        """Take the blocks, or as many as there are. Raises OSError other than for a full disk."""
        self._path = path
        self._lock = threading.Lock()
        self._borrowers = 0
        self._is_whole = self._take()

    def keep(self) -> None:
        """Return if all blocks are held, or can be taken back. Raises ResourceExhausted if not, OSError."""
        if self._is_whole:
            return
        with self._lock:
            if not self._borrowers:
                self._is_whole = self._take()
        if not self._is_whole:
            raise ResourceExhausted(
                f"no space left on the disk of {self._path.parent}: the last {SIZE >> 20} MiB are kept for deleting"
            )

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Give the blocks up for the block's time, if there are not as many others. Raises OSError."""
        with self._lock:
            self._borrowers += 1
            if self._is_needed():
                if self._is_whole:
                    _log.warning("disk full, reserve used", path=str(self._path))
                self._is_whole = False
                os.truncate(self._path, 0)
        try:
            yield
        finally:
            with self._lock:
                self._borrowers -= 1
                if not self._borrowers and not self._is_whole:
                    self._is_whole = self._take()

    def _is_needed(self) -> bool:
        found = os.statvfs(self._path.parent)
        return found.f_bavail * found.f_frsize < SIZE

    def _take(self) -> bool:
        """Take all blocks, or as many as there are; return whether it is all."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            for offset in range(0, SIZE, _STEP):
                os.posix_fallocate(fd, offset, _STEP)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            return False
        finally:
            os.close(fd)
        return True
