"""Which spare takes a request, and which one goes."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from pyctr_shim.spares import wait_for_request


@contextmanager
def spare() -> Iterator[tuple[socket.socket, socket.socket, int, int]]:
    """Yield both ends of the requests' socket, and of the pipe by which a spare tells its fate."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    told_fd, tell_fd = os.pipe()
    with ours, theirs:
        yield ours, theirs, told_fd, tell_fd
    os.close(tell_fd)


def test_one_that_is_too_many_goes() -> None:
    with spare() as (_ours, theirs, told_fd, tell_fd):
        os.close(told_fd)
        assert wait_for_request(theirs, tell_fd) == (b"", [])


def test_one_that_is_too_many_takes_a_request_that_has_woken_it() -> None:
    """No other spare has been woken for that: whoever asked would wait until somebody else asks."""
    with spare() as (ours, theirs, told_fd, tell_fd):
        ours.send(b"request")
        os.close(told_fd)
        assert wait_for_request(theirs, tell_fd) == (b"request", [])
        assert wait_for_request(theirs, tell_fd) == (b"", [])
