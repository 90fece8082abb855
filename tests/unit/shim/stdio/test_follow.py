"""Streams of a process that another shim has, by FIFOs."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_shim.loop import Loop
from pyctr_shim.stdio.streams import Names, Owner, Streams
from pyctr_wire.errors import NotFound, UnknownError


class Holder:
    """Another shim that notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def resize(self, columns: int, rows: int) -> None:
        self.asked.append((columns, rows))

    def close_input(self) -> None:
        self.asked.append("close input")


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def fifo(path: Path) -> str:
    os.mkfifo(path, 0o600)
    return str(path)


def follow(loop: Loop, tmp_path: Path, *, stdin: str = "", terminal: bool = False) -> tuple[Streams, Holder, Names]:
    log = f"cri://{tmp_path}/log"
    fifos = Names(fifo(tmp_path / "in") if stdin else "", fifo(tmp_path / "out"), "", terminal)
    streams, holder = Streams(loop, Names(stdin, log, log, terminal), Owner("ns", "c1", 0, 0)), Holder()
    streams.follow(fifos, holder)
    return streams, holder, fifos


def test_output_is_in_the_log_and_ends_with_its_last_writer(loop: Loop, tmp_path: Path) -> None:
    """Nobody has opened the FIFO at first, which is no end."""
    streams, _, fifos = follow(loop, tmp_path)
    loop.call_later(0.05, lambda: None)
    loop.run_once()
    assert not streams.drained.done

    with open(fifos.stdout, "wb") as writer:
        writer.write(b"one\ntwo")
    while not streams.drained.done:
        loop.run_once()

    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.split(" ", 3)[1:] for line in lines] == [["stdout", "F", "one"], ["stdout", "P", "two"]]
    streams.close()


def test_what_only_the_other_shim_can_do_is_asked_of_it(loop: Loop, tmp_path: Path) -> None:
    streams, holder, fifos = follow(loop, tmp_path, stdin="attach:", terminal=True)
    streams.write_input(b"typed")
    reader = os.open(fifos.stdin, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 100) == b"typed"

    streams.resize(80, 24)
    streams.close_io()

    assert holder.asked == [(80, 24), "close input"]
    os.close(reader)
    streams.close()


def test_what_cannot_be_opened_leaves_nothing_open(loop: Loop, tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    streams = Streams(loop, Names("", "attach:", "attach:", terminal=False), Owner("ns", "c1", 0, 0))
    with pytest.raises(NotFound):
        streams.follow(Names("", fifo(tmp_path / "out"), str(tmp_path / "nowhere"), terminal=False), Holder())
    streams = Streams(loop, Names("", "cri:///proc/nowhere/log", "", terminal=False), Owner("ns", "c1", 0, 0))
    with pytest.raises((UnknownError, OSError)):
        streams.follow(Names("", fifo(tmp_path / "other"), "", terminal=False), Holder())
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_terminal_that_only_the_process_asks_for_leaves_nothing_open(loop: Loop) -> None:
    before = os.listdir("/proc/self/fd")
    streams = Streams(loop, Names("attach:", "attach:", "attach:", terminal=False), Owner("default", "web", 0, 0))
    loop.spawn(streams.open())
    master_fd, slave_fd = os.openpty()
    streams.start(master_fd)
    streams.running()
    os.close(slave_fd)
    streams.close()
    assert os.listdir("/proc/self/fd") == before
