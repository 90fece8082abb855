"""A shim with nothing to do: its worker ends, and on the next event another one goes on as if it were the same."""

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from google.protobuf import any_pb2
from google.protobuf.message import Message

from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as pb
from support.shim_harness import DEADLINE, Host, Running, eventually, host

pytestmark = pytest.mark.root
_OWN_MEMORY_KIB = 1400
_MOMENTS: Final = 12
_DROWSY_SECONDS: Final = 1.5
_SEIZE: Final = 0x4206  # source: linux/ptrace.h
_TRACER: Final = f"import ctypes, sys; ctypes.CDLL(None).ptrace({_SEIZE}, int(sys.argv[1]), 0, 0); sys.stdin.read()"
_RESOURCES: Final = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


@pytest.fixture(scope="module")
def shims() -> Iterator[Host]:
    with host() as here:
        yield here


def workers(shim_pid: int) -> list[int]:
    """Return the keeper's workers: none or one."""
    found = []
    for pid in Path(f"/proc/{shim_pid}/task/{shim_pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            if Path(f"/proc/{pid}/comm").read_text() == "pyctr-shim:work\n":
                found.append(int(pid))
    return found


def fall_asleep(container: Running) -> None:
    eventually(lambda: not workers(container.shim_pid), "the worker ends")


def private_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


def test_it_keeps_little_memory_and_each_descriptor_once(shims: Host) -> None:
    container = shims.run("small", "sleep", "1000", stdio={"stdout": f"json-file://{shims.root}/small.log"})
    counts = []
    for number in range(3):
        container.exec(f"e{number}", "true")
        container.start(f"e{number}")
        eventually(lambda name=f"e{number}": container.state(name).status == 3, "the exec ends")
        container.delete(f"e{number}")
        fall_asleep(container)
        counts.append(len(os.listdir(f"/proc/{container.shim_pid}/fd")))
    assert len(set(counts)) == 1
    assert private_kib(container.shim_pid) < _OWN_MEMORY_KIB
    assert len(os.listdir(f"/proc/{container.shim_pid}/task")) == 1
    container.end()


def test_ends_are_recorded_and_told(shims: Host) -> None:
    """Of an exec and of the container, both ended by others, each while nobody works."""
    container = shims.run("ends", "sleep", "1000")
    container.exec("inner", "sleep", "1000")
    inner = container.start("inner")
    fall_asleep(container)
    os.kill(inner, signal.SIGKILL)
    assert shims.events.wait_for("/tasks/exit", container_id="ends", id="inner").event.exit_status == 137
    fall_asleep(container)
    os.kill(container.pid, signal.SIGKILL)
    assert shims.events.wait_for("/tasks/exit", container_id="ends", id="ends").event.exit_status == 137
    record = json.loads((container.bundle / "exits/init.json").read_text())
    assert record["exit_status"] == 137
    assert record["rusage"]["max_rss_bytes"] > 0
    fall_asleep(container)
    assert container.state().exit_status == 137
    container.end()
    sequence = [told.sequence for told in shims.events.about("ends")]
    assert sequence == list(range(1, len(sequence) + 1))


def test_an_execs_parent_does_not_fall_asleep(shims: Host) -> None:
    """A program may have asked to die with its parent."""
    container = shims.run("parent", "sleep", "1000")
    container.exec("inner", "sleep", "1000")
    inner = container.start("inner")
    assert f"PPid:\t{container.shim_pid}\n" in Path(f"/proc/{inner}/status").read_text()
    container.end()


def test_an_exec_may_end_as_the_worker_does(shims: Host) -> None:
    containers = [shims.run(f"moment{number}", "sleep", "1000") for number in range(_MOMENTS)]
    for number, container in enumerate(containers):
        seconds = _DROWSY_SECONDS + (number - _MOMENTS / 2) / 1000
        container.exec("inner", "sh", "-c", f"sleep {seconds}; exit 7")
        container.start("inner")
    for container in containers:
        assert shims.events.wait_for("/tasks/exit", container_id=container.id, id="inner").event.exit_status == 7
        container.delete("inner")
        container.end()


def test_an_exec_that_is_traced_ends_when_its_tracer_lets_it(shims: Host) -> None:
    container = shims.run("traced", "sleep", "1000")
    container.exec("inner", "sleep", "1000")
    inner = container.start("inner")
    with subprocess.Popen([sys.executable, "-c", _TRACER, str(inner)], stdin=subprocess.PIPE) as tracer:
        eventually(lambda: f"TracerPid:\t{tracer.pid}\n" in Path(f"/proc/{inner}/status").read_text(), "it is traced")
        os.kill(inner, signal.SIGKILL)
        eventually(lambda: "State:\tZ" in Path(f"/proc/{inner}/status").read_text(), "it has ended")
        assert container.state("inner").status == 2
    assert shims.events.wait_for("/tasks/exit", container_id="traced", id="inner").event.exit_status == 137
    container.end()


def test_streams_go_on(shims: Host) -> None:
    """From a FIFO through the container into a log that is renamed meanwhile."""
    stdin, log = shims.fifo("sleepin"), shims.root / "sleep.log"
    container = shims.run("streams", "cat", stdio={"stdin": stdin, "stdout": f"cri://{log}", "stderr": f"cri://{log}"})
    write_fd = os.open(stdin, os.O_WRONLY)
    for text in ("one", "two"):
        fall_asleep(container)
        os.write(write_fd, f"{text}\n".encode())
        eventually(lambda text=text: log.exists() and f" stdout F {text}\n" in log.read_text(), "the line is logged")
    fall_asleep(container)
    log.rename(shims.root / "old.log")
    os.kill(container.shim_pid, signal.SIGUSR1)
    eventually(log.exists, "the log is opened anew")
    os.write(write_fd, b"unfinished")
    fall_asleep(container)  # half a line is kept
    os.write(write_fd, b" business\n")
    eventually(lambda: " stdout F unfinished business\n" in log.read_text(), "the whole line is logged")
    fall_asleep(container)
    os.close(write_fd)
    container.client.call("CloseIO", pb.CloseIORequest(id="streams", stdin=True))
    assert container.wait() == 0
    container.end()


def test_a_terminal_and_its_attached_client_stay(shims: Host) -> None:
    container = shims.create("terminal", "sh", terminal=True)
    client = container.attach(stdin=True, stdout=True)
    assert client.hello()["terminal"] is True
    container.start()
    fall_asleep(container)
    client.send(4, struct.pack(">2H", 123, 45))
    client.send(1, b"stty size; exit 3\n")
    output, end = b"", None
    while end is None:
        frame = client.frame()
        assert frame is not None, output
        output, end = (output + frame[1], None) if frame[0] == 2 else (output, frame)
    assert b"45 123" in output
    assert json.loads(end[1]) == {"exit_status": 3}
    client.close()
    container.end()


def test_a_frozen_container_thaws(shims: Host) -> None:
    container = shims.run("frozen", "sleep", "1000")
    container.client.call("Pause", pb.PauseRequest(id="frozen"))
    fall_asleep(container)
    assert container.state().status == 4
    fall_asleep(container)
    container.client.call("Resume", pb.ResumeRequest(id="frozen"))
    assert container.state().status == 2
    container.end()


def test_memory_kills_wake_it(shims: Host) -> None:
    limit = {"resources": {"memory": {"limit": 16 << 20}, "devices": [{"allow": True, "access": "rwm"}]}}
    script = "read x; x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done"
    stdin = shims.fifo("oomin")
    container = shims.run("oomsleep", "sh", "-c", script, stdio={"stdin": stdin}, **limit)
    write_fd = os.open(stdin, os.O_WRONLY)
    fall_asleep(container)
    os.write(write_fd, b"go\n")
    os.close(write_fd)
    shims.events.wait_for("/tasks/oom", container_id="oomsleep")
    assert container.wait() == 137
    assert json.loads((container.bundle / "exits/init.json").read_text())["reason"] == "oom"
    container.end()


def test_a_parked_call_is_answered(shims: Host) -> None:
    """Whoever waits for an exit keeps the worker, whatever else happens."""
    container = shims.run("parked", "sleep", "1000")
    wait = container.client.send("Wait", pb.WaitRequest(id="parked"))
    other = shims.connect(container.request)
    for _ in range(2):
        other.call("State", pb.StateRequest(id="parked"))
        select.select([], [], [], 2)  # long enough to fall asleep, were it not for the call
        assert workers(container.shim_pid)
    other.close()
    container.kill()
    assert container.client.answer(wait).exit_status == 137
    container.end()


@pytest.mark.parametrize("victim", ["worker", "keeper"])
def test_neither_survives_the_other(shims: Host, victim: str) -> None:
    container = shims.run(f"without-{victim}", "sleep", "1000")
    container.state()
    worker = workers(container.shim_pid)[0]
    pidfds = [os.pidfd_open(pid) for pid in (worker, container.shim_pid)]
    os.kill(worker if victim == "worker" else container.shim_pid, signal.SIGKILL)
    for pidfd in pidfds:
        assert select.select([pidfd], [], [], DEADLINE)[0]
        os.close(pidfd)
    container.client.close()
    os.kill(container.pid, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{container.pid}").exists(), "the container's process ends")
    for cgroup in Path("/sys/fs/cgroup").glob(f"*/{shims.group}/{container.id}"):
        cgroup.rmdir()
    for name in ("socket", "attach"):
        os.unlink(container.request[name])


def test_a_container_that_waits_for_its_start_is_started(shims: Host) -> None:
    container = shims.create(
        "waiting", "sh", "-c", "echo started; exit 7", stdio={"stdout": f"json-file://{shims.root}/waiting.log"}
    )
    client = container.attach(stdout=True)
    client.hello()
    fall_asleep(container)
    container.start()
    assert container.wait() == 7
    assert (2, b"started\n") in client.rest()
    client.close()
    container.end()


def test_every_call_is_answered_as_if_it_had_not_slept(shims: Host) -> None:
    """One rest before each call, on a container with an exec that waits for its start and one with a terminal."""
    script = "trap 'exit 5' TERM; while :; do read -t 1 x; done"
    container = shims.create("calls", "sh", "-c", script, stdio={"stdin": shims.fifo("callsin")})

    def call(method: str, request: Message) -> Any:
        fall_asleep(container)
        return container.client.call(method, request)

    pid = call("Start", pb.StartRequest(id="calls")).pid
    container.exec("late", "sh", "-c", "echo late; exit 4", stdout=f"json-file://{shims.root}/late.log")
    container.exec("tty", "sh", terminal=True)
    assert call("State", pb.StateRequest(id="calls", exec_id="late")).status == 1
    tty = call("Start", pb.StartRequest(id="calls", exec_id="tty")).pid
    call("ResizePty", pb.ResizePtyRequest(id="calls", exec_id="tty", width=90, height=30))
    assert {info.pid for info in call("Pids", pb.PidsRequest(id="calls")).processes} >= {pid, tty}
    limits = any_pb2.Any(type_url=_RESOURCES, value=json.dumps({"pids": {"limit": 55}}).encode())
    call("Update", pb.UpdateTaskRequest(id="calls", resources=limits))
    assert b"7" in call("Stats", pb.StatsRequest(id="calls")).stats.value  # pids.limit is 55, 0x37
    call("Start", pb.StartRequest(id="calls", exec_id="late"))
    assert call("Wait", pb.WaitRequest(id="calls", exec_id="late")).exit_status == 4
    assert "late" in (shims.root / "late.log").read_text()
    assert call("Delete", pb.DeleteRequest(id="calls", exec_id="late")).exit_status == 4
    call("Kill", pb.KillRequest(id="calls", exec_id="tty", signal=9))
    assert call("Delete", pb.DeleteRequest(id="calls", exec_id="tty")).exit_status == 137
    assert call("Connect", pb.ConnectRequest(id="calls")).task_pid == pid
    call("CloseIO", pb.CloseIORequest(id="calls", stdin=True))
    call("Kill", pb.KillRequest(id="calls", signal=15, all=True))
    assert call("Wait", pb.WaitRequest(id="calls")).exit_status == 5
    assert call("Delete", pb.DeleteRequest(id="calls")).exit_status == 5
    container.shut_down()


def test_a_container_that_is_never_started_goes(shims: Host) -> None:
    for end in ("kill", "delete"):
        container = shims.create(end, "sleep", "1000")
        pidfd = os.pidfd_open(container.pid)
        fall_asleep(container)
        if end == "kill":
            container.kill()
            fall_asleep(container)
        container.delete()
        assert select.select([pidfd], [], [], DEADLINE)[0]
        os.close(pidfd)
        container.shut_down()
