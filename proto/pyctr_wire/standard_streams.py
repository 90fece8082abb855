"""Standard streams that are always there."""

import os
import sys


def fill() -> None:
    """Put /dev/null where standard input, output or error is closed.

    Whatever a process opens next takes the lowest free number: without this, a connection or a database becomes the
    process's standard output.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:  # Python's own word for one that was closed when it started
            setattr(sys, name, os.fdopen(fd, mode))
