"""F01 to F03, F06: the daemon is killed at each step of a call, or while containers end; nothing is lost or left."""

from collections.abc import Callable, Iterator
from contextlib import suppress

import grpc
import pytest

from pyctr_wire.containerd.types.task import task_pb2 as types
from support.containers import Containers, EventLog
from support.daemon_process import DaemonProcess, wait_until
from support.tracing import KillAt, needs_strace

pytestmark = [pytest.mark.root, needs_strace]


@pytest.fixture
def daemon() -> Iterator[DaemonProcess]:
    with DaemonProcess() as process:
        yield process


@pytest.fixture
def containers(daemon: DaemonProcess) -> Iterator[Containers]:
    with Containers(daemon) as client:
        yield client


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
    [("mkdir", 1), ("mkdir", 3), ("openat", 2), ("rename", 1), ("sendmsg", 1), ("write", 4), ("sendmsg", 2)],
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
    reached_the_shim = name == "sendmsg"
    assert containers.status("web", exec_id) == (types.RUNNING if reached_the_shim else types.CREATED)
    if not reached_the_shim:
        containers.start("web", exec_id)
    containers.kill("web", exec_id=exec_id)
    assert containers.wait("web", exec_id).status == 137


@pytest.mark.parametrize(("name", "nth"), [("write", 2), ("sendmsg", 1)])
def test_kill(containers: Containers, name: str, nth: int) -> None:
    containers.run("web", "sleep", "1000")
    assert not killed_at(containers, name, nth, lambda: containers.kill("web"))
    if name == "write":
        assert containers.status("web") == types.RUNNING
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
    from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2

    containers.run("web", "sleep", "1000")
    request = tasks_pb2.PauseTaskRequest(container_id="web")
    assert not killed_at(containers, name, nth, lambda: containers.tasks("Pause", request))
    assert containers.status("web") == (types.PAUSED if name == "sendmsg" else types.RUNNING)


def test_exits_while_the_daemon_is_down(containers: Containers, daemon: DaemonProcess) -> None:
    """Statuses of containers and execs are exact, and told in order to who subscribes in time."""
    statuses = {"c0": 0, "c1": 1, "c7": 7, "c139": 139, "c137": 137}
    fifo = containers.rootfs / "go"
    import os

    os.mkfifo(fifo)
    wait_for_go = "until [ -e /went ]; do sleep 0.05; done"
    for id, status in statuses.items():
        end = {139: "kill -SEGV $$", 137: "kill -KILL $$"}.get(status, f"exit {status}")
        # The last line keeps the shell from executing the command in its own place.
        containers.run(id, "sh", "-c", f"{wait_for_go}; sh -c '{end}'; exit $?")
        containers.exec(id, "e", "sh", "-c", f"{wait_for_go}; exit 7")
    daemon.kill()
    (containers.rootfs / "went").touch()
    wait_until(lambda: all((containers.bundles / id / "exits/init.json").exists() for id in statuses), "all have ended")
    daemon.start()
    with EventLog(containers):
        pass
    for id, status in statuses.items():
        assert containers.wait(id).status == status
        assert containers.status(id) == types.STOPPED
        assert containers.wait(id, "e").status in (7, 137)
        assert containers.delete(id).status == status
