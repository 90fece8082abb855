"""Which spare takes a request, and which one goes."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from pyctr_shim import spares
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


def test_one_that_has_lived_its_lives_goes_without_an_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is offered and ends before it is taken makes the zygote pause: it forks no faster than spares die."""
    told: list[str] = []

    def tell(what: str) -> Any:
        return lambda *_arguments: told.append(what)

    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(spares, "be_taken", tell("taken"))
    monkeypatch.setattr(spares, "live_out", tell("lived"))
    monkeypatch.setattr(spares, "begin_anew", tell("offered"))
    monkeypatch.setattr(spares, "os", SimpleNamespace(_exit=end, getpid=os.getpid))
    nothing: Any = None
    with pytest.raises(SystemExit):
        spares.live(nothing, nothing, set(), 3)
    assert told.count("offered") == spares.lives()
    assert told[-3:] == ["offered", "taken", "lived"]


def test_those_that_take_turns_do_not_end_together(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for pid in range(4000, 4024):
        monkeypatch.setattr(spares, "os", SimpleNamespace(getpid=lambda pid=pid: pid))
        found.add(spares.lives())
    assert len(found) == 24
