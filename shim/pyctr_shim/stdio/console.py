"""The master side of a container's terminal."""

import fcntl
import os
import struct
import termios
from typing import Final

_WINSIZE: Final = struct.Struct("4H")


def resize(master_fd: int, columns: int, rows: int) -> None:
    """Set the terminal's size in characters; its foreground process gets SIGWINCH. Source: ioctl_tty(2)."""
    fcntl.ioctl(master_fd, termios.TIOCSWINSZ, _WINSIZE.pack(rows, columns, 0, 0))


def second_descriptor(master_fd: int) -> int:
    """Return another non-blocking descriptor of the terminal, so that each direction is polled by itself."""
    os.set_blocking(master_fd, False)
    return os.dup(master_fd)
