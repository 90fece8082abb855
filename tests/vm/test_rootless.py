"""An ordinary user's daemon where a cgroup of version 2 is delegated to it: limits work as for root."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemon_process import DEADLINE, wait_until
from support.ordinary_user import OrdinaryUser, pid_of

pytestmark = [pytest.mark.vm, pytest.mark.root]

CGROUPS = Path("/sys/fs/cgroup")
SETTINGS = ("Type=notify", "NotifyAccess=all", "Delegate=yes", "KillMode=process")


def system(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout.strip()


class Daemon:
    """A user's daemon as a unit, as the user's own systemd would run it."""

    def __init__(self, user: OrdinaryUser, unit: str) -> None:
        variables = [f"--setenv={name}={value}" for name, value in user.environment.items()]
        settings = [f"--property={one}" for one in (*SETTINGS, f"User={user.name}")]
        self.unit = unit
        system("systemd-run", f"--unit={unit}", *settings, *variables, "pyctrd")

    def property(self, name: str) -> str:
        return system("systemctl", "show", "-P", name, self.unit)


@pytest.fixture(scope="module")
def user() -> Iterator[OrdinaryUser]:
    with OrdinaryUser() as one:
        yield one


@pytest.fixture(scope="module")
def daemon(user: OrdinaryUser) -> Daemon:
    daemon = Daemon(user, "pyctrd-of-a-user")
    user.pyctr("image", "from-host", "demo", "sh", "sleep", "cat", "id")
    return daemon


@pytest.fixture
def box(user: OrdinaryUser, daemon: Daemon) -> Iterator[str]:
    """A running container with limits, of a user who is not its root."""
    limits = ("--memory", "64m", "--pids-limit", "20", "--cpus", "0.5")
    name = user.pyctr("run", "-d", "--user", "1000", *limits, "demo", "sleep", "10000").strip()
    yield name
    user.run("pyctr", "rm", "-f", name)  # which some tests have done


def cgroup(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::")


def test_limits_pauses_and_numbers(user: OrdinaryUser, daemon: Daemon, box: str) -> None:
    unit = daemon.property("ControlGroup")
    pid = pid_of(user.pyctr("inspect", box))
    directory = CGROUPS / cgroup(pid).strip("/")

    assert cgroup(int(daemon.property("MainPID"))) == f"{unit}/daemon"
    assert cgroup(pid) == f"{unit}/default/{box}"
    assert (directory / "memory.max").read_text() == f"{64 << 20}\n"
    assert (directory / "pids.max").read_text() == "20\n"
    assert (directory / "cpu.max").read_text() == "50000 100000\n"
    assert user.pyctr("exec", box, "id", "-u") == "1000\n"
    stats = json.loads(user.pyctr("stats", "--no-stream", "--format", "json", box))
    assert int(stats["PIDs"]) == 1
    user.pyctr("pause", box)
    assert (directory / "cgroup.freeze").read_text() == "1\n"
    user.pyctr("unpause", box)
    user.pyctr("rm", "-f", box)
    assert not directory.exists()


def test_a_kill_for_memory_is_told(user: OrdinaryUser, daemon: Daemon) -> None:
    script = "x=0123456789; while :; do x=$x$x; done"
    name = user.pyctr("run", "-d", "--memory", "16m", "demo", "sh", "-c", script).strip()

    assert user.pyctr("wait", name) == "137\n"

    assert user.pyctr("inspect", "--format", "{{.State.OOMKilled}}", name).strip() == "true"
    user.pyctr("rm", name)


def test_a_container_does_not_write_to_its_cgroup(user: OrdinaryUser, daemon: Daemon) -> None:
    script = "cat /sys/fs/cgroup/cgroup.controllers && echo 1 >/sys/fs/cgroup/cgroup.freeze"
    done = user.run("pyctr", "run", "--rm", "demo", "sh", "-c", script)
    assert "memory" in done.stdout
    assert done.returncode != 0
    assert "ead-only file system" in done.stderr


def test_containers_outlive_a_daemon_that_is_killed(user: OrdinaryUser, daemon: Daemon, box: str) -> None:
    """The next one, in a unit with another cgroup, has no say over theirs but finds, enters and ends them."""
    pid, main = pid_of(user.pyctr("inspect", box)), int(daemon.property("MainPID"))
    os.kill(main, 9)
    wait_until(lambda: not Path(f"/proc/{main}").exists(), "the end of the daemon")

    successor = Daemon(user, "pyctrd-of-a-user-again")

    assert user.pyctr("ps", "-q", "--no-trunc").split() == [box]
    assert user.pyctr("exec", box, "id", "-u") == "1000\n"
    user.pyctr("rm", "-f", box)
    assert not Path(f"/proc/{pid}").exists()
    system("systemctl", "stop", successor.unit)
    wait_until(lambda: not user.processes(), "the end of the daemon and its shims")
