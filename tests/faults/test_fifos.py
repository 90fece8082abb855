"""F18: clients' FIFOs whose other side goes away, stops, or becomes something else; the container waits for room."""

import json
import os
import select
import time
from pathlib import Path

import grpc
import pytest

from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2
from pyctr_wire.containerd.types.task import task_pb2 as types
from support.containers import PROCESS_URL, Containers
from support.daemon_process import DEADLINE, DaemonProcess, wait_until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("leaving_nothing")]


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path, 0o600)
    return path


def run(containers: Containers, id: str, script: str, **stdio: str) -> None:
    containers.define(id, "sh", "-c", script)
    containers.create(id, **stdio)
    containers.start(id)


def read_some(fd: int, wanted: bytes) -> bytes:
    """Read until `wanted` has come."""
    seen, end = b"", time.monotonic() + DEADLINE
    while wanted not in seen:
        assert select.select([fd], [], [], max(0.0, end - time.monotonic()))[0], seen
        data = os.read(fd, 1 << 16)
        assert data, seen
        seen += data
    return seen


# More than all pipes on the way hold: its end is reached only if somebody reads, or nobody can.
FLOOD = "i=0; while [ $i -lt 40 ]; do i=$((i+1)); cat /flood; done; echo all written >&2"


def flood(containers: Containers) -> None:
    (containers.rootfs / "flood").write_bytes(b"x" * 99 + b"\n" + b"y" * 65_436)


@pytest.mark.parametrize("reader", ["never there", "gone", "stopped"])
def test_output_that_nobody_reads(containers: Containers, daemon: DaemonProcess, fifo: Path, reader: str) -> None:
    """The container waits for room; it can be killed, waited for and deleted all the same, and others do not wait."""
    flood(containers)
    fd = -1 if reader == "never there" else os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    run(containers, "web", FLOOD, stdout=str(fifo))
    if fd >= 0:
        read_some(fd, b"x" * 99)
    if reader == "gone":
        os.close(fd)
    daemon.restart()
    containers.run("other", "sleep", "1000")
    containers.exec("web", "e", "true")
    assert containers.wait("web", "e").status == 0
    assert containers.status("web") == types.RUNNING

    containers.kill("web")

    assert containers.wait("web").status == 137
    assert containers.delete("web").status == 137
    if reader == "stopped":
        os.close(fd)
    assert containers.status("other") == types.RUNNING


def test_a_new_reader_goes_on_where_the_last_one_stopped(
    containers: Containers, daemon: DaemonProcess, fifo: Path
) -> None:
    """Not a byte is lost between two readers, even if the daemon is another one too."""
    first = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    run(containers, "web", "seq 200000", stdout=str(fifo))
    seen = read_some(first, b"\n1000\n")
    os.close(first)
    daemon.restart()

    second = os.open(fifo, os.O_RDONLY)
    with os.fdopen(second, "rb") as file:
        seen += file.read()

    assert seen == b"".join(b"%d\n" % number for number in range(1, 200_001))
    assert containers.wait("web").status == 0


def test_input_whose_writer_comes_and_goes(containers: Containers, daemon: DaemonProcess, fifo: Path) -> None:
    """Input ends when a client says so, not when one goes away."""
    log = containers.rootfs / "seen"
    log.touch()
    run(containers, "web", "cat >/seen; exit 4", stdin=str(fifo))
    for number in range(3):
        with fifo.open("wb") as writer:
            writer.write(b"line %d\n" % number)
        wait_until(lambda: log.read_text().endswith(f"line {number}\n"), "the input arrives")  # noqa: B023 - at once
        daemon.restart()
    assert containers.status("web") == types.RUNNING

    containers.tasks("CloseIO", tasks_pb2.CloseIORequest(container_id="web", stdin=True))

    assert containers.wait("web").status == 4
    assert log.read_text() == "line 0\nline 1\nline 2\n"


def test_input_that_the_container_does_not_read(containers: Containers, fifo: Path) -> None:
    run(containers, "web", "exec sleep 1000", stdin=str(fifo))
    fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    wait_until(lambda: is_full(fd), "no more fits")

    containers.kill("web")

    assert containers.wait("web").status == 137
    assert containers.delete("web").status == 137
    with pytest.raises(BrokenPipeError):
        os.write(fd, b"x")
    os.close(fd)


def is_full(fd: int) -> bool:
    try:
        os.write(fd, b"x" * 4096)
    except BlockingIOError:
        return True
    return False


@pytest.mark.parametrize(
    ("stream", "what"),
    [
        ("stdin", "symlink"),
        ("stderr", "file"),
        *(("stdout", what) for what in ("nothing", "file", "symlink", "directory")),
    ],
)
def test_a_path_that_is_no_fifo(containers: Containers, tmp_path: Path, what: str, stream: str) -> None:
    """Refused before anything runs; what is there, or where a link leads, is not touched."""
    path, victim = tmp_path / "stdio", tmp_path / "victim"
    victim.write_text("untouched")
    if what == "file":
        path.write_text("untouched")
    elif what == "symlink":
        path.symlink_to(victim)
    elif what == "directory":
        path.mkdir()
    containers.define("web", "sleep", "1000")

    with pytest.raises(grpc.RpcError) as refused:
        containers.create("web", **{stream: str(path)})

    assert str(path) in str(refused.value.details())
    assert containers.status("web") is None
    assert victim.read_text() == "untouched"
    assert what != "file" or path.read_text() == "untouched"


@pytest.mark.parametrize("what", ["file", "symlink"])
def test_a_fifo_that_becomes_something_else(
    containers: Containers, daemon: DaemonProcess, tmp_path: Path, fifo: Path, what: str
) -> None:
    """The running container keeps the FIFO that it has; whatever opens the path anew refuses what is there now."""
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    run(containers, "web", "until [ -e /go ]; do sleep 0.05; done; echo to the old one; sleep 1000", stdout=str(fifo))
    fifo.unlink()
    if what == "file":
        fifo.write_text("untouched")
    else:
        fifo.symlink_to(victim)
    daemon.restart()

    (containers.rootfs / "go").touch()
    read_some(reader, b"to the old one\n")
    request = tasks_pb2.ExecProcessRequest(container_id="web", exec_id="e", stdout=str(fifo))
    request.spec.type_url = PROCESS_URL
    request.spec.value = json.dumps(containers.spec("web", "echo", "overwritten")["process"]).encode()
    containers.tasks("Exec", request)
    with pytest.raises(grpc.RpcError, match=f"stdio.*{fifo}"):
        containers.start("web", "e")

    containers.remove("web")
    assert victim.read_text() == "untouched"
    assert what != "file" or fifo.read_text() == "untouched"
    os.close(reader)
    (containers.rootfs / "go").unlink()
