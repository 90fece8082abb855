"""A real crictl on a private daemon."""

import json
import subprocess
from typing import Any

from . import peers
from .daemon_process import DEADLINE, DaemonProcess


class Crictl:
    """crictl, asking one daemon; skips the test where there is none."""

    def __init__(self, daemon: DaemonProcess) -> None:
        """Ask `daemon`."""
        self.daemon = daemon
        self._program = str(peers.find("crictl"))

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a command, whatever comes of it."""
        endpoint = f"unix://{self.daemon.address}"
        # A path that is not there: the machine's own configuration is not the test's.
        command = [self._program, "--config", str(self.daemon.base / "crictl.yaml"), "--runtime-endpoint", endpoint]
        command += ["--image-endpoint", endpoint, "--timeout", f"{DEADLINE:g}s", *arguments]
        (self.daemon.base / "crictl.yaml").touch()
        return subprocess.run(command, capture_output=True, text=True, timeout=4 * DEADLINE, check=False)

    def __call__(self, *arguments: str) -> str:
        """Run a command that succeeds, and return its output."""
        done = self.run(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stderr}\n{self.daemon.log_text()[-4000:]}"
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """Run a command that answers in JSON, and return that."""
        command, *rest = arguments
        return json.loads(self(command, "--output", "json", *rest))
