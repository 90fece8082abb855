"""`pyctr` as a test's user types it, on a daemon of the test module's own."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from support.daemon_process import DEADLINE, DaemonProcess
from support.terminal_session import TerminalSession

TIMEOUT = 4 * DEADLINE  # seconds for one command


class Pyctr:
    """The command, on a daemon of the module's own."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self.daemon = daemon
        self.environment = {**os.environ, "PYCTR_ADDRESS": str(daemon.address), "DOCKER_CONFIG": str(daemon.base)}
        self.environment.pop("PYCTR_NAMESPACE", None)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pyctr", *arguments]

    def run(self, *arguments: str, stdin: str = "", wrapper: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
        """Run the command to its end; `wrapper` is a command that runs it."""
        return subprocess.run(
            [*wrapper, *self.command(*arguments)], input=stdin, capture_output=True, text=True, timeout=TIMEOUT,
            check=False, env=self.environment,
        )  # fmt: skip

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, f"{arguments}: {done.returncode}: {done.stderr}{self.daemon.log_text()[-3000:]}"
        return done.stdout

    def box(self, *arguments: str, stdin: str = "") -> str:
        """Run a container that is removed, and return what it wrote."""
        return self("run", "--rm", "--network", "none", *arguments, stdin=stdin)

    @contextmanager
    def start(self, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
        """Run the command beside the test; it ends with the block at the latest."""
        with subprocess.Popen(
            self.command(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=self.environment,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()

    def terminal(self, *arguments: str, size: tuple[int, int] = (24, 80)) -> TerminalSession:
        return TerminalSession(self.command(*arguments), self.environment, size)

    def is_gone(self, name: str) -> bool:
        return self("ps", "-aq", "--filter", f"name={name}") == ""

    def state(self, name: str) -> str:
        return self("inspect", "--format", "{{.State.Status}}", name).strip()


@contextmanager
def running_pyctr(programs: Sequence[str], config: str = "", python: str | Path = sys.executable) -> Iterator[Pyctr]:
    """Yield the command on a new daemon with an image `demo` of these programs; at the end, nothing may be left."""
    with DaemonProcess(config=config, python=python) as daemon:
        command = Pyctr(daemon)
        command("image", "from-host", "demo", *programs)
        yield command
        for container in command("ps", "-aq", "--no-trunc").split():
            command("rm", "-f", container)
        kinds = command("snapshot", "ls", "--format", "{{.Kind}}").split()
        assert set(kinds) == {"committed"}
        assert not [path for path in (daemon.root / "logs").rglob("*") if path.is_file()]
        assert command("lease", "ls", "-q") == ""
