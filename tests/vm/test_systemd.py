"""The daemon as a unit of systemd, with the file that is delivered: whatever happens to it, containers go on."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemon_process import wait_until

pytestmark = [pytest.mark.vm, pytest.mark.root]

UNIT = Path("/etc/systemd/system/pyctrd.service")
PATIENCE = Path("/etc/systemd/system/pyctrd.service.d/patience.conf")
DELIVERED = Path(__file__).parents[2] / "deploy/pyctrd.service"
CGROUPS = Path("/sys/fs/cgroup")
SECONDS = 300  # until a command is given up, on an emulated processor


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}\n{journal()}"
    return done.stdout.strip()


def journal() -> str:
    command = ["journalctl", "-u", "pyctrd", "-o", "cat", "--no-pager", "-n", "100"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout[-8000:]


def members(path: str) -> list[int]:
    """Return the processes in a cgroup, none if systemd has removed it."""
    file = CGROUPS / path.strip("/") / "cgroup.procs"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def property_of_unit(name: str) -> str:
    return run("systemctl", "show", "-P", name, "pyctrd")


def cgroup(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::")


def oom_score_adjustment(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def pid_of(container: str) -> int:
    (found,) = json.loads(run("pyctr", "inspect", container))
    return int(found["State"]["Pid"])


@pytest.fixture(scope="module")
def service() -> Iterator[None]:
    """The unit, installed and running, with an image."""
    shutil.copy(DELIVERED, UNIT)
    PATIENCE.parent.mkdir()
    PATIENCE.write_text(f"[Service]\nTimeoutStartSec={SECONDS}\n")  # for a start and a reload, not 90 s
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "pyctrd")
    run("pyctr", "image", "from-host", "demo", "sh", "sleep", "cat", "echo")
    yield
    run("systemctl", "stop", "pyctrd")
    UNIT.unlink()
    shutil.rmtree(PATIENCE.parent)
    run("systemctl", "daemon-reload")


@pytest.fixture(scope="module")
def steady(service: None) -> Iterator[int]:
    """The process of the container of that name, which runs from the first test to the last."""
    run("pyctr", "run", "-d", "--network", "none", "-m", "64m", "--pids-limit", "40", "--name", "steady", "demo",
        "sh", "-c", "n=0; while sleep 1; do n=$((n+1)); echo tick $n; done")  # fmt: skip
    yield pid_of("steady")
    run("pyctr", "rm", "-f", "steady")


def test_start_returns_when_it_serves(service: None) -> None:
    assert property_of_unit("ActiveState") == "active"
    assert property_of_unit("Type") == "notify"
    assert "Server" in run("pyctr", "version")
    assert oct(Path("/var/lib/pyctr").stat().st_mode) == "0o40700"


def test_processes_are_where_they_belong(steady: int) -> None:
    """The daemon and its shims in leaves of the unit's delegated cgroup, containers in none of it."""
    main, unit = int(property_of_unit("MainPID")), property_of_unit("ControlGroup")

    assert property_of_unit("Delegate") == "yes"
    assert cgroup(main) == f"{unit}/daemon"
    assert members(unit) == []
    shims = members(f"{unit}/shims")
    assert len(shims) >= 2  # the zygote and the container's shim, at least
    assert not cgroup(steady).startswith(unit)
    assert [oom_score_adjustment(pid) for pid in (main, shims[0], steady)] == [-999, -998, 0]


@pytest.mark.parametrize("change", ["restart", "reload", "kill", "reload and kill", "daemon-reload", "daemon-reexec"])
def test_a_container_outlives(steady: int, change: str) -> None:
    """Same process, still supervised, still limited."""
    before = property_of_unit("MainPID")
    limits = CGROUPS / cgroup(steady).strip("/")

    for step in change.split(" and "):
        if step == "kill":
            kill_daemon()
        else:
            run("systemctl", step, *([] if step.startswith("daemon") else ["pyctrd"]))

    assert property_of_unit("ActiveState") == "active"
    assert (property_of_unit("MainPID") == before) == change.startswith("daemon")
    assert_supervised(steady)
    assert (limits / "memory.max").read_text().strip() == str(64 << 20)
    assert (limits / "pids.max").read_text().strip() == "40"


def kill_daemon() -> None:
    """Kill the main process and wait until systemd has started it again."""
    before = property_of_unit("MainPID")
    run("systemctl", "kill", "-s", "KILL", "--kill-whom=main", "pyctrd")
    wait_until(lambda: property_of_unit("MainPID") not in ("0", before), "systemd starts it again", SECONDS)
    wait_until(lambda: property_of_unit("ActiveState") == "active", "it serves again", SECONDS)


def assert_supervised(pid: int) -> None:
    """Assert that the container is the one that it was, and that its log grows."""
    assert pid_of("steady") == pid
    assert run("pyctr", "exec", "steady", "echo", "hello") == "hello"
    ticks = run("pyctr", "logs", "steady").splitlines()
    wait_until(lambda: len(run("pyctr", "logs", "steady").splitlines()) > len(ticks), "its log grows", SECONDS)


def test_a_container_outlives_stop(steady: int) -> None:
    """And its shim too, in the unit's cgroup, which KillMode=process leaves."""
    unit = property_of_unit("ControlGroup")

    run("systemctl", "stop", "pyctrd")

    assert property_of_unit("ActiveState") == "inactive"
    os.kill(steady, 0)
    assert members(f"{unit}/shims")
    assert members(f"{unit}/daemon") == []

    run("systemctl", "start", "pyctrd")
    assert_supervised(steady)


def test_an_exit_while_it_is_stopped_is_known_afterwards(service: None) -> None:
    script = "trap 'exit 7' TERM; sleep 100000 & wait"
    run("pyctr", "run", "-d", "--network", "none", "--name", "brief", "demo", "sh", "-c", script)
    pid = pid_of("brief")
    run("systemctl", "stop", "pyctrd")
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the container ends", SECONDS)

    run("systemctl", "start", "pyctrd")

    assert run("pyctr", "wait", "brief") == "7"
    run("pyctr", "rm", "brief")


def test_the_journal_takes_a_containers_log(service: None, tmp_path: Path) -> None:
    run("pyctr", "run", "--network", "none", "--log-driver", "journald", "--cidfile", str(tmp_path / "id"),
        "--name", "told", "demo", "echo", "to the journal")  # fmt: skip
    id = (tmp_path / "id").read_text().strip()

    journal = ("journalctl", "-o", "cat", "--no-pager", f"CONTAINER_ID_FULL={id}")
    wait_until(lambda: "to the journal" in run(*journal), "the journal has it", SECONDS)
    run("pyctr", "rm", "told")


def test_a_container_that_has_gone_leaves_no_cgroup(service: None, tmp_path: Path) -> None:
    run("pyctr", "run", "--rm", "--network", "none", "--cidfile", str(tmp_path / "id"), "demo", "echo", "x")

    id = (tmp_path / "id").read_text().strip()
    assert list(CGROUPS.rglob(f"*{id}*")) == []
