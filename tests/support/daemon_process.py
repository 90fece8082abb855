"""A private pyctrd for a test: started on directories of its own, killed and restarted at will, and checked at the end.

    with DaemonProcess() as daemon:
        channel = grpc.insecure_channel(f"unix:{daemon.address}")
        daemon.kill(); daemon.start()

Leaving the context stops the daemon and asserts that no process, mount or socket of it is left.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from pyctr_sys.pidfd import start_ticks
from pyctr_wire.health.v1 import health_pb2, health_pb2_grpc

from .patience import DEADLINE as DEADLINE


def wait_until(condition: Callable[[], bool], what: str | Callable[[], str], deadline: float = DEADLINE) -> None:
    """Return when `condition` holds; fail the test, naming `what` was awaited, after `deadline` seconds.

    A function is asked then, so it can tell how things are by then.
    """
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"gave up after {deadline:g} s: {what() if callable(what) else what}"
        time.sleep(0.02)


class Successor:
    """A daemon that another one has started: no child of ours, with the part of Popen's interface that we use."""

    def __init__(self, pid: int) -> None:
        """Watch process `pid`."""
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """Return 0 if it has ended, however, else None."""
        if self._pidfd < 0:
            return 0
        return 0 if select.select([self._pidfd], [], [], 0)[0] else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; raises subprocess.TimeoutExpired."""
        if not select.select([self._pidfd], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("pyctrd", timeout or 0)
        os.close(self._pidfd)
        self._pidfd = -1
        return 0


class DaemonProcess:
    """One pyctrd after the other on the same directories. Needs root."""

    def __init__(
        self,
        *,
        config: str = "",
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
        log_level: str = "debug",
        base: Path | None = None,
        state: Path | None = None,
        python: str | Path = sys.executable,
    ) -> None:
        """Prepare directories; `config` is TOML, `wrapper` a command that runs the daemon (strace, say).

        A `log_level` of "" leaves it to `config`. The directories are new ones, unless `base`, and maybe `state`, name
        those of a daemon that there was. `python` is an interpreter that finds the daemon's packages.
        """
        # Short: a socket's path has 108 bytes at most, and pytest's own directories are long.
        self.base = base or Path(tempfile.mkdtemp(prefix="pyctr-", dir="/tmp"))
        self.base.mkdir(parents=True, exist_ok=True)
        self.root, self.state = self.base / "root", state or self.base / "state"
        self.address = self.state / "pyctrd.sock"
        self.log = self.base / "log"
        (self.base / "config.toml").write_text(config)
        self.environment = {**os.environ, **(environment or {})}
        self.wrapper = tuple(wrapper)
        self.command = (
            str(python), "-m", "pyctrd",
            "--config", str(self.base / "config.toml"),
            "--root", str(self.root),
            "--state", str(self.state),
            *(("--log-level", log_level) if log_level else ()),
            *arguments,
        )  # fmt: skip
        self.process: subprocess.Popen[bytes] | Successor | None = None
        self.replaced: list[subprocess.Popen[bytes] | Successor] = []

    @property
    def pid(self) -> int:
        """The process id of the daemon, or of its wrapper."""
        assert self.process is not None, "the daemon is not running"
        return self.process.pid

    def start(self, *, wait: bool = True) -> Self:
        """Start the daemon; return when it answers, or at once."""
        assert self.process is None, "the daemon is running already"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, *self.command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment, cwd="/",
            )  # fmt: skip
        if wait:
            try:
                self.wait_ready()
            except AssertionError:  # whoever failed to enter the context does not leave it either
                self.process.kill()
                self.process.wait()
                raise
        return self

    def wait_ready(self) -> None:
        """Return when the daemon answers; fail with its log if it ends or takes too long."""
        end = time.monotonic() + DEADLINE
        while not self._answers():
            assert self.process is not None
            status = self.process.poll()
            assert status is None, f"pyctrd ended with {status}:\n{self.log_text()}"
            assert time.monotonic() < end, f"pyctrd does not answer:\n{self.log_text()}"
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end and return the exit status."""
        assert self.process is not None, "the daemon is not running"
        process, self.process = self.process, None
        if process.poll() is None:
            process.send_signal(number)
        try:
            return process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"pyctrd did not stop on {number.name}:\n{self.log_text()}") from None

    def kill(self) -> None:
        """End the daemon with SIGKILL."""
        self.stop(signal.SIGKILL)

    def upgrade(self) -> None:
        """Run `pyctrd upgrade`; the new daemon is ours from then on, the old one ends when nobody uses it."""
        done = subprocess.run(
            [*self.command, "upgrade"], capture_output=True, text=True, timeout=6 * DEADLINE, check=False
        )
        assert done.returncode == 0, f"{done.stderr}\n{self.log_text()}"
        self.adopt(int(done.stdout.rpartition("pid ")[2]))

    def adopt(self, pid: int) -> None:
        """Take the daemon that has taken over for ours."""
        assert self.process is not None
        self.replaced.append(self.process)
        self.process = Successor(pid)

    def wait_ended(self) -> int:
        """Wait until the daemon has ended by itself and return its exit status."""
        assert self.process is not None, "the daemon is not running"
        status = self.process.wait(DEADLINE)
        self.process = None
        return status

    def restart(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the daemon and start another one on the same directories."""
        self.stop(number)
        self.start()

    def channel(self) -> grpc.Channel:
        """Return a channel to the daemon, owned by the caller."""
        # Channels of one process share connections by default, and back off together after a restart.
        return grpc.insecure_channel(
            f"unix:{self.address}",
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_receive_message_length", 16 << 20),
                ("grpc.max_send_message_length", 16 << 20),
            ],
        )

    def ctr(self, *arguments: str, namespace: str = "default", check: bool = True) -> str:
        """Run Debian's ctr against the daemon and return its output; fail with its errors unless not `check`."""
        command = ["ctr", "--address", str(self.address), "--namespace", namespace, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE, check=False)
        if check:
            assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}\n{self.log_text()[-4000:]}"
            return done.stdout
        return done.stdout + done.stderr

    def log_text(self) -> str:
        """Return what the daemon wrote to standard error so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def leftovers(self) -> list[str]:
        """Return the processes and mounts that mention our directories, as text."""
        found = [f"mount {line.split()[4]}" for line in _lines("/proc/self/mountinfo") if str(self.base) in line]
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and process.name != str(os.getpid()):
                command = _read(process / "cmdline").replace("\0", " ").strip()
                if str(self.base) in command + _read(process / "environ"):
                    found.append(f"process {process.name}: {command}")
        return found

    def __enter__(self) -> Self:
        """Start the daemon unless that was done."""
        if self.process is None:
            self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the daemon, remove its directories, and assert that nothing else of it is left."""
        clean = False
        try:
            if self.process is not None:
                status = self.stop()
                for process in self.replaced:
                    status = status or process.wait(DEADLINE)
                assert error or status == 0, f"pyctrd ended with {status}:\n{self.log_text()}"
            if error is None:
                wait_until(lambda: not self.leftovers(), lambda: f"nothing left of the daemon, but: {self.leftovers()}")
                assert "Traceback" not in self.log_text(), self.log_text()
                clean = True
        finally:
            if not clean:
                sys.stderr.write(self.log_text()[-8000:])
                self._end_shims()
            shutil.rmtree(self.base, ignore_errors=True)

    def _end_shims(self) -> None:
        """End the shims of a failed test and the containers in them: once their bundles are gone, nobody finds them."""
        for bundle in self.state.glob("tasks/*/*"):
            with suppress(OSError, ValueError, KeyError):
                shim = json.loads(_read(bundle / "shim.json"))["pid"]
                if "pyctr_shim" in _read(Path(f"/proc/{shim}/cmdline")):
                    os.kill(shim, signal.SIGKILL)
            with suppress(OSError, ValueError, KeyError):
                init = json.loads(_read(bundle / "state.json"))
                if start_ticks(init["pid"]) == init["start_ticks"]:
                    os.kill(init["pid"], signal.SIGKILL)

    def _answers(self) -> bool:
        with self.channel() as channel:
            try:
                health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
            except grpc.RpcError:
                return False
        return True


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # ended meanwhile, or a kernel thread
        return ""


def _lines(path: str) -> list[str]:
    return _read(Path(path)).splitlines()


def command_lines() -> Iterator[list[str]]:
    """Yield the words of each process's command."""
    for folder in Path("/proc").iterdir():
        try:
            yield (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
