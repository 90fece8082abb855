"""Debian's podman, docker and containerd make containers with `pyctr-oci` as they would with runc."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from support.criu import require_criu
from support.daemon_process import wait_until
from support.engines import IMAGE, Client, docker, import_image, installed, make_root, private_ground, running_daemon
from support.footprint import cgroup_value
from support.terminal_session import TerminalSession

# Engines on a loaded machine take their time.
pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.full, pytest.mark.timeout(600)]

MEBIBYTE: Final = 1 << 20
PODMAN_CONFIGURATION: Final = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
events_logger = "file"
"""
CONTAINERD_CONFIGURATION: Final = """
version = 2
root = "{base}/root"
state = "{base}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{base}/c.sock"
"""


@contextmanager
def podman() -> Iterator[Client]:
    program = installed("podman", "podman")
    installed("conmon", "conmon")
    with private_ground() as ground:
        base = ground.base
        (base / "containers.conf").write_text(PODMAN_CONFIGURATION)
        (base / "storage.conf").write_text(
            f'[storage]\ndriver = "vfs"\nrunroot = "{base}/run"\ngraphroot = "{base}/graph"\n'
        )
        environment = {
            "CONTAINERS_CONF": f"{base}/containers.conf",
            "CONTAINERS_STORAGE_CONF": f"{base}/storage.conf",
        }
        words = [program, "--runtime", str(ground.runtime), "--root", f"{base}/graph", "--runroot", f"{base}/run"]
        words += ["--tmpdir", f"{base}/tmp", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]
        client = Client(ground, words, environment)
        import_image(client)
        yield client
        assert client("ps", "--all", "--quiet") == ""
        client("rmi", "--all")


ENGINES: Final = {"podman": podman, "docker": docker}


@pytest.fixture(scope="module", params=list(ENGINES))
def engine(request: pytest.FixtureRequest) -> Iterator[Client]:
    """The command line of an engine that has one image, without a network of its own."""
    with ENGINES[request.param]() as client:
        yield client


@pytest.fixture
def name(engine: Client, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a container, which is removed if the test has not got that far."""
    yield "c1"
    engine.run("kill", "c1")  # at once: most that is left here ignores SIGTERM
    engine.run("rm", "--force", "c1")


def test_run_returns_what_the_program_says(engine: Client) -> None:
    script = "echo out; echo err >&2; id -u; exit 7"

    done = engine.run(*running(engine), "--rm", "--network", "none", "--user", "1000:1000", IMAGE, "sh", "-c", script)

    assert (done.stdout, done.stderr, done.returncode) == ("out\n1000\n", "err\n", 7)


def test_a_container_lives(engine: Client, name: str) -> None:
    script = 'echo started; trap "exit 3" TERM; while :; do sleep 0.1; done'
    limits = ("--memory", "64m", "--pids-limit", "50")
    engine(*running(engine), "--detach", "--name", name, "--network", "host", *limits, IMAGE, "sh", "-c", script)
    wait_until(lambda: engine("logs", name) == "started\n", "the log is there")

    (facts,) = json.loads(engine("inspect", name))
    assert facts["State"]["Status"] == "running"
    pid = facts["State"]["Pid"]
    assert cgroup_value(pid, "memory", "memory.limit_in_bytes", "memory.max") == str(64 * MEBIBYTE)
    assert cgroup_value(pid, "pids", "pids.max", "pids.max") == "50"

    assert engine("exec", "--env", "A=b", name, "sh", "-c", "echo $A").strip() == "b"
    assert engine.run("exec", name, "sh", "-c", "exit 9").returncode == 9
    assert name in engine("stats", "--no-stream", "--format", "{{.Name}}", name)
    assert "trap" in engine("top", name)

    engine("pause", name)
    assert status(engine, name) == "paused"
    engine("unpause", name)
    assert status(engine, name) == "running"

    engine("stop", "--time", "60", name)
    assert status(engine, name) == "exited"
    assert json.loads(engine("inspect", name))[0]["State"]["ExitCode"] == 3
    engine("start", name)
    engine("kill", name)
    assert engine("wait", name).strip() == "137"
    engine("rm", name)


def running(engine: Client) -> list[str]:
    """Return the words that have the engine make a container, whose cgroup is the test's to look after."""
    return ["run", "--cgroup-parent", f"/{engine.ground.cgroup}"]


def status(engine: Client, name: str) -> str:
    found: str = json.loads(engine("inspect", name))[0]["State"]["Status"]
    return found


def expect_size(terminal: TerminalSession) -> None:
    """Wait until a shell has the terminal's size: docker and ctr tell it when they have seen the program start."""
    terminal.type("while [ \"$(stty size 2>&1)\" != '31 97' ]; do sleep 0.1; done; echo si'z'ed\r")
    terminal.expect("sized\r")


def test_a_terminal(engine: Client) -> None:
    words = [*engine.words, *running(engine), "--rm", "--interactive", "--tty", "--network", "none", IMAGE, "sh"]
    with TerminalSession(words, engine.environment, (31, 97)) as terminal:
        terminal.expect("# ")
        terminal.type("tty\r")
        terminal.expect("/dev/pts/0\r\n")
        expect_size(terminal)
        terminal.type("exit 5\r")

        assert terminal.wait() == 5


def test_exec_on_a_terminal(engine: Client, name: str) -> None:
    engine(*running(engine), "--detach", "--name", name, "--network", "none", IMAGE, "sleep", "1000")
    words = [*engine.words, "exec", "--interactive", "--tty", name, "sh"]
    with TerminalSession(words, engine.environment, (31, 97)) as terminal:
        terminal.expect("# ")
        terminal.type("echo $((6 * 7))\r")
        terminal.expect("42\r\n")
        terminal.type("exit 6\r")

        assert terminal.wait() == 6


def test_a_program_that_is_not_there(engine: Client, name: str) -> None:
    done = engine.run(*running(engine), "--rm", "--network", "none", IMAGE, "nope")
    assert done.returncode == 127
    assert 'exec: "nope": executable file not found in $PATH' in done.stderr

    engine(*running(engine), "--detach", "--name", name, "--network", "none", IMAGE, "sleep", "1000")
    done = engine.run("exec", name, "nope")
    assert done.returncode in {126, 127}  # docker's; podman's
    assert 'exec: "nope": executable file not found in $PATH' in done.stdout + done.stderr


# -- containerd's own shim for runc


@pytest.fixture(scope="module")
def ctr() -> Iterator[Client]:
    """ctr on a containerd whose shim for runc is told to call us."""
    daemon, program = installed("containerd", "containerd"), installed("ctr", "containerd")
    with private_ground() as ground:
        base = ground.base
        (base / "config.toml").write_text(CONTAINERD_CONFIGURATION.format(base=base))
        client = Client(ground, [program, "--address", f"{base}/c.sock", "--namespace", ground.cgroup], {})
        make_root(base / "image")
        with running_daemon(client, [daemon, "--config", f"{base}/config.toml"]):
            yield client
            assert client("containers", "ls", "--quiet") == ""


def rows(ctr: Client, *arguments: str) -> list[list[str]]:
    """Return the words of a table that ctr prints, without its heading."""
    return [line.split() for line in ctr(*arguments).splitlines()[1:]]


def test_containerd_runs(ctr: Client) -> None:
    words = ["run", "--runc-binary", str(ctr.ground.runtime), "--runc-root", str(ctr.ground.states)]
    words += ["--rm", "--rootfs", str(ctr.ground.base / "image")]

    done = ctr.run(*words, "c1", "/bin/sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)

    command = [*ctr.words, *words[:-2], "--tty", *words[-2:], "c2", "/bin/sh"]
    with TerminalSession(command, ctr.environment, (31, 97)) as terminal:
        terminal.expect("# ")
        expect_size(terminal)
        terminal.type("exit 5\r")

        assert terminal.wait() == 5


def test_containerds_container_lives(ctr: Client) -> None:
    script = 'trap "exit 3" TERM; while :; do sleep 0.1; done'
    words = ["run", "--runc-binary", str(ctr.ground.runtime), "--runc-root", str(ctr.ground.states), "--detach"]
    words += ["--memory-limit", str(64 * MEBIBYTE), "--rootfs", str(ctr.ground.base / "image")]
    ctr(*words, "c1", "/bin/sh", "-c", script)
    assert os.listdir(ctr.ground.states / ctr.ground.cgroup) == ["c1"]

    assert ctr("tasks", "exec", "--exec-id", "e1", "c1", "/bin/echo", "in exec") == "in exec\n"
    assert ctr.run("tasks", "exec", "--exec-id", "e2", "c1", "/bin/sh", "-c", "exit 9").returncode == 9
    missing = ctr.run("tasks", "exec", "--exec-id", "e3", "c1", "nope")
    assert 'exec: "nope": executable file not found in $PATH' in missing.stderr
    assert ["memory.limit_in_bytes", str(64 * MEBIBYTE)] in rows(ctr, "tasks", "metrics", "c1")
    assert len(rows(ctr, "tasks", "ps", "c1")) in {1, 2}  # the shell, and mostly sleep

    ctr("tasks", "pause", "c1")
    assert rows(ctr, "tasks", "ls")[0][2] == "PAUSED"
    ctr("tasks", "resume", "c1")
    assert rows(ctr, "tasks", "ls")[0][2] == "RUNNING"

    ctr("tasks", "kill", "--signal", "SIGTERM", "c1")
    wait_until(lambda: rows(ctr, "tasks", "ls")[0][2] == "STOPPED", "the task has ended")
    assert "exit code 3" in ctr.run("tasks", "rm", "c1").stderr
    ctr("containers", "rm", "c1")
    assert os.listdir(ctr.ground.states / ctr.ground.cgroup) == []


COUNT: Final = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.05; done"


def last(client: Client, name: str) -> int:
    """Return the last number that a container has written."""
    words = client("logs", name).split()
    return int(words[-1]) if words else 0


@pytest.mark.full
def test_podman_saves_and_restores(monkeypatch: pytest.MonkeyPatch) -> None:
    require_criu(monkeypatch)
    with podman() as client:
        client(*running(client), "--detach", "--name", "c1", "--network", "none", IMAGE, "sh", "-c", COUNT)
        wait_until(lambda: last(client, "c1") > 3, "it counts")

        client("container", "checkpoint", "c1")

        assert status(client, "c1") == "exited"
        before = last(client, "c1")
        client("container", "restore", "c1")
        wait_until(lambda: last(client, "c1") > before, "it counts on")
        client("rm", "--force", "--time", "0", "c1")


@pytest.mark.full
def test_containerd_saves(monkeypatch: pytest.MonkeyPatch, ctr: Client) -> None:
    require_criu(monkeypatch)
    # containerd runs already, with another PATH.
    runtime = ctr.ground.base / "oci-with-criu"
    runtime.write_text(f'#!/bin/sh\nexec {ctr.ground.runtime} --criu {shutil.which("criu")} "$@"\n')
    runtime.chmod(0o755)
    words = ["run", "--runc-binary", str(runtime), "--runc-root", str(ctr.ground.states), "--detach"]
    ctr(*words, "--null-io", "--rootfs", str(ctr.ground.base / "image"), "c1", "/bin/sh", "-c", COUNT)
    images = ctr.ground.base / "images"

    ctr("tasks", "checkpoint", "--image-path", str(images), "c1")

    assert (images / "inventory.img").exists()
    assert rows(ctr, "tasks", "ls")[0][2] == "RUNNING"
    ctr("tasks", "kill", "--signal", "SIGKILL", "c1")
    wait_until(lambda: rows(ctr, "tasks", "ls")[0][2] == "STOPPED", "the task has ended")
    ctr.run("tasks", "rm", "c1")
    ctr("containers", "rm", "c1")
