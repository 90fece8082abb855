"""Debian's containerd runs our shim as its runtime io.containerd.pyctr.v1, driven by its own ctr."""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.shim_harness import DEADLINE, eventually, make_rootfs

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer,
    pytest.mark.skipif(
        shutil.which("containerd") is None or shutil.which("ctr") is None, reason="containerd is not installed"
    ),
]
RUNTIME = "io.containerd.pyctr.v1"
CONFIG = """
version = 2
root = "{root}/root"
state = "{root}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{root}/c.sock"
[debug]
  level = "debug"
"""


class Containerd:
    """A private containerd and its ctr."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.namespace = f"shim-{uuid.uuid4().hex[:8]}"
        self.rootfs = make_rootfs(root / "rootfs")
        (root / "config.toml").write_text(CONFIG.format(root=root))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # Our shim is installed beside the interpreter.
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["containerd", "-c", str(self.root / "config.toml")],
                env={**os.environ, "PATH": path},
                stdout=log,
                stderr=log,
            )
        eventually(lambda: self.ctr("version", check=False).returncode == 0, "containerd answers")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def ctr(self, *arguments: str, check: bool = True, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
        command = ["ctr", "-a", str(self.root / "c.sock"), "-n", self.namespace, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=2 * DEADLINE, check=False)
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}\n{self.log()}"
        return done

    def run(self, *arguments: str, check: bool = False) -> "subprocess.CompletedProcess[str]":
        """ctr run with our runtime; `arguments` end with the id and the command."""
        *options, container = arguments[: arguments.index("--")]
        command = arguments[arguments.index("--") + 1 :]
        return self.ctr(
            "run", "--runtime", RUNTIME, *options, "--rootfs", str(self.rootfs), container, *command, check=check
        )

    def log(self) -> str:
        return (self.root / "log").read_text()[-3000:]

    def bundles(self) -> list[str]:
        folder = self.root / "state/io.containerd.runtime.v2.task" / self.namespace
        return os.listdir(folder) if folder.is_dir() else []

    def status(self, container: str) -> str:
        rows = [line.split() for line in self.ctr("task", "ls").stdout.splitlines()[1:]]
        return next((row[2] for row in rows if row[0] == container), "")


@pytest.fixture(scope="module")
def containerd() -> Iterator[Containerd]:
    root = Path(tempfile.mkdtemp(prefix="cd", dir="/run"))
    here = Containerd(root)
    here.start()
    yield here
    assert here.process is not None
    here.process.send_signal(signal.SIGTERM)
    here.process.wait(DEADLINE)
    for cgroup in Path("/sys/fs/cgroup").glob(f"*/{here.namespace}"):
        with contextlib.suppress(FileNotFoundError):
            cgroup.rmdir()
    shutil.rmtree(root)


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
    containerd.run("-d", "long", "--", "/bin/busybox", "sleep", "1000", check=True)
    assert containerd.status("long") == "RUNNING"
    done = containerd.ctr(
        "task", "exec", "--exec-id", "e1", "long", "/bin/busybox", "sh", "-c", "cat; exit 3", check=False, stdin="in\n"
    )
    assert (done.returncode, done.stdout) == (3, "in\n")
    containerd.ctr("task", "pause", "long")
    assert containerd.status("long") == "PAUSED"
    containerd.ctr("task", "resume", "long")
    assert "memory" in containerd.ctr("task", "metrics", "long").stdout
    assert len(containerd.ctr("task", "ps", "long").stdout.splitlines()) == 2

    containerd.kill()
    containerd.start()
    assert containerd.status("long") == "RUNNING"
    done = containerd.ctr("task", "exec", "--exec-id", "e2", "long", "/bin/busybox", "echo", "again")
    assert done.stdout == "again\n"
    containerd.ctr("task", "kill", "-s", "KILL", "long")
    eventually(lambda: containerd.status("long") == "STOPPED", "stopped")
    assert containerd.ctr("task", "rm", "long", check=False).returncode in (0, 1)
    containerd.ctr("container", "rm", "long")
    assert containerd.bundles() == []


def test_a_terminal_is_one(containerd: Containerd) -> None:
    command = f"ctr -a {containerd.root}/c.sock -n {containerd.namespace} run -t --rm --runtime {RUNTIME} "
    command += f"--rootfs {containerd.rootfs} tty /bin/busybox sh -c 'tty; exit 9'"
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert "/dev/pts/0" in done.stdout
    assert done.returncode == 9


def test_a_killed_shim_is_buried(containerd: Containerd) -> None:
    containerd.run("-d", "orphaned", "--", "/bin/busybox", "sleep", "1000", check=True)
    rows = [line.split() for line in containerd.ctr("task", "ls").stdout.splitlines()[1:]]
    pid = next(int(row[1]) for row in rows if row[0] == "orphaned")
    pidfd = os.pidfd_open(pid)
    shim = int(Path(f"/proc/{pid}/status").read_text().split("PPid:")[1].split()[0])
    assert Path(f"/proc/{shim}/comm").read_text() == "pyctr-shim\n"
    os.kill(shim, signal.SIGKILL)
    assert select.select([pidfd], [], [], DEADLINE)[0], "the container goes on without its shim"
    os.close(pidfd)
    eventually(lambda: containerd.bundles() == [], "buried")
    containerd.ctr("container", "rm", "orphaned")
