"""F44: signals to the daemon, zygote and shims; each does what it is documented to do, and no container minds."""

import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2
from pyctr_wire.containerd.types.task import task_pb2 as types
from support.containers import Containers
from support.daemon_process import DaemonProcess, wait_until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("leaving_nothing")]

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# What a terminal, a supervisor or a person with `kill` may send to any process.
HARMLESS = (
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGPIPE,
    signal.SIGCHLD,
    signal.SIGWINCH,
    signal.SIGURG,
    signal.SIGCONT,
    signal.SIGTSTP,
)
# By shims and zygote: every one that can be, those among them that the C library keeps for itself.
ENDURED = tuple(number for number in range(1, signal.NSIG) if number not in (signal.SIGKILL, signal.SIGSTOP))
DEFAULTS = "[ $(grep -cE '^Sig(Blk|Ign):.0+$' /proc/self/status) = 2 ]"


def zygote_of(daemon: DaemonProcess) -> int:
    return int(Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()[0])


def shuffled(numbers: Sequence[int], rounds: int = 3) -> list[int]:
    """Return each signal several times, in an order that a failure shows."""
    many = [*numbers] * rounds
    return random.sample(many, len(many))


def works(containers: Containers, id: str) -> None:
    """Check that a container runs, and does what it is told."""
    assert containers.status(id) == types.RUNNING
    containers.exec(id, "probe", "sh", "-c", "exit 3")
    assert containers.wait(id, "probe").status == 3
    containers.tasks("DeleteProcess", tasks_pb2.DeleteProcessRequest(container_id=id, exec_id="probe"))


def test_harmless_to_the_daemon(containers: Containers, daemon: DaemonProcess) -> None:
    """The same daemon goes on, also with what it was doing."""
    pid = containers.run("web", "sleep", "1000")
    wait = containers.future("Wait", tasks_pb2.WaitRequest(container_id="web"))
    zygote = zygote_of(daemon)

    for number in (sent := shuffled(HARMLESS)):
        os.kill(daemon.pid, number)
        if number == signal.SIGTSTP:
            os.kill(daemon.pid, signal.SIGCONT)

    assert daemon.process is not None
    works(containers, "web")
    assert daemon.process.poll() is None, sent
    assert zygote_of(daemon) == zygote
    os.kill(pid, signal.SIGKILL)
    assert wait.result().exit_status == 137


def test_thousands_are_harmless_to_the_daemon(containers: Containers, daemon: DaemonProcess) -> None:
    """They have it write its stacks while they change: as others have it reload, and as it answers."""
    containers.run("web", "sleep", "1000")
    before = daemon.pid

    for _ in range(500):
        for number in shuffled((signal.SIGHUP, signal.SIGUSR1), rounds=10):
            os.kill(before, number)
        assert containers.status("web") == types.RUNNING

    works(containers, "web")
    assert daemon.pid == before


@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
def test_stops_the_daemon(containers: Containers, daemon: DaemonProcess, number: signal.Signals) -> None:
    """And nothing else, however often it is sent; the next daemon finds everything."""
    pid = containers.run("web", "sleep", "1000")
    wait = containers.future("Wait", tasks_pb2.WaitRequest(container_id="web"))
    containers.status("web")

    os.kill(daemon.pid, number)
    assert daemon.stop(number) == 0

    assert wait.code().name == "UNAVAILABLE"
    assert Path(f"/proc/{pid}").exists()
    daemon.start()
    works(containers, "web")
    assert [process.pid for process in containers.tasks("ListPids", pids_of("web")).processes] == [pid]


def pids_of(id: str) -> tasks_pb2.ListPidsRequest:
    return tasks_pb2.ListPidsRequest(container_id=id)


def test_shims_and_zygote_endure(containers: Containers, daemon: DaemonProcess) -> None:
    """No signal that asks a program to end reaches the container through its shim."""
    containers.run("web", "sh", "-c", "trap 'exit 99' HUP INT QUIT TERM USR1 USR2 PIPE; while :; do sleep 0.1; done")
    shim, zygote = containers.shim_pid("web"), zygote_of(daemon)

    for number in shuffled(ENDURED):
        os.kill(shim, number)
        os.kill(zygote, number)

    works(containers, "web")
    assert containers.shim_pid("web") == shim
    containers.run("after", "sleep", "1000")
    works(containers, "after")
    assert zygote_of(daemon) == zygote
    containers.kill("web", signal.SIGTERM)
    assert containers.wait("web").status == 99


def test_containers_begin_with_no_signal_blocked_or_ignored(containers: Containers) -> None:
    containers.run("web", "sleep", "1000")
    containers.exec("web", "probe", "sh", "-c", DEFAULTS)
    assert containers.wait("web", "probe").status == 0
    containers.tasks("DeleteProcess", tasks_pb2.DeleteProcessRequest(container_id="web", exec_id="probe"))
    containers.run("init", "sh", "-c", DEFAULTS)
    assert containers.wait("init").status == 0


def test_zygote_endures_from_its_first_moment(containers: Containers, daemon: DaemonProcess) -> None:
    """Signals that come before it has taken them over wait for it."""
    daemon.stop()
    daemon.start(wait=False)
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children")
    wait_until(lambda: children.read_text() != "", "the zygote has been started")
    zygote = zygote_of(daemon)
    for number in shuffled(tuple(set(ENDURED) & signal.valid_signals())):
        os.kill(zygote, number)
    daemon.wait_ready()

    containers.run("web", "sleep", "1000")

    works(containers, "web")
    assert zygote_of(daemon) == zygote


def test_a_shim_opens_its_log_anew(containers: Containers) -> None:
    """SIGUSR1, as logrotate would send it: every line is in one file or the other."""
    log, moved = containers.rootfs / "log", containers.rootfs / "moved"
    containers.define("web", "sh", "-c", "echo one; until [ -e /go ]; do sleep 0.05; done; echo two; sleep 1000")
    containers.create("web", stdout=f"file://{log}")
    containers.start("web")
    wait_until(lambda: log.exists() and log.read_text() == "one\n", "the first line is written")

    log.rename(moved)
    os.kill(containers.shim_pid("web"), signal.SIGUSR1)
    wait_until(log.exists, "there is a new log")
    (containers.rootfs / "go").touch()

    wait_until(lambda: log.read_text() == "two\n", "the second line is written")
    assert moved.read_text() == "one\n"
    for path in (log, moved, containers.rootfs / "go"):
        path.unlink()


def test_signals_at_random_while_it_works(containers: Containers, daemon: DaemonProcess) -> None:
    """To whatever of ours there is; a daemon that one has stopped is started again."""
    ids = [f"c{number}" for number in range(5)]
    for id in ids:
        containers.run(id, "sleep", "1000")
    shims = [containers.shim_pid(id) for id in ids]
    sent: list[tuple[str, int]] = []
    for turn in range(6):
        for _ in range(10):
            number = random.choice(ENDURED)
            name, pid = random.choice([("zygote", zygote_of(daemon)), *(("shim", shim) for shim in shims)])
            os.kill(pid, number)
            sent.append((name, number))
        assert daemon.process is not None
        number = random.choice([*STOPPING, *(one for one in HARMLESS if one != signal.SIGTSTP)])
        os.kill(daemon.pid, number)
        sent.append(("daemon", number))
        if number in STOPPING:
            assert daemon.wait_ended() == 0, sent
            daemon.start()
        works(containers, ids[turn % len(ids)])
    assert [containers.status(id) for id in ids] == [types.RUNNING] * len(ids), sent
    assert [containers.shim_pid(id) for id in ids] == shims
