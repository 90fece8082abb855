"""Other projects' engines on our runtime: private directories, sockets and cgroups, and a look at what is left.

    with private_ground() as ground:
        ... an engine whose files are below ground.base, whose cgroups are below ground.cgroup ...

Leaving the context asserts that no process, mount, cgroup or state of a container is left.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from pyctr_sys.mount import MNT_DETACH, umount2

from .containers import hierarchies
from .daemon_process import DEADLINE, wait_until
from .footprint import cgroups_below, remove_cgroup

IMAGE: Final = "busybox:1"
_ENGINES_OWN: Final = ("conmon", "buildkit")  # cgroups


@dataclass(frozen=True, slots=True)
class Ground:
    """Where one engine lives; `runtime` is a program that is `pyctr-oci`, its containers' states in `states`."""

    base: Path
    cgroup: str
    runtime: Path
    states: Path

    def processes(self) -> list[int]:
        """Return the processes whose command lines name the directory: engines, monitors and shims."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                with suppress(OSError):
                    if os.fsencode(f"{self.base}/") in (folder / "cmdline").read_bytes():
                        found.append(int(folder.name))
        return found

    def mounts(self) -> list[str]:
        """Return what is mounted below the directory, the last first."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [point for line in reversed(lines) if (point := line.split()[4]).startswith(f"{self.base}/")]

    def cgroups(self) -> list[str]:
        """Return the containers' cgroups; an engine may have one above those of monitors or builds, which stays."""
        return [path for path in cgroups_below(self.cgroup) if Path(path).name not in _ENGINES_OWN]

    def containers(self) -> list[str]:
        """Return the containers that the runtime knows, but for those of an engine that names its own place."""
        return [path.parent.name for path in self.states.glob("*/state.json")]


@contextmanager
def private_ground() -> Iterator[Ground]:
    """Yield a ground; fail if an engine leaves anything on it, which is removed then nevertheless."""
    base = Path(tempfile.mkdtemp(prefix="pyctr-eng-", dir="/tmp"))
    ground = Ground(base, f"pyctr-eng-{uuid.uuid4().hex[:8]}", base / "pyctr-oci", base / "states")
    installed = Path(sys.executable).parent / "pyctr-oci"
    # Engines that have a place for states of their own say so in a later --root, which counts.
    ground.runtime.write_text(f'#!/bin/sh\nexec {installed} --root {ground.states} "$@"\n')
    ground.runtime.chmod(0o755)
    try:
        yield ground
        wait_until(lambda: not ground.processes(), lambda: f"processes end, but: {ground.processes()}")
        assert ground.containers() == []
        assert ground.cgroups() == []
        assert ground.mounts() == []
    finally:
        _clear(ground)


def _clear(ground: Ground) -> None:
    for id in ground.containers():
        subprocess.run([ground.runtime, "delete", "--force", id], check=False, timeout=2 * DEADLINE)
    for pid in ground.processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for mount in ground.mounts():
        umount2(mount, MNT_DETACH)
    for path in (root / ground.cgroup / name for root in hierarchies() for name in _ENGINES_OWN):
        if path.is_dir():
            path.rmdir()
    if not cgroups_below(ground.cgroup):
        remove_cgroup(ground.cgroup)
    shutil.rmtree(ground.base, ignore_errors=True)


def make_root(directory: Path) -> Path:
    """Make a root file system with this machine's static busybox and its applets."""
    (directory / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", directory / "bin")
    for applet in ("sh", "cat", "echo", "env", "id", "kill", "ls", "ps", "sleep", "stty", "true", "tty"):
        (directory / "bin" / applet).symlink_to("busybox")
    return directory


class Client:
    """An engine's command line, all global options included."""

    def __init__(self, ground: Ground, words: Sequence[str], environment: dict[str, str]) -> None:
        """Keep how to call it."""
        self.ground = ground
        self.words = list(words)
        self.environment = {**os.environ, **environment}

    def run(self, *arguments: str, stdin: int = subprocess.DEVNULL) -> "subprocess.CompletedProcess[str]":
        """Run a command, whatever comes of it."""
        return subprocess.run(
            [*self.words, *arguments],
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=4 * DEADLINE,
            check=False,
            env=self.environment,
        )

    def __call__(self, *arguments: str) -> str:
        """Run a command that succeeds, and return its output."""
        done = self.run(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}\n{self.log()}"
        return done.stdout

    def log(self) -> str:
        """Return the end of what the engine's daemon has written, if it has one."""
        path = self.ground.base / "log"
        return path.read_text()[-4000:] if path.exists() else ""


def installed(program: str, package: str) -> str:
    found = shutil.which(program, path=f"/usr/bin:/usr/sbin:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{program} is not installed (Debian: {package})")
    return found


@contextmanager
def docker(containerd: Path | None = None) -> Iterator[Client]:
    """Yield Debian's docker with one image: with pyctr-oci for its runtime, or on a daemon with containerd's API."""
    daemon, program = installed("dockerd", "docker.io"), installed("docker", "docker.io")
    with private_ground() as ground:
        base = ground.base
        words = [daemon, "--data-root", f"{base}/data", "--exec-root", f"{base}/exec", "--pidfile", f"{base}/pid"]
        words += ["--host", f"unix://{base}/d.sock", "--cgroup-parent", f"/{ground.cgroup}"]
        words += ["--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-masq=false"]
        words += ["--storage-driver", "vfs", "--oom-score-adjust", "0", "--default-ulimit", "nofile=1024:1024"]
        if containerd is None:
            words += ["--add-runtime", f"pyctr={ground.runtime}", "--default-runtime", "pyctr"]
        else:
            words += ["--containerd", str(containerd)]
        client = Client(ground, [program, "--host", f"unix://{base}/d.sock"], {})
        with running_daemon(client, words):
            import_image(client)
            yield client
            assert client("ps", "--all", "--quiet") == ""
        # dockerd leaves the mount of the network namespace that it had for containers with the host's.
        for mount in ground.mounts():
            assert mount == f"{base}/exec/netns/default"
            subprocess.run(["umount", mount], check=True)
        for states in (base / "exec").glob("runtime-*/moby"):
            assert os.listdir(states) == []


@contextmanager
def running_daemon(client: Client, words: list[str]) -> Iterator[None]:
    with (client.ground.base / "log").open("wb") as log, subprocess.Popen(words, stdout=log, stderr=log) as process:
        try:
            wait_until(lambda: client.run("version").returncode == 0, "the daemon answers", deadline=120)
            yield
        finally:
            process.terminate()


def import_image(client: Client) -> None:
    root, archive = make_root(client.ground.base / "image"), client.ground.base / "image.tar"
    subprocess.run(["tar", "--create", "--file", archive, "--directory", root, "."], check=True)
    client("import", str(archive), IMAGE)
