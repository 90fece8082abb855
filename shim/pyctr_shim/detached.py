"""A process that nobody is the parent of, started by a command that waits until it serves."""

import os
from collections.abc import Callable
from typing import Final, NoReturn, TypeAlias

from pyctr_sys.process import set_name

Tell: TypeAlias = Callable[[Exception | None], None]
"""Says that a process serves, or why it does not."""

_SERVING: Final = b"serving"


def start(serve: Callable[[Tell], NoReturn], what: str) -> None:
    """Have `serve` run in a grandchild; return when that tells that it serves, by calling what it is given.

    Raises OSError with the error that it tells instead, or that `what` ended before it served.
    """
    told_fd, tell_fd = os.pipe()

    def tell(error: Exception | None) -> None:
        os.write(tell_fd, _SERVING if error is None else f"{type(error).__name__}: {error}".encode())
        os.close(tell_fd)

    if os.fork() == 0:
        try:
            if os.fork() == 0:
                os.close(told_fd)
                serve(tell)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(tell_fd)
    with os.fdopen(told_fd, "rb") as told:
        failure = told.read()
    if failure != _SERVING:
        raise OSError(failure.decode(errors="replace") or f"{what} ended before it served")


def leave_the_session(name: str) -> None:
    """Make this process, called `name` from now on, nobody's: a session of its own, no directory, no one's stdio."""
    os.setsid()
    os.chdir("/")
    set_name(name)
    null_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in range(3):
        os.dup2(null_fd, fd)
    os.close(null_fd)
