"""F01 to F03, F06: the daemon is killed at each step of a call, or while containers end; nothing is lost or left."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import grpc
import pytest

from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2
from pyctr_wire.containerd.types.task import task_pb2 as types
from support.containers import Containers, EventLog
from support.daemon_process import DaemonProcess, wait_until
from support.tracing import KillAt, needs_strace

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("leaving_nothing"), needs_strace]


def told_exits(events: EventLog, container: str, number: int) -> bool:
    """Whether so many exits of a container's processes have been told."""
    return events.topics(container).count("exit") == number


def killed_at(containers: Containers, name: str, nth: int, call: Callable[[], object]) -> bool:
    """Make the call while the daemon is killed at a system call; start another; return whether an answer came."""
    daemon = containers.daemon
    answered = False
    with KillAt(daemon.pid, name, nth):
        with suppress(grpc.RpcError):
            call()
            answered = True
        if answered:  # the step comes after the answer
            daemon.wait_ended()
        else:
            assert daemon.wait_ended() == -9
    daemon.start()
    return answered


# The system calls of the daemon's main thread in a Create, each the last before something else is true:
# directory, files, the bundle's name, the request to the zygote, Create to the shim, the answer to the client.
@pytest.mark.parametrize(
    ("name", "nth"),
    [("mkdir", 1), ("openat", 1), ("openat", 2), ("rename", 1), ("sendmsg", 1), ("write", 4), ("sendmsg", 2)],
)
def test_create(containers: Containers, name: str, nth: int) -> None:
    """The same call made again succeeds, whether the first left nothing or everything."""
    containers.define("web", "sleep", "1000")
    assert not killed_at(containers, name, nth, lambda: containers.create("web"))
    pid = containers.create("web")
    assert containers.status("web") == types.CREATED
    assert containers.start("web") == pid
    with pytest.raises(grpc.RpcError) as refused:
        containers.create("web")
    assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS


# The request to the shim, its answer, the first file of the note, its name, the answer to the client.
@pytest.mark.parametrize(("name", "nth"), [("write", 2), ("write", 3), ("openat", 1), ("rename", 1), ("sendmsg", 1)])
def test_exec(containers: Containers, name: str, nth: int) -> None:
    """The new daemon says what is true: the process waits to be started, or there is none."""
    containers.run("web", "sleep", "1000")

    def add() -> None:
        containers.add_exec("web", "sh", "sh", "-c", "exit 3")

    assert not killed_at(containers, name, nth, add)
    if containers.status("web", "sh") is None:
        add()
    else:
        with pytest.raises(grpc.RpcError) as refused:
            add()
        assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS
    assert containers.status("web", "sh") == types.CREATED
    containers.start("web", "sh")
    assert containers.wait("web", "sh").status == 3


@pytest.mark.parametrize(("name", "nth"), [("write", 2), ("sendmsg", 1)])
@pytest.mark.parametrize("exec_id", ["", "sh"])
def test_start(containers: Containers, name: str, nth: int, exec_id: str) -> None:
    """The new daemon says what is true: the process waits still, or runs."""
    containers.define("web", "sleep", "1000")
    containers.create("web")
    if exec_id:
        containers.start("web")
        containers.add_exec("web", exec_id, "sleep", "1000")
    assert not killed_at(containers, name, nth, lambda: containers.start("web", exec_id))
    running = containers.status("web", exec_id) == types.RUNNING
    # Wake-ups of the loop are writes too: a kill at a write may come before or after the request to the shim.
    assert running or name == "write"
    if not running:
        assert containers.status("web", exec_id) == types.CREATED
        containers.start("web", exec_id)
    containers.kill("web", exec_id=exec_id)
    assert containers.wait("web", exec_id).status == 137


@pytest.mark.parametrize(("name", "nth"), [("write", 2), ("sendmsg", 1)])
def test_kill(containers: Containers, name: str, nth: int) -> None:
    containers.run("web", "sleep", "1000")
    assert not killed_at(containers, name, nth, lambda: containers.kill("web"))
    if name == "write":
        with suppress(grpc.RpcError):  # ended already, where the request was out before the kill
            containers.kill("web")
    assert containers.wait("web").status == 137


@pytest.mark.parametrize(
    ("name", "nth"),
    [("write", 2), ("rename", 1), ("write", 3), ("sendmsg", 1), ("unlink", 1), ("unlink", 3), ("rmdir", 3)],
)
def test_delete(containers: Containers, name: str, nth: int) -> None:
    """A Delete without an answer, made again, gets the real status; then the task is gone."""
    containers.run("web", "sh", "-c", "exit 42")
    containers.wait("web")
    answered = killed_at(containers, name, nth, lambda: containers.delete("web"))
    if not answered:
        assert containers.delete("web").status == 42
    wait_until(lambda: containers.status("web") is None, "no task")
    containers.create("web")


@pytest.mark.parametrize(("name", "nth"), [("write", 2), ("sendmsg", 1)])
def test_pause(containers: Containers, name: str, nth: int) -> None:
    containers.run("web", "sleep", "1000")
    request = tasks_pb2.PauseTaskRequest(container_id="web")
    assert not killed_at(containers, name, nth, lambda: containers.tasks("Pause", request))
    allowed = {types.PAUSED} if name == "sendmsg" else {types.PAUSED, types.RUNNING}
    assert containers.status("web") in allowed


def test_exits_while_the_daemon_is_down(containers: Containers, daemon: DaemonProcess) -> None:
    """Statuses of containers and execs are exact, and told in order to those who subscribe to the next daemon."""
    ends = {0: "exit 0", 1: "exit 1", 7: "exit 7", 137: "kill -KILL $$", 139: "kill -SEGV $$"}
    execs, inits = containers.gate("execs"), containers.gate("inits")
    for status in ends:
        containers.run(f"c{status}", "sh", "-c", "read x < /inits; exit 3")
        for exec_status, end in ends.items():
            # Pid 1 of a pid namespace gets no signal from itself, but an exec does.
            containers.exec(f"c{status}", f"e{exec_status}", "sh", "-c", f"read x < /execs; {end}")
    daemon.kill()

    def recorded(name: str) -> bool:
        return all((containers.bundles / f"c{status}/exits/{name}.json").exists() for status in ends)

    execs.open()
    wait_until(lambda: all(recorded(f"exec-e{status}") for status in ends), "all execs have ended")
    inits.open()
    wait_until(lambda: recorded("init"), "all containers have ended")

    daemon.start()
    with EventLog(containers) as events:
        for status in ends:
            id = f"c{status}"
            # What came just before the kill may be told again: at least once is the promise.
            events.wait_for(partial(told_exits, events, id, len(ends) + 1), "six exits are told")
            told = [(event.id, event.status) for event in events.of(id) if event.topic == "/tasks/exit"]
            assert sorted(told[:-1]) == sorted((f"e{exec_status}", exec_status) for exec_status in ends)
            assert told[-1] == (id, 3)
            assert containers.status(id) == types.STOPPED
            assert containers.wait(id).status == 3
            for exec_status in ends:
                assert containers.wait(id, f"e{exec_status}").status == exec_status
            assert containers.delete(id).status == 3


@pytest.mark.parametrize(("end", "status"), [("exit 0", 0), ("exit 1", 1), ("exit 7", 7)])
def test_exit_of_init_while_the_daemon_is_down(
    containers: Containers, daemon: DaemonProcess, end: str, status: int
) -> None:
    gate = containers.gate()
    containers.run("web", "sh", "-c", f"read x < /gate; {end}")
    daemon.kill()
    gate.open()
    wait_until((containers.bundles / "web/exits/init.json").exists, "it has ended")
    daemon.start()
    assert containers.wait("web").status == status


def test_init_killed_while_the_daemon_is_down(containers: Containers, daemon: DaemonProcess) -> None:
    pid = containers.run("web", "sleep", "1000")
    # The first process of a pid namespace would not take the other signal.
    linux = containers.spec("other")["linux"]
    linux["namespaces"] = [one for one in linux["namespaces"] if one["type"] != "pid"]
    containers.define("other", "sleep", "1000", linux=linux)
    other = containers.create("other")
    containers.start("other")
    daemon.kill()
    os.kill(pid, signal.SIGKILL)
    os.kill(other, signal.SIGSEGV)
    daemon.start()
    assert containers.wait("web").status == 137
    assert containers.wait("other").status == 139
