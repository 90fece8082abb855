"""Real clients choose a runtime: ctr by --runc-binary, pyctr by name, by path and by the configuration."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from support import runtimes
from support.ctr_client import Ctr, namespace_with, newer_ctr, program
from support.daemon_process import DaemonProcess, wait_until
from support.engines import IMAGE as IMAGE_OF_DOCKER
from support.engines import docker
from support.footprint import Footprint, cgroup_value, cgroups_below
from support.images import BuiltImage, busybox_with_applets
from support.pyctr_command import Pyctr

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.timeout(180)]

IMAGE: Final[BuiltImage] = busybox_with_applets()
NAME: Final = "example.com/busybox:v1"
CONFIGURATION: Final = """
[runtimes.careful]
path = "runc"
root = "{base}/careful"
command_timeout = 20

[runtimes.absent]
path = "/no/such/program"

[runtimes.runsc]
path = "embedded"
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    daemon = DaemonProcess(environment={"PATH": runtimes.search_path()})
    daemon.base.chmod(0o711)
    (daemon.base / "config.toml").write_text(CONFIGURATION.format(base=daemon.base))
    with daemon:
        yield daemon


@pytest.fixture(scope="module")
def namespace(daemon: DaemonProcess) -> Iterator[str]:
    with namespace_with(daemon, NAME, IMAGE) as namespace:
        command = Pyctr(daemon)  # what comes with the first container is there before anything is counted
        command.environment["PYCTR_NAMESPACE"] = namespace
        command.box(NAME, "true")
        yield namespace


@pytest.fixture
def pyctr(daemon: DaemonProcess, namespace: str) -> Iterator[Pyctr]:
    before = Footprint(daemon)
    command = Pyctr(daemon)
    command.environment["PYCTR_NAMESPACE"] = namespace
    yield command
    for id in command("ps", "-aq", "--no-trunc").split():
        command("rm", "-f", id)
    before.assert_unchanged()


# Which ctr makes a container by which runtime; the other half of the pairs is for the long run.
PAIRS: Final = (
    pytest.param("1.6", "crun"),
    pytest.param("2", "runc"),
    pytest.param("1.6", "runc", marks=pytest.mark.full),
    pytest.param("2", "crun", marks=pytest.mark.full),
)


@pytest.fixture
def ctr(request: pytest.FixtureRequest, daemon: DaemonProcess, namespace: str) -> Iterator[Ctr]:
    before = Footprint(daemon)
    yield Ctr(daemon, program(request.param), namespace)
    before.assert_unchanged()


def made_by(daemon: DaemonProcess, namespace: str, id: str) -> str:
    """Return the program that has made a container, "" for the embedded runtime."""
    record = daemon.state / "tasks" / namespace / id / "runtime.json"
    return str(json.loads(record.read_text())["program"]) if record.exists() else ""


@pytest.mark.parametrize(("ctr", "name"), PAIRS, indirect=["ctr"])
def test_ctr_runs_by_the_binary_that_it_names(ctr: Ctr, name: str) -> None:
    words = ("run", "--rm", "--runtime", "io.containerd.runc.v2", "--runc-binary", runtimes.path_of(name))

    done = ctr.run(*words, NAME, "c", "sh", "-c", "echo out; echo err >&2; exit 7")

    # ctr 2 says on standard error what the daemon warns of: this machine's runtimes are old.
    assert (done.stdout, done.stderr.splitlines()[-1], done.returncode) == ("out\n", "err", 7)


@pytest.mark.parametrize(("ctr", "name"), PAIRS, indirect=["ctr"])
def test_a_container_of_another_runtime_lives(ctr: Ctr, name: str) -> None:
    """Also while one daemon after the other is killed."""
    program = runtimes.path_of(name)
    words = ("run", "--detach", "--runc-binary", program, "--memory-limit", str(64 << 20))
    ctr(*words, NAME, "c", "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done")
    pid = next(int(row[1]) for row in ctr.rows("tasks", "ls") if row[0] == "c")
    assert made_by(ctr.daemon, ctr.namespace, "c") == program
    assert cgroup_value(pid, "memory", "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    ctr.daemon.restart()
    assert ctr.run("tasks", "exec", "--exec-id", "e", "c", "sh", "-c", "exit 9").returncode == 9
    assert ctr.rows("tasks", "ls") == [["c", str(pid), "RUNNING"]]
    assert str(pid) in {row[0] for row in ctr.rows("tasks", "ps", "c")}
    assert "METRIC" in ctr("tasks", "metrics", "c")
    ctr("tasks", "pause", "c")
    assert ctr.rows("tasks", "ls")[0][2] == "PAUSED"
    ctr("tasks", "resume", "c")
    ctr.daemon.restart()
    ctr("tasks", "kill", "--signal", "SIGTERM", "c")
    wait_until(lambda: ctr.rows("tasks", "ls")[0][2] == "STOPPED", "the task has ended")
    assert "exit code 3" in ctr.run("tasks", "rm", "c").stderr
    ctr("containers", "rm", "c")


@pytest.mark.parametrize(("ctr", "name"), PAIRS, indirect=["ctr"])
def test_a_user_namespace_can_reach_its_root(ctr: Ctr, name: str) -> None:
    """The container's root, who is nobody outside, passes through the bundle."""
    words = ("run", "--rm", "--runc-binary", runtimes.path_of(name))
    maps = ("--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536")

    done = ctr.run(*words, *maps, NAME, "c", "sh", "-c", "grep -o ' 100000 ' /proc/self/uid_map; id -u; touch /made")

    assert (done.stdout, done.returncode) == (" 100000 \n0\n", 0), done.stderr


@pytest.mark.parametrize(("ctr", "name"), PAIRS, indirect=["ctr"])
def test_ctr_runs_on_a_terminal(ctr: Ctr, name: str) -> None:
    words = ("run", "--rm", "--tty", "--runc-binary", runtimes.path_of(name))
    with ctr.terminal(
        *words, NAME, "c", "sh", "-c", "test -t 0 && echo a terminal; read x; echo got $x; exit 5"
    ) as shell:
        shell.expect("a terminal")
        shell.type("word\n")
        shell.expect("got word")
        assert shell.wait() == 5


@pytest.mark.parametrize("name", ["runc", "/crun", "careful", "runsc", pytest.param("", marks=pytest.mark.full)])
def test_pyctr_run(pyctr: Pyctr, daemon: DaemonProcess, namespace: str, name: str) -> None:
    chosen = runtimes.path_of(name[1:]) if name.startswith("/") else name
    words = ["run", "-d", "--network", "none", "--name", "c", *(["--runtime", chosen] if chosen else [])]
    id = pyctr(*words, NAME, "sh", "-c", "echo said; trap 'exit 3' TERM; while :; do sleep 0.1; done").strip()

    expected = {"careful": "runc", "runsc": "", "": ""}.get(name, name.strip("/"))
    assert made_by(daemon, namespace, id) == (runtimes.path_of(expected) if expected else "")
    assert (daemon.base / "careful" / namespace / id).exists() == (name == "careful")
    wait_until(lambda: pyctr("logs", "c") == "said\n", "the log is there")
    assert pyctr.run("exec", "c", "sh", "-c", "exit 4").returncode == 4
    pyctr("stop", "c")
    assert pyctr("wait", "c").strip() == "3"
    pyctr("rm", "c")


REFUSED: Final = {
    "absent": "/no/such/program is no program that could be executed",
    "nothing-of-that-name": "no program nothing-of-that-name in $PATH; install it, or name it in [runtimes.",
    "/no/such/program": "/no/such/program is no program that could be executed",
    "io.containerd.kata.v2": "no program containerd-shim-kata-v2 in $PATH",
    "some/program": "a full path to the binary",
}


def test_a_runtime_that_is_not_to_be_had_is_named(pyctr: Pyctr) -> None:
    for name, expected in REFUSED.items():
        done = pyctr.run("run", "--rm", "--network", "none", "--runtime", name, NAME, "true")
        assert done.returncode == 125
        assert expected in done.stderr
    assert pyctr("ps", "-aq") == ""


@pytest.mark.parametrize("name", ["crun", pytest.param("runc", marks=pytest.mark.full)])
def test_the_container_of_a_killed_shim_is_buried(
    pyctr: Pyctr, daemon: DaemonProcess, namespace: str, name: str
) -> None:
    runtimes.path_of(name)
    id = pyctr("run", "-d", "--network", "none", "--runtime", name, NAME, "sleep", "1000").strip()
    shim = json.loads((daemon.state / "tasks" / namespace / id / "shim.json").read_text())["pid"]

    os.kill(shim, signal.SIGKILL)

    assert pyctr("wait", id).strip() == "255"
    wait_until(lambda: cgroups_below(namespace) == [], "its cgroup is gone")
    pyctr("rm", id)


def test_an_unsafe_version_is_told(pyctr: Pyctr, tmp_path: Path) -> None:
    """Debian 12's runc and crun are such; a newer one takes its place and the warning goes."""
    program = tmp_path / "runc"
    program.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && { echo runc version 1.1.5+ds1; exit; }\n'
        f'exec {runtimes.path_of("runc")} "$@"\n'
    )
    program.chmod(0o755)
    run = ("run", "--rm", "--network", "none", "--runtime", str(program), NAME, "true")

    def warnings() -> list[str]:
        found: list[str] = json.loads(pyctr("info", "--format", "json"))["Warnings"]
        return [text for text in found if str(program) in text]

    pyctr(*run)
    wait_until(lambda: len(warnings()) == 1, "it is warned of")
    assert re.search(r"1\.1\.5\+ds1.*1\.3\.7 or 1\.4\.4 or 1\.5\.3", warnings()[0])
    wait_until(lambda: "runtime.unsafe" in pyctr.daemon.log_text(), "it is logged")
    if newer := newer_ctr():
        listed = subprocess.run(
            [newer, "--address", str(pyctr.daemon.address), "deprecations", "list"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert str(program) in listed.stdout
    program.write_text(program.read_text().replace("1.1.5+ds1", "1.5.3"))
    pyctr(*run)
    wait_until(lambda: warnings() == [], "the warning goes")


@pytest.mark.full
@pytest.mark.parametrize("configured", [False, True], ids=["runc", "ours in its place"])
def test_docker_asks_for_runc(configured: bool) -> None:
    """It names the binary itself; the configuration may put our own runtime in its place."""
    table = '[runtimes.runc]\npath = "embedded"\n' if configured else ""
    with (
        DaemonProcess(config=table, environment={"PATH": runtimes.search_path()}) as daemon,
        docker(daemon.address) as engine,
    ):
        words = ("run", "--network", "none", "--cgroup-parent", f"/{engine.ground.cgroup}")
        done = engine.run(*words, "--rm", IMAGE_OF_DOCKER, "sh", "-c", "echo out; echo err >&2; exit 3")
        assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)
        id = engine(*words, "--detach", IMAGE_OF_DOCKER, "sleep", "1000").strip()
        assert made_by(daemon, "moby", id) == ("" if configured else runtimes.path_of("runc"))
        assert engine.run("exec", id, "sh", "-c", "exit 5").returncode == 5
        daemon.restart()
        wait_until(lambda: engine.run("kill", id).returncode == 0, "docker has found the daemon again")
        wait_until(lambda: engine.run("rm", id).returncode == 0, "the container has ended")
