"""A public socket path: refused if somebody answers, taken over without a gap, never taken from a successor."""

import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from pyctr_wire.errors import FailedPrecondition
from pyctrd.server import public_socket
from pyctrd.server.dispatch import Dispatch
from pyctrd.server.listener import Listener
from pyctrd.server.notify import notify


@pytest.fixture
def listening() -> Iterator[list[socket.socket]]:
    """Sockets that are closed at the end."""
    sockets: list[socket.socket] = []
    yield sockets
    for sock in sockets:
        sock.close()


def _listen(path: Path, sockets: list[socket.socket]) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    sockets.append(sock)
    return sock


def test_an_address_that_answers_is_refused(tmp_path: Path, listening: list[socket.socket]) -> None:
    _listen(tmp_path / "s", listening)

    with pytest.raises(FailedPrecondition, match="another server answers on it"):
        public_socket.refuse_if_served(tmp_path / "s")


def test_a_busy_server_counts_as_answering(tmp_path: Path, listening: list[socket.socket]) -> None:
    _listen(tmp_path / "s", listening).listen(0)
    for _ in range(3):
        client = socket.socket(socket.AF_UNIX)
        listening.append(client)
        client.setblocking(False)
        try:
            client.connect(str(tmp_path / "s"))
        except BlockingIOError:
            break

    assert public_socket.answers(tmp_path / "s")


def test_a_stale_socket_is_no_obstacle(tmp_path: Path, listening: list[socket.socket]) -> None:
    _listen(tmp_path / "s", listening).close()

    public_socket.refuse_if_served(tmp_path / "s")
    public_socket.refuse_if_served(tmp_path / "nothing")


def test_what_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")

    with pytest.raises(FailedPrecondition, match="is not a socket"):
        public_socket.refuse_if_served(tmp_path / "s")


def test_leftovers_of_dead_daemons_are_cleared_and_live_ones_stay(
    tmp_path: Path, listening: list[socket.socket]
) -> None:
    public = tmp_path / "s"
    _listen(tmp_path / "s.11", listening).close()
    _listen(tmp_path / "s.12", listening)
    _listen(tmp_path / "s.ttrpc", listening).close()
    (tmp_path / "s.11.new").hardlink_to(tmp_path / "s.11")

    public_socket.clear(public)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.12", "s.ttrpc"]


async def _served(address: Path) -> bool:
    """Whether a server of ours answers: it knows no method."""
    async with grpc.aio.insecure_channel(f"unix:{address}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            await channel.unary_unary("/a/b")(b"", timeout=30, wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.UNIMPLEMENTED
    return False


def _listener(address: Path) -> Listener:
    return Listener(Dispatch(), [address], uid=-1, gid=-1, connection_age=600)


async def test_the_socket_is_for_owner_and_group_only(tmp_path: Path) -> None:
    listener = _listener(tmp_path / "s")
    await listener.start()

    mode = (tmp_path / "s").stat().st_mode

    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660
    await listener.stop(0)
    assert list(tmp_path.iterdir()) == []


async def test_a_successor_takes_the_path_without_a_moment_when_nobody_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one's stop, which unlinks what it bound, takes nothing away from the new one."""
    public = tmp_path / "s"
    old = _listener(public)
    await old.start()
    gaps: list[Exception] = []
    done = threading.Event()

    def knock() -> None:
        while not done.wait(0.001):  # a pace at which the servers can close what was opened
            with socket.socket(socket.AF_UNIX) as client:
                try:
                    client.connect(str(public))
                except OSError as error:
                    gaps.append(error)

    thread = threading.Thread(target=knock)
    thread.start()
    monkeypatch.setattr(public_socket, "private_path", lambda path: path.with_name(path.name + ".2"))
    new = _listener(public)
    await new.start()
    await old.stop(0)
    assert await _served(public)
    done.set()
    thread.join()

    assert gaps == []
    await new.stop(0)
    assert not public.exists()


def test_the_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        notify("READY=1", "MAINPID=7")

        assert manager.recv(100) == b"READY=1\nMAINPID=7"


def test_without_a_service_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)

    notify("READY=1")
