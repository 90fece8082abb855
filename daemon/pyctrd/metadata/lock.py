"""One daemon per root directory."""

import fcntl
import os
from pathlib import Path
from typing import Self

from pyctr_wire.errors import Unavailable


class StateLock:
    """Holds an exclusive lock on a file until closed, its own process id written inside.

    The lock belongs to the open file `fd`, not to the process: a daemon that takes over is handed
    that descriptor and holds the lock from then on. Source: flock(2).
    """

    def __init__(self, fd: int) -> None:
        """Hold the lock that belongs to `fd`, owned from now on, and sign it."""
        self.fd = fd
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)

    @classmethod
    def take(cls, path: Path) -> Self:
        """Take the lock at `path`, or raise Unavailable, naming the process that holds it."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise Unavailable(f"{path.parent} is in use by another pyctrd, pid {owner}") from None
        return cls(fd)

    def close(self) -> None:
        """Let go, unless another process has been handed the descriptor."""
        os.close(self.fd)
