"""F07 to F10: shims are killed or stopped; only their own containers notice, and nothing of them is left."""

import os
import signal
import time

import grpc
import pytest

from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2
from pyctr_wire.containerd.types.task import task_pb2 as types
from support.containers import Containers, EventLog
from support.daemon_process import DaemonProcess, wait_until
from support.tracing import KillAt, needs_strace

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("leaving_nothing")]


def lives(pid: int) -> bool:
    """Whether a process runs; zombies do not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("down", [False, True], ids=["daemon up", "daemon down"])
def test_running_container_of_a_killed_shim(containers: Containers, daemon: DaemonProcess, down: bool) -> None:
    """It is ended, and its statuses are unknown: 255, never 0 or 137; an exec that had ended keeps its own."""
    # Of its own: what the other case's daemon told is told once more to those who subscribe soon after its start.
    id = "down" if down else "up"
    pid = containers.run(id, "sleep", "1000")
    containers.run("other", "sleep", "1000")
    containers.exec(id, "ended", "sh", "-c", "exit 3")
    containers.wait(id, "ended")
    inner = containers.exec(id, "running", "sleep", "1000")
    shim = containers.shim_pid(id)
    with EventLog(containers) as events:
        if down:
            daemon.kill()
        os.kill(shim, signal.SIGKILL)
        if down:
            daemon.start()
        assert containers.wait(id).status == 255
        assert containers.wait(id, "running").status == 255
        assert containers.wait(id, "ended").status == 3
        assert containers.status(id) == types.STOPPED
        wait_until(lambda: not lives(pid) and not lives(inner), "its processes end")
        with pytest.raises(grpc.RpcError) as refused:
            containers.kill(id)
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
        assert containers.delete(id).status == 255
        if not down:
            events.wait_for(lambda: events.topics(id)[-1:] == ["delete"], "the deletion is told")
            told = [(event.id, event.status) for event in events.of(id) if event.topic == "/tasks/exit"]
            # Who subscribes soon after the daemon's start is told of earlier ends once more.
            assert [one for one in told if one != ("ended", 3)] == [("running", 255), (id, 255)]
    assert containers.status("other") == types.RUNNING
    containers.create(id)


@needs_strace
@pytest.mark.parametrize(("name", "nth"), [("mkdir", 1), ("openat", 5), ("sendto", 1)])
def test_shim_killed_in_delete(containers: Containers, name: str, nth: int) -> None:
    """Whatever it had done: the status that it had recorded is the answer, and nothing is left."""
    containers.run("web", "sh", "-c", "exit 42")
    containers.wait("web")
    with KillAt(containers.worker_pid("web"), name, nth):
        assert containers.delete("web").status == 42


@needs_strace
@pytest.mark.parametrize(("name", "nth"), [("clone", 1), ("sendto", 1), ("write", 1)])
def test_shim_killed_in_exec(containers: Containers, name: str, nth: int) -> None:
    containers.run("web", "sleep", "1000")
    containers.add_exec("web", "sh", "sleep", "1000")
    with KillAt(containers.worker_pid("web"), name, nth):
        request = tasks_pb2.StartRequest(container_id="web", exec_id="sh")
        started = containers.future("Start", request).exception() is None
        if started:  # the step was not part of it
            os.kill(containers.shim_pid("web"), signal.SIGKILL)
        assert containers.wait("web").status == 255
    assert containers.delete("web").status == 255


def test_stopped_shim_is_unresponsive_alone(containers: Containers) -> None:
    containers.run("web", "sleep", "1000")
    containers.run("other", "sleep", "1000")
    shim = containers.shim_pid("web")
    os.killpg(shim, signal.SIGSTOP)
    try:
        calls = [
            containers.future("Kill", tasks_pb2.KillRequest(container_id="web", signal=9)),
            containers.future("Metrics", tasks_pb2.MetricsRequest()),
        ]
        # While those wait, nobody else does.
        begin = time.monotonic()
        assert sorted(containers.task_ids()) == ["other", "web"]
        assert containers.status("web") == types.RUNNING
        containers.exec("other", "e", "true")
        assert containers.wait("other", "e").status == 0
        assert time.monotonic() - begin < 10
        assert calls[0].exception().code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "task web: Kill: the shim did not answer" in calls[0].exception().details()
        # What it uses is read from its cgroup, without asking it.
        assert sorted(metric.id for metric in calls[1].result().metrics) == ["other", "web"]
    finally:
        os.killpg(shim, signal.SIGCONT)
    # The signal had been on its way.
    assert containers.wait("web").status == 137


def test_daemon_starts_beside_stopped_shims(containers: Containers, daemon: DaemonProcess) -> None:
    """F10 with the numbers of a test machine: a second for those that do not answer, and they are listed too."""
    ids = [f"c{number}" for number in range(10)]
    for id in ids:
        containers.run(id, "sleep", "1000")
    shims = [containers.shim_pid(id) for id in ids[:3]]
    for shim in shims:
        os.killpg(shim, signal.SIGSTOP)
    try:
        daemon.kill()
        daemon.start()
        assert sorted(containers.task_ids()) == ids
        assert all(containers.status(id) == types.RUNNING for id in ids)
    finally:
        for shim in shims:
            os.killpg(shim, signal.SIGCONT)
    for id in ids:
        containers.kill(id)
    assert {containers.wait(id).status for id in ids} == {137}


def test_zygote_killed(containers: Containers, daemon: DaemonProcess) -> None:
    """Shims do not mind, and new ones start cold until there is another zygote."""
    containers.run("before", "sleep", "1000")
    zygote = int(children(daemon.pid)[0])
    os.kill(zygote, signal.SIGKILL)
    containers.run("meanwhile", "sleep", "1000")
    assert containers.status("before") == types.RUNNING
    wait_until(lambda: str(zygote) not in children(daemon.pid) != [], "another zygote")
    containers.run("after", "sleep", "1000")


def children(pid: int) -> list[str]:
    """Return the pids of a process's children."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()
