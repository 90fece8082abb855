"""The shim's own log: one JSON object a line, to a FIFO of the daemon's or to a small file in the bundle.

containerd makes the FIFO `<bundle>/log` and copies it to its stderr; without one the lines go to
`<bundle>/shim.log`, for a person who asks why. Logging may never block or kill the shim: what cannot be
written is dropped, and the file stops growing at a limit.
"""

import json
import os
import time
import traceback
from contextlib import suppress
from typing import Final

_FILE_LIMIT: Final = 256 << 10
_FIFO_FLAGS: Final = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Journal:
    """Where lines go; nowhere until `open`."""

    def __init__(self) -> None:
        """Start closed."""
        self._bundle: str | None = None
        self._fd: int | None = None
        self._left: int | None = None

    def open(self, bundle: str) -> None:
        """Log into the bundle from now on; the file is made with the first line."""
        self.close()
        self._bundle = bundle

    def close(self) -> None:
        """Drop what comes from now on."""
        if self._fd is not None:
            os.close(self._fd)
        self._bundle = self._fd = self._left = None

    def write(self, event: str, fields: dict[str, object]) -> None:
        """Write one line, or drop it."""
        if self._fd is None and self._bundle is not None:
            self._open_first(self._bundle)
        if self._fd is None:
            return
        record = {"time": time.time(), "pid": os.getpid(), "event": event, **fields}
        line = (json.dumps(record, default=str) + "\n").encode(errors="backslashreplace")
        if self._left is not None:
            if len(line) > self._left:
                return
            self._left -= len(line)
        try:
            os.write(self._fd, line)
        except OSError:
            return

    def _open_first(self, bundle: str) -> None:
        """Open the FIFO, or the file, or give up: a bundle that cannot be written to means no log."""
        self._bundle = None
        try:
            # Read and write: the FIFO then never lacks a reader, and a full one is EAGAIN.
            self._fd = os.open(f"{bundle}/log", _FIFO_FLAGS)
        except OSError:
            with suppress(OSError):
                self._fd = os.open(f"{bundle}/shim.log", _FILE_FLAGS, 0o600)
                self._left = _FILE_LIMIT


_journal = Journal()


def open_log(bundle: str) -> None:
    """Log into a bundle from now on."""
    _journal.open(bundle)


def close_log() -> None:
    """Drop what comes from now on."""
    _journal.close()


def current() -> Journal:
    """Return where lines go, for a process with the same descriptors to `resume`."""
    return _journal


def resume(where: Journal) -> None:
    """Log to where another process has."""
    global _journal  # one process, one log
    _journal = where


def log(event: str, **fields: object) -> None:
    """Log what happened."""
    _journal.write(event, fields)


def log_exception(event: str, **fields: object) -> None:
    """Log what happened with the traceback of the exception being handled."""
    _journal.write(event, {**fields, "traceback": traceback.format_exc()})
