"""A private containerd, Debian's or a newer one, that runs our shim as its runtime io.containerd.pyctr.v1, and its ctr.

with private_containerd("2.3") as containerd:
    containerd.run("--rm", "c1", "--", "/bin/busybox", "true")
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from . import peers
from .footprint import remove_cgroup
from .shim_harness import DEADLINE, eventually, make_rootfs

RUNTIME: Final = "io.containerd.pyctr.v1"
WITHOUT_PODS: Final = """
version = 2
root = "{base}/root"
state = "{base}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{base}/c.sock"
[debug]
  level = "debug"
"""


class Containerd:
    """A private containerd and its ctr."""

    def __init__(self, base: Path, program: str, ctr: str, config: str) -> None:
        """Use programs by their paths; `config` is TOML, with {base} for the directory of all that there is."""
        self.base = base
        self.program, self.client = program, ctr
        self.address = base / "c.sock"
        self.namespace = f"shim-{uuid.uuid4().hex[:8]}"
        self.rootfs = make_rootfs(base / "rootfs")
        (base / "config.toml").write_text(config.replace("{base}", str(base)))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; return when it answers."""
        # Our shim is installed beside the interpreter.
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with (self.base / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.program, "-c", str(self.base / "config.toml")],
                env={**os.environ, "PATH": path},
                stdout=log,
                stderr=log,
            )
        eventually(lambda: self.ctr("version", check=False).returncode == 0, "containerd answers")

    def restart(self, number: signal.Signals) -> None:
        """End it by a signal and start another one."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(DEADLINE)
        self.start()

    def ctr(
        self, *arguments: str, check: bool = True, stdin: str | None = None, namespace: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """Run its ctr, by default with success; what it says of containerd's own deprecations is left out."""
        command = [self.client, "-a", str(self.address), "-n", namespace or self.namespace, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=2 * DEADLINE, check=False)
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}\n{self.log_text()[-3000:]}"
        lines = done.stderr.splitlines(keepends=True)
        done.stderr = "".join(line for line in lines if "DEPRECATION: " not in line)
        return done

    def run(self, *arguments: str, check: bool = False) -> "subprocess.CompletedProcess[str]":
        """Run a container with our shim; `arguments` are options, an id, `--` and the command."""
        *options, container = arguments[: arguments.index("--")]
        command = arguments[arguments.index("--") + 1 :]
        return self.ctr(
            "run", "--runtime", RUNTIME, *options, "--rootfs", str(self.rootfs), container, *command, check=check
        )

    def log_text(self) -> str:
        """Return what it has logged."""
        return (self.base / "log").read_text()

    def bundles(self, namespace: str = "") -> list[str]:
        """Return the ids of the containers that have a bundle, in its own namespace or another one."""
        folder = self.base / "state/io.containerd.runtime.v2.task" / (namespace or self.namespace)
        return os.listdir(folder) if folder.is_dir() else []

    def task(self, container: str) -> tuple[int, str]:
        """Return the pid and the status of a container, (0, "") if it has no task."""
        rows = [line.split() for line in self.ctr("task", "ls").stdout.splitlines()[1:]]
        return next(((int(row[1]), row[2]) for row in rows if row[0] == container), (0, ""))


@contextlib.contextmanager
def private_containerd(version: str, config: str = WITHOUT_PODS) -> Iterator[Containerd]:
    """Yield one that runs, "1.6" for Debian's; skips the test where there is none."""
    program, ctr = (
        f"/usr/bin/{name}" if version == "1.6" else str(peers.find(name, version)) for name in ("containerd", "ctr")
    )
    if not Path(program).exists():
        pytest.skip("containerd is not installed (Debian: containerd)")
    base = Path(tempfile.mkdtemp(prefix="cd", dir="/run"))
    here = Containerd(base, program, ctr, config)
    try:
        here.start()
        yield here
    finally:
        assert here.process is not None
        here.process.send_signal(signal.SIGTERM)
        here.process.wait(DEADLINE)
        remove_cgroup(here.namespace)
        shutil.rmtree(base)
