"""One daemon per root directory."""

import fcntl
import os
from pathlib import Path

from pyctr_wire.errors import Unavailable


class StateLock:
    """Holds an exclusive lock on a file until closed, its own process id written inside.

    The lock belongs to the open file `fd`, not to the process: a daemon that takes over is handed
    that descriptor and holds the lock from then on. Source: flock(2).
    """

    def __init__(self, path: Path) -> None:
        """Take the lock at `path`, or raise Unavailable, naming the process that holds it."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise Unavailable(f"{path.parent} is in use by another pyctrd, pid {owner}") from None
        self.fd = fd
        self.claim()

    def claim(self) -> None:
        """Write this process's id into the file, for whoever is refused."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Let go, unless another process has been handed the descriptor."""
        os.close(self.fd)
