"""Containers that are started again: by themselves, after daemons that were killed, and not against anybody's will."""

import itertools
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyctr_wire import labels
from pyctr_wire.containerd.services.containers.v1 import containers_pb2, containers_pb2_grpc
from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc
from support.daemon_process import wait_until
from support.pyctr_command import Pyctr, running_pyctr

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

STATUS = "containerd.io/restart.status"
STOPPED = "containerd.io/restart.explicitly-stopped"
NAMESPACE = (("containerd-namespace", "default"),)
_numbers = itertools.count()


@pytest.fixture(scope="module")
def pyctr() -> Iterator[Pyctr]:
    with running_pyctr(("sh", "cat", "echo", "sleep", "true")) as command:
        yield command


@pytest.fixture
def name(pyctr: Pyctr) -> str:
    return f"box{next(_numbers)}"


def run(pyctr: Pyctr, name: str, policy: str, *command: str, options: tuple[str, ...] = ()) -> None:
    pyctr("run", "-d", "--network", "none", "--name", name, "--restart", policy, *options, "demo", *command)


def inspect(pyctr: Pyctr, name: str) -> Any:
    return json.loads(pyctr("inspect", name))[0]


def pid_of(pyctr: Pyctr, name: str) -> int:
    """Return the pid of a container's first process, 0 if it does not run."""
    return int(inspect(pyctr, name)["State"].get("Pid", 0))


def until_restarted(pyctr: Pyctr, name: str, old_pid: int) -> int:
    """Wait for a container to run as another process than `old_pid`, and return that."""
    wait_until(lambda: pid_of(pyctr, name) not in (0, old_pid), f"{name} runs again", 90)
    return pid_of(pyctr, name)


def set_label(pyctr: Pyctr, name: str, label: str, value: str) -> None:
    """Do what a client does that knows containerd's labels."""
    container = containers_pb2.Container(id=inspect(pyctr, name)["Id"], labels={label: value})
    request = containers_pb2.UpdateContainerRequest(container=container)
    request.update_mask.paths.append(f"labels.{label}")
    with pyctr.daemon.channel() as channel:
        stub = containers_pb2_grpc.ContainersStub(channel)
        stub.Update(request, metadata=NAMESPACE, timeout=30)


def kill_as_a_client(pyctr: Pyctr, name: str) -> None:
    """Kill a container without a word about its labels."""
    request = tasks_pb2.KillRequest(container_id=inspect(pyctr, name)["Id"], signal=signal.SIGKILL)
    with pyctr.daemon.channel() as channel:
        stub = tasks_pb2_grpc.TasksStub(channel)
        stub.Kill(request, metadata=NAMESPACE, timeout=30)


def test_a_container_that_ends_by_itself_runs_again(pyctr: Pyctr, name: str) -> None:
    """Its files and its log go on."""
    script = (
        "echo again; echo x >>/runs; [ -e /third ] && exec sleep 1000;"
        " [ -e /second ] && echo >/third; echo >/second; exit 3"
    )
    run(pyctr, name, "always", "sh", "-c", script)
    wait_until(lambda: inspect(pyctr, name)["RestartCount"] == 2, f"{name} is started three times", 60)
    wait_until(lambda: pid_of(pyctr, name) != 0, "it stays")

    assert pyctr("logs", name).splitlines() == ["again"] * 3
    assert pyctr("exec", name, "cat", "/runs").split() == ["x"] * 3
    assert inspect(pyctr, name)["RestartPolicy"] == "always"
    pyctr("rm", "-f", name)


def test_failures_are_counted(pyctr: Pyctr, name: str) -> None:
    run(pyctr, name, "on-failure:2", "sh", "-c", "exit 5")
    wait_until(lambda: inspect(pyctr, name)["RestartCount"] == 2, "the last start", 60)
    wait_until(lambda: pyctr.state(name) == "exited", "the last end")

    other = f"{name}-well"
    run(pyctr, other, "on-failure", "true")
    wait_until(lambda: pyctr.state(other) == "exited", "the end")

    # What fails again and again is waited for longer than this takes.
    run(pyctr, f"{name}-third", "always", "sh", "-c", "[ -e /second ] && exec sleep 1000; echo >/second")
    wait_until(lambda: inspect(pyctr, f"{name}-third")["RestartCount"] == 1, "another one runs again", 60)
    assert inspect(pyctr, name)["State"]["ExitCode"] == 5
    assert [inspect(pyctr, one)["RestartCount"] for one in (name, other)] == [2, 0]
    pyctr("rm", "-f", name, other, f"{name}-third")


def test_who_was_stopped_stays_stopped(pyctr: Pyctr, name: str) -> None:
    """One that a client has killed without a word runs again, and shows that the others had been looked at."""
    stopped, killed, ended = (f"{name}-{what}" for what in ("stopped", "killed", "ended"))
    for one in (name, stopped, killed, ended):
        run(pyctr, one, "unless-stopped", "sleep", "1000")
    pid = pid_of(pyctr, name)

    pyctr("stop", "-t", "0", stopped)
    pyctr("kill", killed)
    set_label(pyctr, ended, STATUS, "stopped")
    kill_as_a_client(pyctr, name)
    until_restarted(pyctr, name, pid)

    assert (pyctr.state(stopped), pyctr.state(killed)) == ("exited", "exited")
    wait_until(lambda: pyctr.state(ended) == "created", "the labels' wish", 60)  # its task is gone

    pyctr("start", stopped)
    pid = pid_of(pyctr, stopped)
    wait_until(lambda: STOPPED not in inspect(pyctr, stopped)["Labels"], "its start ends that")
    os.kill(pid, signal.SIGKILL)
    until_restarted(pyctr, stopped, pid)
    pyctr("rm", "-f", name, stopped, killed, ended)


def test_policies_can_be_changed(pyctr: Pyctr, name: str) -> None:
    pyctr("run", "-d", "--network", "none", "--name", name, "demo", "sleep", "1000")
    pyctr("update", "--restart", "always", name)
    os.kill(pid := pid_of(pyctr, name), signal.SIGKILL)
    pid = until_restarted(pyctr, name, pid)

    pyctr("update", "--restart", "no", name)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pyctr.state(name) == "exited", "the end")
    document = inspect(pyctr, name)
    assert (document["RestartPolicy"], STATUS in document["Labels"]) == ("no", False)
    done = pyctr.run("update", "--restart", "sometimes", name)
    assert (done.returncode, "sometimes" in done.stderr) == (1, True)
    pyctr("rm", "-f", name)

    done = pyctr.run("run", "--rm", "--restart", "always", "demo", "true")
    assert done.returncode == 125
    assert "--rm" in done.stderr
    pyctr("run", "-d", "--rm", "--network", "none", "--name", name, "demo", "sleep", "1000")
    assert "--rm" in pyctr.run("update", "--restart", "always", name).stderr
    pyctr("rm", "-f", name)


def test_what_ended_while_no_daemon_looked_runs_again(pyctr: Pyctr, name: str) -> None:
    """And what a killed daemon was about to start is started; what was stopped is not."""
    ended, stopped, halfway = (f"{name}-{what}" for what in ("ended", "stopped", "halfway"))
    for one in (ended, stopped):
        run(pyctr, one, "always", "sleep", "1000")
    run(pyctr, halfway, "on-failure", "sleep", "1000")
    pyctr("stop", "-t", "0", stopped)
    # As a daemon leaves it that is killed once the old task has been removed.
    set_label(pyctr, halfway, "pyctr.io/restarting", "true")
    kill_as_a_client(pyctr, halfway)
    wait_until(lambda: pyctr.state(halfway) == "exited", "its task has ended")
    with pyctr.daemon.channel() as channel:
        request = tasks_pb2.DeleteTaskRequest(container_id=inspect(pyctr, halfway)["Id"])
        tasks_pb2_grpc.TasksStub(channel).Delete(request, metadata=NAMESPACE, timeout=30)
    pid = pid_of(pyctr, ended)

    pyctr.daemon.kill()
    os.kill(pid, signal.SIGKILL)
    pyctr.daemon.start()

    pid = until_restarted(pyctr, ended, pid)
    until_restarted(pyctr, halfway, 0)
    wait_until(lambda: "pyctr.io/restarting" not in inspect(pyctr, halfway)["Labels"], "its mark is gone")
    pyctr.daemon.restart()
    assert pid_of(pyctr, ended) == pid
    assert pyctr.state(stopped) == "exited"
    pyctr("rm", "-f", ended, stopped, halfway)


def test_a_program_that_has_gone_is_tried_again_until_the_container_is_removed(pyctr: Pyctr, name: str) -> None:
    run(pyctr, name, "always", "sh", "-c", "echo >/gone; exec sleep 1000",
        options=("-v", f"{pyctr.daemon.base}/home:/home"))  # fmt: skip
    home = Path(pyctr.daemon.base, "home")
    wait_until(lambda: pid_of(pyctr, name) != 0, "it runs")
    home.rename(home.with_name("away"))
    os.kill(pid_of(pyctr, name), signal.SIGKILL)
    wait_until(lambda: "home" in pyctr.run("why", inspect(pyctr, name)["Id"]).stdout, "why tells the reason", 60)

    home.with_name("away").rename(home)
    until_restarted(pyctr, name, 0)
    home.rename(home.with_name("away"))
    os.kill(pid_of(pyctr, name), signal.SIGKILL)
    pyctr("rm", "-f", name)


@pytest.mark.parametrize("spec", [b"odd", b"[]", b'{"process": null}', b"[" * 100_000])
def test_a_container_that_cannot_be_started_ends_nothing(pyctr: Pyctr, name: str, spec: bytes) -> None:
    """A client may make one of any specification; what is wrong with it is told, again and again."""
    marks = {STATUS: "running", labels.RESTARTING: "true"}  # so the next daemon tries it at once
    container = containers_pb2.Container(id=name, labels=marks)
    container.runtime.name = "io.containerd.runc.v2"
    container.spec.value = spec
    with pyctr.daemon.channel() as channel:
        stub = containers_pb2_grpc.ContainersStub(channel)
        stub.Create(containers_pb2.CreateContainerRequest(container=container), metadata=NAMESPACE, timeout=30)
    pyctr.daemon.restart()

    def tried() -> bool:
        lines = pyctr.daemon.log_text().splitlines()
        return any("container.not_restarted" in line and f'"{name}"' in line for line in lines)

    wait_until(tried, f"{name} is tried", 60)
    pyctr("rm", "-f", name)
