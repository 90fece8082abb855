"""Relaying between this process and an attach socket."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr.attach import AttachSocket, Decoder, Frame, encode
from pyctr_wire.errors import Unavailable

CLIENT = """
import sys
from pyctr.attach import AttachSocket
from pyctr.relay import Relay
attach = AttachSocket(sys.argv[1], stdin=sys.argv[2] == "stdin")
told = lambda number: print("signal", number, flush=True)
outcome = Relay(attach, stdin=sys.argv[2] == "stdin", detach_keys=b"", on_signal=told).run()
print(outcome.end.value, outcome.exit_status, outcome.message)
"""


class Shim:
    """The other end of an attach socket, driven by a test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._decoder = Decoder()
        self._frames: list[tuple[int, bytes]] = []

    def accept(self, answer: dict[str, object]) -> dict[str, object]:
        self.peer, _ = self._listener.accept()
        self.peer.settimeout(30)
        kind, payload = self.receive()
        assert kind == Frame.HELLO
        self.send(Frame.HELLO, json.dumps(answer).encode())
        hello: dict[str, object] = json.loads(payload)
        return hello

    def send(self, kind: Frame, payload: bytes = b"") -> None:
        self.peer.sendall(encode(kind, payload))

    def receive(self) -> tuple[int, bytes]:
        while not self._frames:
            data = self.peer.recv(1 << 16)
            assert data, "the client went away"
            self._frames.extend(self._decoder.feed(data))
        return self._frames.pop(0)

    def close(self) -> None:
        self._listener.close()
        if hasattr(self, "peer"):
            self.peer.close()


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    shim = Shim(tmp_path / "a")
    yield shim
    shim.close()


@pytest.fixture
def client(shim: Shim) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", CLIENT, str(shim.path), "stdin"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_streams_both_ways_and_the_exit(shim: Shim, client: subprocess.Popen[bytes]) -> None:
    hello = shim.accept({"terminal": False})
    assert hello == {"exec_id": "", "stdin": True, "stdout": True, "stderr": True}
    shim.send(Frame.STDOUT, b"out\n")
    shim.send(Frame.STDERR, b"err\n")
    shim.send(Frame.PING)
    assert client.stdin
    client.stdin.write(b"input")
    client.stdin.close()
    assert shim.receive() == (Frame.STDIN, b"input")
    assert shim.receive() == (Frame.STDIN, b"")
    shim.send(Frame.EXIT, b'{"exit_status": 7}')
    client.stdin = None
    out, err = client.communicate(timeout=30)
    assert (out, err) == (b"out\nexited 7 \n", b"err\n")


def test_a_lost_shim_is_told_with_its_last_words(shim: Shim, client: subprocess.Popen[bytes]) -> None:
    shim.accept({"terminal": False})
    shim.send(Frame.MESSAGE, b"cut off")
    shim.peer.close()
    out, _ = client.communicate(timeout=30)
    assert out == b"lost 0 cut off\n"


def test_signals_are_told(shim: Shim, client: subprocess.Popen[bytes]) -> None:
    shim.accept({"terminal": False})
    shim.send(Frame.STDOUT, b"up\n")
    assert client.stdout
    assert client.stdout.readline() == b"up\n"
    client.send_signal(signal.SIGTERM)
    assert client.stdout.readline() == b"signal 15\n"
    shim.send(Frame.EXIT, b'{"exit_status": 0}')
    client.communicate(timeout=30)


def test_output_that_nobody_reads_waits_in_memory(shim: Shim, client: subprocess.Popen[bytes]) -> None:
    """A paused terminal must not look like a client that takes nothing: the shim would cut it off."""
    shim.accept({"terminal": False})
    block = b"x" * (1 << 20)
    for _ in range(8):
        shim.send(Frame.STDOUT, block)  # far more than a pipe holds, and our reader has not begun
    shim.send(Frame.EXIT, b'{"exit_status": 0}')
    out, _ = client.communicate(timeout=30)
    assert len(out) == (8 << 20) + len(b"exited 0 \n")


def test_a_terminal_is_told_its_size(shim: Shim) -> None:
    command = [sys.executable, "-c", CLIENT, str(shim.path), "no"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as client:
        assert shim.accept({"terminal": True})["stdin"] is False
        kind, payload = shim.receive()
        assert kind == Frame.RESIZE
        assert all(struct.unpack(">HH", payload))
        shim.send(Frame.EXIT, b'{"exit_status": 0}')
        client.communicate(timeout=30)


def test_a_refusal_is_an_error(shim: Shim) -> None:
    thread = threading.Thread(target=shim.accept, args=({"error": "no such exec"},))
    thread.start()
    with pytest.raises(Unavailable, match="no such exec"):
        AttachSocket(str(shim.path), "nope", stdin=False)
    thread.join()


def test_no_shim_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot attach"):
        AttachSocket(str(tmp_path / "none"), stdin=False)


def test_frames_come_in_pieces() -> None:
    decoder = Decoder()
    data = encode(Frame.STDOUT, b"abc") + encode(Frame.EXIT, b"{}")
    frames = [frame for at in range(len(data)) for frame in decoder.feed(data[at : at + 1])]
    assert frames == [(Frame.STDOUT, b"abc"), (Frame.EXIT, b"{}")]
    with pytest.raises(Unavailable):
        list(decoder.feed(struct.pack(">BI", 2, 1 << 30)))


def test_closing_the_reader_ends_the_session(shim: Shim, client: subprocess.Popen[bytes]) -> None:
    shim.accept({"terminal": False})
    assert client.stdout
    client.stdout.close()
    for _ in range(100):
        try:
            shim.send(Frame.STDOUT, os.urandom(4096))
        except OSError:
            break
    assert client.wait(timeout=30) != 0
