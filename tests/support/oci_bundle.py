"""Containers for tests of the OCI runtime: a busybox root, a plain spec, and a lab that cleans up after itself."""

import contextlib
import json
import os
import select
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pyctr_shim.oci import runtime
from pyctr_shim.oci.cgroups import files, mounted
from pyctr_sys.mount import MNT_DETACH, umount2

from .patience import DEADLINE

BUSYBOX = Path("/bin/busybox")
needs_systemd = pytest.mark.skipif(not Path("/run/systemd/private").exists(), reason="systemd does not run here")
APPLETS = [
    "sh",
    "cat",
    "ls",
    "id",
    "env",
    "echo",
    "sleep",
    "true",
    "false",
    "ps",
    "mount",
    "grep",
    "hostname",
    "readlink",
    "stat",
    "touch",
    "mkdir",
    "kill",
    "head",
    "wc",
]
NAMESPACES = ("pid", "ipc", "uts", "mount", "network")
MAPS = [{"containerID": 0, "hostID": 100_000, "size": 1000}, {"containerID": 1000, "hostID": 200_000, "size": 10}]
Spec = dict[str, Any]


def make_root(directory: Path) -> Path:
    """Make a root file system with busybox in it."""
    for name in ("bin", "proc", "sys", "dev", "etc", "tmp", "root", "run"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(BUSYBOX, directory / "bin/busybox")
    for applet in APPLETS:
        (directory / "bin" / applet).symlink_to("busybox")
    (directory / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
    return directory


def process(*args: str, **changes: Any) -> Spec:
    """Return a process document."""
    return {"user": {"uid": 0, "gid": 0}, "args": list(args), "env": ["PATH=/bin"], "cwd": "/", **changes}


def plain_spec(*args: str, cgroup: str = "") -> Spec:
    """Return a spec as simple as clients write them: five namespaces, the usual mounts."""

    def mount(where: str, kind: str, options: str) -> Spec:
        return {"destination": where, "type": kind, "source": kind, "options": options.split(",")}

    return {
        "ociVersion": "1.0.2",
        "process": process(*args),
        "root": {"path": "rootfs"},
        "mounts": [
            mount("/proc", "proc", "nosuid,noexec,nodev"),
            mount("/dev", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
            mount("/dev/pts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
            mount("/sys", "sysfs", "nosuid,noexec,nodev,ro"),
        ],
        "linux": {"namespaces": [{"type": kind} for kind in NAMESPACES], "cgroupsPath": cgroup, "resources": {}},
    }


@dataclass
class Ended:
    """How a process ended and what it printed."""

    status: int
    output: str


@dataclass
class Lab:
    """Makes bundles and containers below one directory; `close` ends and removes all of them."""

    base: Path
    cgroup: str
    containers: list[runtime.Container] = field(default_factory=list)
    made: int = 0

    def bundle(self, spec: Spec, *, root: bool = True) -> Path:
        """Write a bundle whose root is a copy of busybox's."""
        self.made += 1
        bundle = self.base / f"b{self.made}"
        bundle.mkdir()
        if root:
            make_root(bundle / "rootfs")
        (bundle / "config.json").write_text(json.dumps(spec))
        return bundle

    def spec(self, *args: str) -> Spec:
        """Return a plain spec with a cgroup of its own."""
        return plain_spec(*args, cgroup=f"{self.cgroup}/c{self.made + 1}")

    def create(
        self,
        spec: Spec,
        *,
        stdio: tuple[int, int, int] | None = None,
        bundle: Path | None = None,
        **options: Any,
    ) -> runtime.Container:
        """Create a container that `close` will remove."""
        bundle = bundle or self.bundle(spec)
        with open("/dev/null", "r+b") as null:
            given = runtime.Stdio(*(stdio or (null.fileno(),) * 3))
            choices = runtime.CreateOptions(seccomp_cache=str(self.base / "seccomp"), **options)
            container = runtime.create(bundle.name, str(bundle), given, choices)
        self.containers.append(container)
        return container

    def run(self, spec: Spec, *, stop: bool = False, **options: Any) -> Ended:
        """Create, start and await a container; its output includes stderr."""
        with _output() as (read_fd, write_fd, null_fd):
            container = self.create(spec, stdio=(null_fd, write_fd, write_fd), **options)
            os.close(write_fd)
            container.start()
            output = read_all(read_fd)
            status = wait(container.pidfd)
        self.remove(container)
        return Ended(status, output)

    def exec(self, container: runtime.Container, document: Spec) -> Ended:
        """Execute a process and await its end."""
        with _output() as (read_fd, write_fd, null_fd):
            stdio = runtime.Stdio(null_fd, write_fd, write_fd)
            joined = container.exec(json.dumps(document).encode(), stdio)
            os.close(write_fd)
            output = read_all(read_fd)
            status = wait(joined.pidfd)
            os.close(joined.pidfd)
        return Ended(status, output)

    def running(self, spec: Spec | None = None, **options: Any) -> runtime.Container:
        """Return a started container, by default one that sleeps."""
        container = self.create(spec or self.spec("sleep", "1000"), **options)
        container.start()
        return container

    def remove(self, container: runtime.Container) -> None:
        """End and delete a container; nothing happens if that has been done."""
        if container not in self.containers:
            return
        self.containers.remove(container)
        if container.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                container.kill(signal.SIGKILL)
            wait(container.pidfd)
        if not container.own_pid_namespace:
            container.kill_all(signal.SIGKILL)
            eventually(lambda: not container.pids())
        container.delete()
        if container.console_fd is not None:
            os.close(container.console_fd)

    def close(self) -> None:
        """Remove every container, and whatever a failed test has left of cgroups and mounts."""
        try:
            # The last first: a namespace's first process does not end before those who joined it are reaped.
            for container in reversed(list(self.containers)):
                self.remove(container)
        finally:
            for directory in {*mounted().controllers.values(), mounted().unified} - {""}:
                files.remove_tree(directory + self.cgroup)
            for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
                if line.split()[4].startswith(f"{self.base}/"):
                    umount2(line.split()[4], MNT_DETACH)


def with_namespaces(spec: Spec, **paths: str | None) -> Spec:
    """Replace namespaces by kind: a path to join, "" for a new one, None for the host's."""
    kept = [item for item in spec["linux"]["namespaces"] if item["type"] not in paths]
    added = [{"type": kind, **({"path": path} if path else {})} for kind, path in paths.items() if path is not None]
    spec["linux"]["namespaces"] = kept + added
    return spec


def in_user_namespace(lab: Lab, spec: Spec) -> dict[str, Any]:
    """Map ids in a spec and return the options with a root owned by them."""
    with_namespaces(spec, user="")
    spec["linux"]["uidMappings"] = spec["linux"]["gidMappings"] = MAPS
    bundle = lab.bundle(spec)
    for directory, names, plain in os.walk(bundle / "rootfs"):
        for name in [*names, *plain, "."]:
            os.chown(os.path.join(directory, name), 100_000, 100_000, follow_symlinks=False)
    return {"bundle": bundle}


@contextlib.contextmanager
def _output():  # type: ignore[no-untyped-def]
    """Yield the reading end of a pipe, its writing end (whose closing is the caller's) and the null device."""
    read_fd, write_fd = os.pipe()
    null_fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        yield read_fd, write_fd, null_fd
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(write_fd)
        raise
    finally:
        os.close(read_fd)
        os.close(null_fd)


def wait(pidfd: int) -> int:
    """Return a child's exit status, 128 + N for a signal, -1 if it was reaped before; fails after the deadline."""
    ready, _, _ = select.select([pidfd], [], [], DEADLINE)
    assert ready, "the process does not end"
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        return -1
    assert result is not None
    return result.si_status if result.si_code == os.CLD_EXITED else 128 + result.si_status


def read_all(fd: int) -> str:
    """Read to the end of a pipe or terminal; fails after the deadline."""
    chunks: list[bytes] = []
    while True:
        ready, _, _ = select.select([fd], [], [], DEADLINE)
        assert ready, f"no end of output after {b''.join(chunks)!r}"
        try:
            data = os.read(fd, 65536)
        except OSError:  # EIO: the other side of a terminal is closed
            data = b""
        if not data:
            return b"".join(chunks).decode()
        chunks.append(data)


def is_mounted(path: Path) -> bool:
    """Whether something is mounted on a path, bind mounts too, which os.path.ismount does not see."""
    return any(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; fails after the deadline."""
    waiting, waker = os.pipe()
    try:
        for _ in range(int(DEADLINE / 0.01)):
            if condition():
                return
            select.select([waiting], [], [], 0.01)
    finally:
        os.close(waiting)
        os.close(waker)
    raise AssertionError("it never came true")
