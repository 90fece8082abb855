"""A real crictl on a private daemon."""

import json
import subprocess
from pathlib import Path
from typing import Any, Protocol

from . import peers
from .daemon_process import DEADLINE


class Daemon(Protocol):
    """A daemon with the container runtime interface, ours or another one."""

    address: Path
    base: Path

    def log_text(self) -> str: ...


class Crictl:
    """crictl, asking one daemon; skips the test where there is none."""

    def __init__(self, daemon: Daemon) -> None:
        """Ask `daemon`."""
        self.daemon = daemon
        endpoint = f"unix://{daemon.address}"
        config = daemon.base / "crictl.yaml"  # the machine's own configuration is not the test's
        config.write_text(f"runtime-endpoint: {endpoint}\nimage-endpoint: {endpoint}\ntimeout: {DEADLINE:g}\n")
        self.command = (str(peers.find("crictl")), "--config", str(config))

    def run(self, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Run a command, whatever comes of it."""
        command = [*self.command, *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=4 * DEADLINE, check=False)

    def __call__(self, *arguments: str) -> str:
        """Run a command that succeeds, and return its output."""
        done = self.run(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stderr}\n{self.daemon.log_text()[-4000:]}"
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """Run a command that answers in JSON, and return that."""
        command, *rest = arguments
        return json.loads(self(command, "--output", "json", *rest))
