"""Client FIFOs: opened without waiting for the client, held so that its coming and going harms nobody.

Opening a FIFO for writing waits for a reader, and a writer without readers is killed by SIGPIPE. So the shim
holds both ends: the container's output waits in the pipe while no client reads, and the container's input has
no end while a client may come back. Source: fifo(7); containerd's shim behaves so.
"""

import os
import stat
from typing import Final

from pyctr_wire.errors import InvalidArgument, NotFound

_FLAGS: Final = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def open_output(path: str) -> tuple[int, int]:
    """Return (write end, read end) of the FIFO, both non-blocking and the caller's.

    Closing the read end early makes writes fail with EPIPE once no client reads any more.
    Raises NotFound, or InvalidArgument if `path` is no FIFO (a symlink is none).
    """
    reader_fd = _open_checked(path, os.O_RDONLY)
    try:
        return os.open(f"/proc/self/fd/{reader_fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC), reader_fd
    except OSError:
        os.close(reader_fd)
        raise


def open_input(path: str) -> tuple[int, int]:
    """Return (read end, write end) of the FIFO, both non-blocking and the caller's.

    While the write end is open the read end never sees the end of the stream. Raises as open_output does.
    """
    writer_fd, reader_fd = open_output(path)
    return reader_fd, writer_fd


def open_reader(path: str) -> int:
    """Return a read end of the FIFO, non-blocking and the caller's: it sees an end once all writers have gone.

    Raises as open_output does.
    """
    return _open_checked(path, os.O_RDONLY)


def open_both_ways(path: str) -> int:
    """Return an end to write to, non-blocking and the caller's, for a reader that may not be there yet.

    Raises as open_output does.
    """
    return _open_checked(path, os.O_RDWR)


def _open_checked(path: str, mode: int) -> int:
    try:
        fd = os.open(path, mode | _FLAGS)
    except FileNotFoundError as error:
        raise NotFound(f"stdio fifo {path}") from error
    except OSError as error:
        raise InvalidArgument(f"stdio fifo {path}: {error.strerror}") from error
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidArgument(f"stdio {path} is not a fifo")
    return fd
