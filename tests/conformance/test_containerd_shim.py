"""containerd, Debian's and 2.3, runs our shim as its runtime io.containerd.pyctr.v1, driven by its own ctr."""

import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.containerd import RUNTIME, Containerd, private_containerd
from support.shim_harness import DEADLINE, eventually

pytestmark = [pytest.mark.root, pytest.mark.peer]


@pytest.fixture(scope="module", params=["1.6", pytest.param("2.3", marks=pytest.mark.full)])
def containerd(request: pytest.FixtureRequest) -> Iterator[Containerd]:
    with private_containerd(request.param) as containerd:
        yield containerd


@pytest.mark.parametrize("status", [0, 1, 7, 137])
def test_run_prints_and_exits_as_the_program_does(containerd: Containerd, status: int) -> None:
    done = containerd.run(
        "--rm", f"run{status}", "--", "/bin/busybox", "sh", "-c", f"echo out; echo err >&2; exit {status}"
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "out\n", "err\n")
    assert containerd.bundles() == []


def test_a_program_that_is_not_there_is_named(containerd: Containerd) -> None:
    done = containerd.run("--rm", "missing", "--", "nowhere")
    assert done.returncode != 0
    assert "OCI runtime create failed" in done.stderr
    assert "nowhere" in done.stderr
    assert "executable file not found" in done.stderr
    assert containerd.bundles() == []


def test_a_running_task_takes_all_that_ctr_has_to_say_and_survives_its_daemon(containerd: Containerd) -> None:
    script = "trap 'exit 5' TERM; while :; do /bin/busybox sleep 0.1; done"
    containerd.run("-d", "long", "--", "/bin/busybox", "sh", "-c", script, check=True)
    pid, status = containerd.task("long")
    assert status == "RUNNING"
    done = containerd.ctr(
        "task", "exec", "--exec-id", "e1", "long", "/bin/busybox", "sh", "-c", "cat; exit 3", check=False, stdin="in\n"
    )
    assert (done.returncode, done.stdout) == (3, "in\n")
    containerd.ctr("task", "pause", "long")
    assert containerd.task("long") == (pid, "PAUSED")
    containerd.ctr("task", "resume", "long")
    assert "memory" in containerd.ctr("task", "metrics", "long").stdout
    assert str(pid) in containerd.ctr("task", "ps", "long").stdout.split()

    for number in (signal.SIGKILL, signal.SIGTERM):
        containerd.restart(number)
        assert containerd.task("long") == (pid, "RUNNING")
        script = f"echo again; exit {number}"
        again = ("--exec-id", number.name, "long", "/bin/busybox", "sh", "-c", script)
        done = containerd.ctr("task", "exec", *again, check=False)
        assert (done.returncode, done.stdout) == (number, "again\n")
    containerd.ctr("task", "kill", "-s", "TERM", "long")
    eventually(lambda: containerd.task("long")[1] == "STOPPED", "stopped")
    assert "exit with non-zero exit code 5" in containerd.ctr("task", "rm", "long", check=False).stderr
    containerd.ctr("container", "rm", "long")
    assert containerd.bundles() == []


def test_a_terminal_is_one(containerd: Containerd) -> None:
    command = f"{containerd.client} -a {containerd.address} -n {containerd.namespace} run -t --rm --runtime {RUNTIME} "
    command += f"--rootfs {containerd.rootfs} tty /bin/busybox sh -c 'tty; exit 9'"
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert "/dev/pts/0" in done.stdout
    assert done.returncode == 9


def test_a_killed_shim_is_buried(containerd: Containerd) -> None:
    containerd.run("-d", "orphaned", "--", "/bin/busybox", "sleep", "1000", check=True)
    pid, _ = containerd.task("orphaned")
    pidfd = os.pidfd_open(pid)
    shim = int(Path(f"/proc/{pid}/status").read_text().split("PPid:")[1].split()[0])
    assert Path(f"/proc/{shim}/comm").read_text() == "pyctr-shim\n"
    os.kill(shim, signal.SIGKILL)
    assert select.select([pidfd], [], [], DEADLINE)[0], "the container goes on without its shim"
    os.close(pidfd)
    eventually(lambda: containerd.bundles() == [], "buried")
    containerd.ctr("container", "rm", "orphaned")
