"""A real buildkitd whose containers, snapshots and blobs are in a private pyctrd, beside nerdctl on the same one.

with nerdctl_with_image() as nerdctl, running_registry(tmp_path) as registry, Buildkit(nerdctl, registry) as build:
    build("build", ..., "--local", "context=FOLDER")
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from . import peers
from .background import background
from .daemon_process import DEADLINE, wait_until
from .footprint import cgroups_below, remove_cgroup
from .nerdctl import Nerdctl

NAMESPACE: Final = "buildkit"
_HISTORIES: Final = "buildkit_history"  # of builds
_TIMEOUT: Final = 6 * DEADLINE  # seconds for one command


class Buildkit:
    """buildkitd, killed and started at will, and buildctl; where there is no such program the test skips."""

    def __init__(self, nerdctl: Nerdctl, registry: str) -> None:
        """Prepare one on nerdctl's daemon and machine; `registry` speaks plain HTTP."""
        self.nerdctl = nerdctl
        self._daemon, self._client = peers.find("buildkitd"), peers.find("buildctl")
        self.root = nerdctl.daemon.base / "buildkit"
        (self.root / "tmp").mkdir(parents=True)
        self.host = f"unix://{self.root}/b.sock"
        (self.root / "config.toml").write_text(f'[registry."{registry}"]\nhttp = true\n')
        # nerdctl looks for buildctl in $PATH.
        path = f"{self._client.parent}:{os.environ['PATH']}"
        # Mounts of secrets are in $TMPDIR; one that is killed leaves them, and they go with the directory.
        own = {"PATH": path, "BUILDKIT_HOST": self.host, "TMPDIR": f"{self.root}/tmp"}
        self.environment = {**nerdctl.environment, **own}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the daemon; return when it answers."""
        assert self._process is None
        worker = {
            "oci-worker": "false",
            "containerd-worker": "true",
            "containerd-worker-addr": str(self.nerdctl.daemon.address),
            "containerd-worker-net": "host",
        }
        words = [f"--{name}={value}" for name, value in worker.items()]
        words += ["--root", f"{self.root}/root", "--addr", self.host, "--config", f"{self.root}/config.toml"]
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self.nerdctl.machine.wrapper, str(self._daemon), *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment,
            )  # fmt: skip
        wait_until(self._answers, lambda: f"buildkitd answers:\n{self.log()}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the daemon."""
        assert self._process is not None
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"buildkitd does not stop:\n{self.log()}") from None

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run buildctl to its end, whatever comes of it."""
        return subprocess.run(
            self._command(*arguments),
            capture_output=True, text=True, timeout=_TIMEOUT, check=False, env=self.environment,
        )  # fmt: skip

    def __call__(self, *arguments: str) -> str:
        """Run buildctl with success, and return what it says; the progress of a build is on standard error."""
        done = self.run(*arguments)
        told = f"{arguments}: {done.stdout}{done.stderr}\n{self.log()}\n{self.nerdctl.daemon.log_text()[-4000:]}"
        assert done.returncode == 0, told
        return done.stdout + done.stderr

    def words(self, context: Path, *options: str) -> list[str]:
        """Return the arguments of buildctl that build the Dockerfile in a folder."""
        words = ["build", "--progress", "plain", "--frontend", "dockerfile.v0"]
        return [*words, "--local", f"context={context}", "--local", f"dockerfile={context}", *options]

    def build(self, context: Path, *options: str) -> str:
        """Build a folder and return the progress."""
        return self(*self.words(context, *options))

    def build_again(self, context: Path, *options: str) -> str:
        """Build a folder, tried until buildkitd has found a daemon that was away: it looks once in a while."""
        words, told = self.words(context, *options), ""

        def found() -> bool:
            nonlocal told
            done = self.run(*words)
            assert done.returncode == 0 or "connection refused" in done.stderr, done.stderr
            told = done.stderr
            return done.returncode == 0

        wait_until(found, "buildkitd finds the daemon")
        return told

    def building(self, context: Path, *options: str) -> AbstractContextManager["subprocess.Popen[str]"]:
        """Build a folder while the context lasts; the progress is on standard error."""
        command = self._command(*self.words(context, *options))
        return background(command, self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def by_nerdctl(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of nerdctl that asks buildkitd, through buildctl, to its end, whatever comes of it."""
        return subprocess.run(
            self.nerdctl.command(*arguments),
            capture_output=True, text=True, timeout=_TIMEOUT, check=False, env=self.environment,
        )  # fmt: skip

    def prune(self) -> None:
        """Have all that it keeps removed: what it could not let go of while the daemon was away, after a new start."""
        self.stop()
        self.start()
        self("prune", "--all")
        assert "Total:\t\t0B" in self("du", "--verbose")

    def in_namespace(self, *arguments: str) -> str:
        """Run nerdctl in buildkitd's namespace, with success."""
        return self.nerdctl("--namespace", NAMESPACE, *arguments)

    def ctr(self, *arguments: str) -> None:
        """Run ctr in buildkitd's namespace, whatever comes of it: nerdctl does not remove what is not its own."""
        self.nerdctl.daemon.ctr(*arguments, namespace=NAMESPACE, check=False)

    def _drop_leases(self) -> None:
        """Have what is left of histories removed: it looks no more for what it could not let go of, but lends it.

        It writes a build's trace seconds after the build, under a lease of five minutes; the daemon may be away when
        that is done.
        """
        ctr = self.nerdctl.daemon.ctr
        for lease in ctr("leases", "ls", "-q", namespace=_HISTORIES).split():
            ctr("leases", "rm", lease, namespace=_HISTORIES)

    def log(self) -> str:
        """Return the end of what the daemon has logged."""
        return (self.root / "log").read_text(errors="replace")[-4000:]

    def _command(self, *arguments: str) -> list[str]:
        return [*self.nerdctl.machine.wrapper, str(self._client), "--addr", self.host, *arguments]

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"buildkitd ended:\n{self.log()}"
        return self.run("debug", "workers").returncode == 0

    def __enter__(self) -> Self:
        """Start the daemon."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Have all that it keeps removed and stop it; no cgroup may be left."""
        try:
            if error is None:
                self.prune()
                self("prune-histories")
                self._drop_leases()
            if self._process is not None:
                self.stop()
            if error is None:
                assert cgroups_below(NAMESPACE) == []
                remove_cgroup(NAMESPACE)
        finally:
            if self._process is not None:
                self.stop(signal.SIGKILL)
            shutil.rmtree(self.root)


def write_context(folder: Path, dockerfile: str, files: Mapping[str, str]) -> Path:
    """Write what is to be built, and return the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text(dockerfile)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder
