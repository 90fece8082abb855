"""What keeps the container's files and processes away from the interpreter that sets it up."""

import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.handshake import Channel
from pyctr_sys.openat2 import O_PATH
from pyctr_sys.process import PROC_SUPER_MAGIC, close_range, file_system_type, set_parent_death_signal

_STDIO: Final = 3


def take_stdio(stdio: tuple[int, int, int], channel: Channel, preserved: int, also: int = -1) -> int:
    """Make `stdio` fds 0 to 2 and close all that the shim had open, save `preserved` fds from 3 on.

    A lock or a client's pipe kept open here would outlive the shim. The channel keeps working, and
    the fd `also` (if not -1), whose new number is returned.
    """
    lowest = _STDIO + preserved
    above = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest) for fd in stdio]  # they may be 0 to 2 in another order
    channel.move_above(lowest)
    if also >= 0:
        also = fcntl.fcntl(also, fcntl.F_DUPFD_CLOEXEC, lowest)
    for number, fd in enumerate(above):
        os.dup2(fd, number, inheritable=True)
    for number in range(_STDIO, lowest):
        os.set_inheritable(number, True)
    _close_from(lowest, channel.fileno(), also)
    return also


def die_with_parent(channel: Channel) -> None:
    """End when the parent does, at whatever step: nothing is made after it that its successor does not find.

    Until `outlive_parent`. Ends the process if the parent is gone already, which the channel only tells once the
    parent's end of it is closed here.
    """
    set_parent_death_signal(signal.SIGKILL)
    if channel.peer_has_ended():
        os._exit(1)


def outlive_parent() -> None:
    """Undo `die_with_parent`, for the program."""
    set_parent_death_signal(0)


def _close_from(lowest: int, *kept: int) -> None:
    first = lowest
    for fd in sorted(fd for fd in kept if fd >= 0):
        close_range(first, fd - 1)
        first = fd + 1
    close_range(first)


def forbid_imports() -> None:
    """Make every later import fail: a module found then would be the container's, run as the host's root.

    The import cache and sys.path stay, as nothing is left that would read them: freeing their contents would
    touch, and so copy, a hundred pages.
    """
    sys.meta_path.clear()
    sys.path_hooks.clear()


@contextmanager
def without_imports() -> Iterator[None]:
    """Do `forbid_imports` for a while, for a process that comes back from where the container's files are."""
    finders, hooks = sys.meta_path[:], sys.path_hooks[:]
    forbid_imports()
    try:
        yield
    finally:
        sys.meta_path[:], sys.path_hooks[:] = finders, hooks


def open_proc() -> int:
    """Return an O_PATH fd of the runtime's own /proc, for writes that must not meet another file system."""
    fd = os.open("/proc", O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if file_system_type(fd) != PROC_SUPER_MAGIC:
        os.close(fd)
        raise OciError("/proc of the runtime is not a proc file system")
    return fd
