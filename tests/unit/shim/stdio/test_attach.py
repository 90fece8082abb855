"""Attach frames, and clients that come, stall and go, on streams that are doubles."""

import contextlib
import json
import socket
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyctr_shim.loop import Loop
from pyctr_shim.stdio import attach
from pyctr_shim.stdio.attach import Client, Decoder, FrameType, encode
from pyctr_shim.stdio.streams import Names
from pyctr_wire.errors import InvalidArgument, NotFound
from support.shim_harness import eventually


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=50)), max_size=8), st.integers(1, 20))
def test_frames_come_out_as_they_went_in(frames: list[tuple[int, bytes]], step: int) -> None:
    stream = b"".join(encode(kind, payload) for kind, payload in frames)
    decoder = Decoder()
    assert [frame for at in range(0, len(stream), step) for frame in decoder.feed(stream[at : at + step])] == frames


def test_a_frame_that_is_too_long_is_refused_by_its_header() -> None:
    with pytest.raises(InvalidArgument):
        Decoder().feed(b"\x01\x7f\xff\xff\xff")


class RecordingStreams:
    """Streams that write down what a client does."""

    names = Names("", "", "", terminal=False)
    status = "running"
    input_full = False

    def __init__(self) -> None:
        self.clients: list[Client] = []
        self.input: list[bytes] = []
        self.sizes: list[tuple[int, int]] = []
        self.left: list[tuple[str, int]] = []

    def attach(self, client: Client) -> None:
        self.clients.append(client)

    def detach(self, client: Client) -> None:
        if client in self.clients:
            self.clients.remove(client)

    def finish_if_ended(self, client: Client) -> None:
        return

    def write_input(self, data: bytes) -> None:
        self.input.append(data)

    def resize(self, columns: int, rows: int) -> None:
        self.sizes.append((columns, rows))


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def streams() -> RecordingStreams:
    return RecordingStreams()


@pytest.fixture
def peer(loop: Loop, streams: RecordingStreams) -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    def find(exec_id: str) -> RecordingStreams:
        if exec_id == "nobody":
            raise NotFound("process does not exist nobody")
        return streams

    client = Client(loop, theirs, find, lambda exec_id, number: streams.left.append((exec_id, number)))  # type: ignore[arg-type]
    yield ours
    client.close()
    ours.close()


def turned(loop: Loop) -> bool:
    """Let the loop turn once."""
    loop.run_once()
    return True


def frames(loop: Loop, peer: socket.socket, number: int) -> list[tuple[int, bytes]]:
    """Serve until `number` frames have arrived."""
    decoder = Decoder()
    found: list[tuple[int, bytes]] = []

    def arrived() -> bool:
        loop.call_later(0, lambda: None)
        loop.run_once()
        with contextlib.suppress(BlockingIOError):
            found.extend(decoder.feed(peer.recv(65536)))
        return len(found) >= number

    eventually(arrived, f"{number} frames")
    return found


def test_input_and_sizes_of_a_client_reach_the_process(
    loop: Loop, peer: socket.socket, streams: RecordingStreams
) -> None:
    peer.send(encode(FrameType.PING, b""))
    peer.send(encode(FrameType.HELLO, json.dumps({"exec_id": "", "stdin": True, "stdout": True}).encode()))
    assert frames(loop, peer, 1) == [(0, b'{"terminal": false, "status": "running"}')]
    peer.send(
        encode(FrameType.STDIN, b"abc") + encode(FrameType.RESIZE, b"\x00\x50\x00\x18") + encode(FrameType.STDIN, b"")
    )
    loop.run_once()

    assert streams.input == [b"abc", b""]
    assert streams.sizes == [(80, 24)]
    peer.shutdown(socket.SHUT_RDWR)
    eventually(lambda: turned(loop) and not streams.clients, "the client is gone")


@pytest.mark.parametrize(("exec_id", "ended"), [("one", False), ("one", True), ("", False)])
def test_an_exec_that_its_client_leaves_gets_a_signal(
    loop: Loop, peer: socket.socket, streams: RecordingStreams, exec_id: str, ended: bool
) -> None:
    peer.send(encode(FrameType.HELLO, json.dumps({"exec_id": exec_id, "left": 9}).encode()))
    frames(loop, peer, 1)
    if ended:
        streams.clients[0].finish(0)
    else:
        peer.shutdown(socket.SHUT_RDWR)
    eventually(lambda: not streams.clients or (turned(loop) and not streams.clients), "the client is gone")
    assert streams.left == ([("one", 9)] if exec_id and not ended else [])


@pytest.mark.parametrize(
    ("first", "error"),
    [
        (encode(FrameType.STDIN, b"x"), "the first attach frame is a hello"),
        (encode(FrameType.HELLO, b"{"), "not JSON"),
        (encode(FrameType.HELLO, b"[]"), "not a JSON object"),
        (encode(FrameType.HELLO, b'{"since_start": true}'), "since_start is not served"),
        (encode(FrameType.HELLO, b'{"exec_id": "nobody"}'), "process does not exist nobody"),
        (encode(FrameType.HELLO, b'{"exec_id": "one", "left": 15}'), "left is 15, not one of (0, 1, 9)"),
    ],
)
def test_a_client_that_says_something_else_is_told_why_not(
    loop: Loop, peer: socket.socket, first: bytes, error: str
) -> None:
    peer.send(first)
    kind, payload = frames(loop, peer, 1)[0]
    assert kind == FrameType.HELLO
    assert error in json.loads(payload)["error"]
    eventually(lambda: peer.recv(1) == b"", "the connection is closed")


def test_a_slow_client_holds_the_output_and_a_stuck_one_is_cut_off(
    loop: Loop, peer: socket.socket, streams: RecordingStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "_PATIENCE", 0.2)
    peer.send(encode(FrameType.HELLO, b'{"stdout": true}'))
    frames(loop, peer, 1)
    client = streams.clients[0]
    hold = None
    while hold is None:
        hold = client.send(FrameType.STDOUT, bytes(50_000))
    assert not hold.done
    # It reads: the output goes on and nobody is cut off.
    frames(loop, peer, 3)
    eventually(lambda: frames(loop, peer, 1) and hold.done, "room again")
    assert streams.clients == [client]
    hold = None
    while hold is None:
        hold = client.send(FrameType.STDOUT, bytes(50_000))
    eventually(lambda: turned(loop) and hold.done, "the stuck client lets go")
    assert streams.clients == []
    assert client.send(FrameType.STDOUT, b"more") is None


def test_input_that_is_full_stays_held_while_output_is_sent(
    loop: Loop, peer: socket.socket, streams: RecordingStreams
) -> None:
    """Or a program that writes and does not read would fill this process's memory."""
    room: list[Callable[[], None]] = []
    streams.when_input_has_room = room.append  # type: ignore[attr-defined]
    peer.send(encode(FrameType.HELLO, b'{"stdin": true, "stdout": true}'))
    frames(loop, peer, 1)
    streams.input_full = True
    peer.send(encode(FrameType.STDIN, b"one") + encode(FrameType.STDIN, b"two"))
    eventually(lambda: turned(loop) and streams.input == [b"one", b"two"], "the input arrives")

    streams.clients[0].send(FrameType.STDOUT, b"output")
    peer.send(encode(FrameType.STDIN, b"three"))
    assert frames(loop, peer, 1) == [(FrameType.STDOUT, b"output")]
    for _ in range(3):
        loop.call_later(0, lambda: None)
        loop.run_once()
    assert streams.input == [b"one", b"two"]

    streams.input_full = False
    [again] = room
    again()
    eventually(lambda: turned(loop) and streams.input == [b"one", b"two", b"three"], "the rest arrives")
