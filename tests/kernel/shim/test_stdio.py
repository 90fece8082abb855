"""Bytes between a real container and its clients: FIFOs, terminals, logs, attached clients; none is lost."""

import json
import os
import select
import signal
import struct
import subprocess
import time
from collections.abc import Iterator

import pytest

from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as pb
from pyctr_wire.errors import InvalidArgument, NotFound
from support.shim_harness import DEADLINE, Host, eventually, host

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def shims() -> Iterator[Host]:
    with host() as here:
        yield here


def read_end(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def read_until_end(fd: int) -> bytes:
    """Read a FIFO until its last writer has gone."""
    data = b""
    end = time.monotonic() + DEADLINE
    while True:
        assert time.monotonic() < end, f"no end of file after {data[-200:]!r}"
        if not select.select([fd], [], [], 0.2)[0]:
            continue
        try:
            chunk = os.read(fd, 1 << 20)
        except BlockingIOError:
            continue
        if not chunk:
            return data
        data += chunk


def read_until(fd: int, wanted: bytes) -> bytes:
    data = b""
    end = time.monotonic() + DEADLINE
    while wanted not in data:
        assert time.monotonic() < end, f"{wanted!r} is not in {data!r}"
        if select.select([fd], [], [], 0.2)[0]:
            try:
                data += os.read(fd, 65536)
            except BlockingIOError:
                continue
    return data


def test_output_reaches_its_fifos_to_the_last_byte_and_then_they_end(shims: Host) -> None:
    out, err = shims.fifo("out1"), shims.fifo("err1")
    out_fd, err_fd = read_end(out), read_end(err)
    script = "dd if=/dev/zero bs=1000 count=3000 2>/dev/null; echo bad >&2; echo end"
    container = shims.run("out", "sh", "-c", script, stdio={"stdout": out, "stderr": err})

    data = read_until_end(out_fd)
    assert len(data) == 3_000_004
    assert data.endswith(b"end\n")
    assert read_until_end(err_fd) == b"bad\n"
    assert container.wait() == 0
    container.end()
    os.close(out_fd)
    os.close(err_fd)


def test_a_client_that_opens_late_still_gets_what_was_written(shims: Host) -> None:
    out = shims.fifo("late")
    container = shims.run("late", "echo", "early bird", stdio={"stdout": out})
    assert container.wait() == 0
    fd = read_end(out)
    assert read_until_end(fd) == b"early bird\n"
    os.close(fd)
    container.end()


def test_a_client_that_opens_late_sees_the_end_of_a_stream_without_output(shims: Host) -> None:
    """It waits for a writer to open its end, as clients do."""
    err = shims.fifo("silent")
    container = shims.run("silent", "true", stdio={"stderr": err})
    assert container.wait() == 0
    with subprocess.Popen(["cat", err], stdout=subprocess.PIPE) as client:
        try:
            assert client.communicate(timeout=DEADLINE)[0] == b""
        finally:
            client.kill()
    container.end()


def test_input_ends_when_the_client_has_closed_and_said_so(shims: Host) -> None:
    out, in_ = shims.fifo("out2"), shims.fifo("in2")
    out_fd = read_end(out)
    container = shims.run("cat", "cat", stdio={"stdin": in_, "stdout": out})
    first = os.open(in_, os.O_WRONLY | os.O_NONBLOCK)
    os.write(first, b"one\n")
    assert read_until(out_fd, b"one\n") == b"one\n"
    os.close(first)  # detached: the container's input goes on
    second = os.open(in_, os.O_WRONLY | os.O_NONBLOCK)
    os.write(second, b"two\n")
    assert read_until(out_fd, b"two\n") == b"two\n"
    container.client.call("CloseIO", pb.CloseIORequest(id="cat", stdin=True))
    container.client.call("CloseIO", pb.CloseIORequest(id="cat", stdin=True))
    assert container.state().status == 2
    os.close(second)

    assert read_until_end(out_fd) == b""
    assert container.wait() == 0
    container.end()
    os.close(out_fd)


def test_a_reader_that_goes_away_harms_nobody_and_another_may_come(shims: Host) -> None:
    out = shims.fifo("gone")
    fd = read_end(out)
    script = "i=0; while :; do i=$((i+1)); echo line $i; done"
    container = shims.run("gone", "sh", "-c", script, stdio={"stdout": out})
    read_until(fd, b"line 100\n")
    os.close(fd)
    assert container.state().status == 2
    fd = read_end(out)
    read_until(fd, b"line ")
    os.close(fd)
    container.kill()
    assert container.wait() == 137
    # The FIFO is full and nobody reads: Delete does not wait for that.
    container.end()


def test_a_name_that_is_no_fifo_is_refused(shims: Host) -> None:
    regular = shims.root / "regular"
    regular.write_text("keep")
    link = shims.root / "link"
    link.symlink_to(shims.fifo("behind"))
    for number, (path, error) in enumerate(
        ((regular, InvalidArgument), (link, InvalidArgument), ("/nowhere", NotFound))
    ):
        with pytest.raises(error):
            shims.create(f"bad{number}", "true", stdio={"stdout": str(path)})
    with pytest.raises(InvalidArgument, match="unknown STDIO scheme gopher"):
        shims.create("bad9", "true", stdio={"stdout": "gopher:///x"})
    assert regular.read_text() == "keep"


def test_a_terminal_echoes_resizes_and_hangs_up(shims: Host) -> None:
    out, in_ = shims.fifo("out3"), shims.fifo("in3")
    out_fd = read_end(out)
    container = shims.run("tty", "sh", terminal=True, stdio={"stdin": in_, "stdout": out})
    in_fd = os.open(in_, os.O_WRONLY)
    container.client.call("ResizePty", pb.ResizePtyRequest(id="tty", width=91, height=33))
    os.write(in_fd, b"stty size; tty\n")
    data = read_until(out_fd, b"/dev/pts/0")
    assert b"33 91\r\n" in data
    os.write(in_fd, b"exit 5\n")
    read_until_end(out_fd)
    assert container.wait() == 5
    container.end()
    os.close(in_fd)
    os.close(out_fd)


def test_an_exec_has_streams_of_its_own(shims: Host) -> None:
    container = shims.run("execio", "sleep", "1000")
    out, in_ = shims.fifo("out4"), shims.fifo("in4")
    out_fd = read_end(out)
    container.exec("e", "cat", stdin=in_, stdout=out)
    container.start("e")
    in_fd = os.open(in_, os.O_WRONLY)
    os.write(in_fd, b"hello\n")
    container.client.call("CloseIO", pb.CloseIORequest(id="execio", exec_id="e", stdin=True))
    os.close(in_fd)
    assert read_until_end(out_fd) == b"hello\n"
    assert container.wait("e") == 0
    container.delete("e")
    os.close(out_fd)
    tty = shims.fifo("out5")
    out_fd = read_end(tty)
    container.exec("t", "sh", "-c", "tty; exit 3", terminal=True, stdout=tty)
    container.start("t")
    assert b"/dev/pts/" in read_until_end(out_fd)
    assert container.wait("t") == 3
    container.delete("t")
    os.close(out_fd)
    container.end()


def test_every_line_is_in_the_rotated_log(shims: Host) -> None:
    log = shims.root / "log" / "json.log"
    script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done; printf last; echo oops >&2"
    uri = f"json-file://{log}?max-size=64k&max-file=1000"
    container = shims.run("rotated", "sh", "-c", script, stdio={"stdout": uri, "stderr": uri})
    assert container.wait() == 0

    # The log is complete before the end is told.
    files = sorted(log.parent.iterdir(), key=lambda path: -int(path.suffix[1:]) if path.suffix[1:].isdigit() else 0)
    assert len(files) > 10
    records = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    stdout = "".join(record["log"] for record in records if record["stream"] == "stdout")
    assert stdout == "".join(f"line {number}\n" for number in range(1, 20001)) + "last"
    assert [record["log"] for record in records if record["stream"] == "stderr"] == ["oops\n"]
    container.end()


def test_a_log_that_somebody_else_rotates_loses_no_line(shims: Host) -> None:
    log = shims.root / "cri" / "0.log"
    script = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); echo line $i; done; exec sleep 1000"
    container = shims.run("reopened", "sh", "-c", script, stdio={"stdout": f"cri://{log}"})
    for number in range(10):
        eventually(lambda: log.exists() and log.stat().st_size > 0, "something is logged")
        log.rename(log.with_name(f"0.log.{number}"))
        os.kill(container.shim_pid, signal.SIGUSR1)
        eventually(log.exists, "the log is opened anew")
        if b"line 30000\n" in log.with_name(f"0.log.{number}").read_bytes():
            break

    def texts() -> list[str]:
        lines = [line for path in log.parent.iterdir() for line in path.read_text().splitlines()]
        return [line.split(" ", 3)[3] for line in lines if line.count(" ") >= 3]  # one may be half written

    eventually(lambda: len(texts()) >= 30000, "all lines are there")
    assert sorted(texts()) == sorted(f"line {number}" for number in range(1, 30001))
    container.end()


def test_signals_that_end_others_do_nothing_to_a_shim(shims: Host) -> None:
    container = shims.run("signals", "sleep", "1000")
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(container.shim_pid, number)
    assert container.state().status == 2
    container.end()


def test_a_logging_binary_gets_both_streams(shims: Host) -> None:
    logger = shims.root / "logger"
    logger.write_text(
        "#!/bin/sh\nexec >$2 2>&1\necho start $CONTAINER_NAMESPACE $CONTAINER_ID $(env | wc -l)\necho >&5\nexec 5>&-\n"
        "cat <&3\ncat <&4\necho done\n"
    )
    logger.chmod(0o755)
    target = shims.root / "logger.out"
    uri = f"binary://{logger}?file={target}"
    container = shims.run("binary", "sh", "-c", "echo out; echo err >&2", stdio={"stdout": uri, "stderr": uri})
    assert container.wait() == 0
    container.delete()
    eventually(lambda: target.read_text().endswith("done\n"), "the logger has ended by itself")
    assert target.read_text().splitlines()[0].startswith("start ns binary")
    assert target.read_text().splitlines()[1:] == ["out", "err", "done"]
    container.shut_down()


def test_a_logging_binary_that_ends_too_early_is_started_again(shims: Host) -> None:
    """nerdctl's ends when the daemon does; what its container writes then neither ends that nor gets lost."""
    logger = shims.root / "oneline"
    logger.write_text("#!/bin/sh\necho >&5\nexec 5>&-\nread -r line <&3 && echo $line >>$2\n")
    logger.chmod(0o755)
    target = shims.root / "oneline.out"
    uri = f"binary://{logger}?file={target}"
    script = "echo one; echo two; exec sleep 1000"
    container = shims.run("oneline", "sh", "-c", script, stdio={"stdout": uri, "stderr": uri})
    eventually(lambda: target.exists() and target.read_text() == "one\ntwo\n", "the second line has come too")
    assert container.state().status == 2
    container.end()
    assert target.read_text() == "one\ntwo\n"


# --- attached clients ---


def test_a_client_that_attaches_before_the_start_gets_everything(shims: Host) -> None:
    log = shims.root / "attach1.log"
    uri = f"json-file://{log}"
    container = shims.create(
        "attach1", "sh", "-c", "echo out; echo err >&2; exit 4", stdio={"stdout": uri, "stderr": uri}
    )
    clients = [container.attach(exec_id="", stdout=True, stderr=True) for _ in range(3)]
    assert [client.hello() for client in clients] == [{"terminal": False, "status": "created"}] * 3
    container.start()
    for client in clients:
        frames = client.rest()
        assert b"".join(data for kind, data in frames if kind == 2) == b"out\n"
        assert b"".join(data for kind, data in frames if kind == 3) == b"err\n"
        assert frames[-1] == (5, b'{"exit_status": 4}')
        client.close()
    assert len(log.read_text().splitlines()) == 2
    late = container.attach(exec_id="", stdout=True)
    assert late.hello()["status"] == "stopped"
    assert late.rest() == [(5, b'{"exit_status": 4}')]
    late.close()
    container.end()


@pytest.mark.parametrize("stdin", ["", "attach:"])
def test_attached_input_reaches_the_process_and_ends_it(shims: Host, stdin: str) -> None:
    name = f"attachin{len(stdin)}"
    uri = f"cri://{shims.root}/{name}.log"
    container = shims.create(name, "cat", stdio={"stdin": stdin, "stdout": uri})
    client = container.attach(exec_id="", stdin=True, stdout=True)
    client.hello()
    container.start()
    payload = os.urandom(300_000).hex().encode()
    received = b""
    for start in range(0, len(payload), 50_000):
        client.send(1, payload[start : start + 50_000])
        while len(received) < start:
            kind, data = client.frame() or (None, b"")
            assert kind == 2
            received += data
    client.send(1, b"")
    frames = client.rest()
    assert received + b"".join(data for kind, data in frames if kind == 2) == payload
    assert frames[-1][0] == 5
    client.close()
    assert container.wait() == 0
    container.end()


def test_input_that_nobody_sends_is_at_its_end(shims: Host) -> None:
    container = shims.run("noinput", "cat", stdio={"stdout": f"cri://{shims.root}/noinput.log"})
    assert container.wait() == 0
    container.end()


def test_an_exec_without_streams_is_all_its_attached_clients(shims: Host) -> None:
    container = shims.run("attachexec", "sleep", "1000")
    container.exec("e", "sh", "-c", "read x; echo got $x; stty size", terminal=True)
    client = container.attach(exec_id="e", stdin=True, stdout=True)
    assert client.hello() == {"terminal": True, "status": "created"}
    container.start("e")
    client.send(4, struct.pack(">2H", 77, 22))
    client.send(1, b"this\n")
    frames = client.rest()
    output = b"".join(data for kind, data in frames if kind == 2)
    assert b"got this\r\n22 77\r\n" in output
    assert frames[-1] == (5, b'{"exit_status": 0}')
    client.close()
    container.exec("p", "sh", "-c", "cat; echo e >&2")
    client = container.attach(exec_id="p", stdin=True, stdout=True, stderr=True)
    client.hello()
    container.start("p")
    client.send(1, b"piped")
    client.send(1, b"")
    assert sorted(client.rest()) == [(2, b"piped"), (3, b"e\n"), (5, b'{"exit_status": 0}')]
    client.close()
    stranger = container.attach(exec_id="nobody")
    assert "process does not exist nobody" in stranger.hello()["error"]
    assert stranger.rest() == []
    stranger.close()
    container.end()


def test_a_client_that_takes_nothing_is_cut_off_and_the_container_goes_on(shims: Host) -> None:
    container = shims.create(
        "stuck",
        "sh",
        "-c",
        "while :; do echo 0123456789012345678901234567890123456789; done",
        stdio={"stdout": "attach:"},
    )
    stuck = container.attach(exec_id="", stdout=True)
    good = container.attach(exec_id="", stdout=True)
    stuck.hello()
    good.hello()
    container.start()
    # Far more than any buffer holds, so it can only arrive if the stuck client does not hold it up for good.
    total = 0
    while total < 4 << 20:
        kind, data = good.frame() or (None, b"")
        assert kind == 2
        total += len(data)
    container.kill()
    assert good.rest()[-1][0] == 5
    frames = stuck.rest()
    assert frames[-1][0] == 6
    assert b"cut off" in frames[-1][1]
    stuck.close()
    good.close()
    container.end()
