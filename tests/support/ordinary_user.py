"""Users of this machine that a test makes: each with a home, a runtime directory and ids of its own, gone at the end.

    with OrdinaryUser() as user, user.daemon() as daemon:
        user.pyctr(daemon, "ps")

Needs root. The interpreter that runs the tests, and the tests themselves, may lie where only root gets at them: a
user's commands run in a mount namespace in which they can be reached, and nothing else that is root's.
"""

import contextlib
import json
import os
import pwd
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from .daemon_process import DEADLINE, DaemonProcess, wait_until

IDS = 65536
UNIFIED = Path("/sys/fs/cgroup/unified")  # version 2 beside version 1
FUSE = Path("/dev/fuse")
_REPOSITORY = Path(__file__).resolve().parents[2]
_NEEDED = tuple(dict.fromkeys((_REPOSITORY, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve())))


class OrdinaryUser:
    """A user who is nobody special; `granted` ids beside his own, from `first` on."""

    def __init__(self, *, granted: int = IDS) -> None:
        """Make the user."""
        self.name = f"pyctr{secrets.token_hex(3)}"
        self.base = Path(tempfile.mkdtemp(prefix="pyctr-u-", dir="/tmp"))
        self.base.chmod(0o711)
        self.home, self.runtime = self.base / "home", self.base / "run"
        _system("useradd", "--home-dir", str(self.home), "--create-home", "--shell", "/bin/sh", self.name)
        entry = pwd.getpwnam(self.name)
        self.uid, self.gid = entry.pw_uid, entry.pw_gid
        # What useradd grants depends on the machine's login.defs.
        for path, option in (("/etc/subuid", "--del-subuids"), ("/etc/subgid", "--del-subgids")):
            for first, count in _grants(path, self.name):
                _system("usermod", option, f"{first}-{first + count - 1}", self.name)
        self.first = max([1_000_000, *(first + count for path in ("/etc/subuid", "/etc/subgid")
                                       for first, count in _grants(path))])  # fmt: skip
        if granted:
            ids = f"{self.first}-{self.first + granted - 1}"
            _system("usermod", "--add-subuids", ids, "--add-subgids", ids, self.name)
        self.temporary = self.base / "tmp"  # not every machine lets everybody write to /tmp
        for directory in (self.home, self.runtime, self.temporary):
            directory.mkdir(exist_ok=True)
            directory.chmod(0o700)
            os.chown(directory, self.uid, self.gid)
        self.environment = {
            "HOME": str(self.home),
            "USER": self.name,
            "XDG_RUNTIME_DIR": str(self.runtime),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "TMPDIR": str(self.temporary),
        }

    def host_id(self, number: int) -> int:
        """Return the uid that a container's user has on this machine."""
        return self.first + number - 1 if number else self.uid

    @property
    def prefix(self) -> list[str]:
        """The beginning of a command that this user runs; the process is the one that is started."""
        return self._prefix("")

    def delegated(self) -> list[str]:
        """Return the beginning of a command that sees cgroups of version 2 alone and is in one that is this user's.

        It is called after the user, and the command is in `daemon` below it, as with systemd's DelegateSubgroup=.
        """
        here = f"/sys/fs/cgroup/{self.name}"
        return self._prefix(
            "umount -R -l /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup\n"
            f"mkdir -p {here}/daemon; echo $$ >{here}/daemon/cgroup.procs\n"
            f"for one in {here} {here}/daemon; do cd $one; chown {self.uid}:{self.gid} . cgroup.procs"
            " cgroup.subtree_control cgroup.threads; done; cd /\n"
        )

    def with_fuse(self, mode: int = 0o666) -> list[str]:
        """Return the beginning of a command that sees a /dev/fuse of that mode; udev's is for everybody.

        There is none where this machine has none.
        """
        if not FUSE.exists():
            return self.prefix
        place = self.base / "dev"
        place.mkdir(exist_ok=True)
        device = FUSE.stat().st_rdev
        return self._prefix(
            f"mount -t tmpfs -o mode=0755 tmpfs {place}\n"  # where nodes are devices, as they may not be below /tmp
            f"mknod -m {mode:o} {place}/fuse c {os.major(device)} {os.minor(device)}\n"
            f"mount --bind {place}/fuse {FUSE}\n"
        )

    def _prefix(self, script: str) -> list[str]:
        become = shlex.join(["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups", "--"])
        return [
            "unshare",
            "--mount",
            "--propagation",
            "slave",
            "sh",
            "-ec",
            f'{_reachable()}{script}exec {become} "$@"',
            "sh",
        ]

    def run(self, *command: str, environment: Mapping[str, str] | None = None, cwd: Path | None = None,
            wrapper: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":  # fmt: skip
        """Run a command as this user to its end; `wrapper` begins it, if that is not `prefix`."""
        return subprocess.run(
            [*(wrapper or self.prefix), *command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=4 * DEADLINE, check=False, env={**self.environment, **(environment or {})}, cwd=cwd or self.home,
        )  # fmt: skip

    def pyctr(self, *arguments: str) -> str:
        """Run `pyctr` as this user, on the daemon at the usual place, and return its output."""
        done = self.run(sys.executable, "-m", "pyctr", *arguments)
        assert done.returncode == 0, f"{arguments}: {done.returncode}: {done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def daemon(self, wrapper: Sequence[str] = ()) -> Iterator[DaemonProcess]:
        """Run a daemon of this user's at the usual places; `wrapper` begins its command, if it is not `prefix`."""
        daemon = DaemonProcess(wrapper=wrapper or self.prefix, environment=self.environment)
        daemon.environment = dict(self.environment)
        daemon.state = self.runtime / "pyctr"
        daemon.root = self.home / ".local/share/pyctr"
        daemon.address = daemon.state / "pyctrd.sock"
        daemon.command = (sys.executable, "-m", "pyctrd", "--log-level", "debug")
        with daemon:
            yield daemon
        wait_until(lambda: not self.processes(), f"nothing left of the daemon of {self.name}")

    def processes(self) -> list[int]:
        """Return the pids of everything that runs as this user or with the ids granted to him."""
        found = []
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if process.name.isdigit() and self._is_ours(process.stat().st_uid, process):
                    found.append(int(process.name))
        return found

    def _is_ours(self, owner: int, process: Path) -> bool:
        # A process that may not be looked into belongs to root in /proc.
        lines = (process / "status").read_text().splitlines()
        uids = next(line for line in lines if line.startswith("Uid:")).split()[1:]
        return any(uid == self.uid or self.first <= uid < self.first + IDS for uid in {owner, *map(int, uids)})

    def __enter__(self) -> Self:
        """Nothing more to do."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the user, his files and what may still run, and assert that nothing did."""
        left = [f"{pid}: {_command(pid)}" for pid in self.processes()]
        for _ in range(5):
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        try:
            wait_until(lambda: not self.processes(), f"the end of all processes of {self.name}")
        finally:
            for folder, _, _ in os.walk(UNIFIED / self.name, topdown=False):
                os.rmdir(folder)
            _system("userdel", self.name)
            shutil.rmtree(self.base, ignore_errors=True)
        assert error or not left, f"processes of {self.name} were left: {left}"


def _grants(path: str, name: str = "") -> list[tuple[int, int]]:
    lines = [line.split(":") for line in Path(path).read_text().splitlines()] if Path(path).exists() else []
    return [(int(line[1]), int(line[2])) for line in lines if len(line) == 3 and name in ("", line[0])]


def _reachable() -> str:
    """Return shell commands that make what is needed reachable in a new mount namespace."""
    stash, script = "/mnt", "mount -t tmpfs -o mode=0755 tmpfs /mnt\n"
    hidden: dict[Path, list[Path]] = {}
    for path in _NEEDED:
        blocked = next((one for one in reversed(path.parents) if not one.stat().st_mode & 0o001), None)
        if blocked is not None:
            hidden.setdefault(blocked, []).append(path)
    if not hidden:
        return ""
    for number, path in enumerate(path for paths in hidden.values() for path in paths):
        script += f"mkdir {stash}/{number}; mount --bind {shlex.quote(str(path))} {stash}/{number}\n"
    number = 0
    for blocked, paths in hidden.items():
        script += f"mount -t tmpfs -o mode=0755 tmpfs {shlex.quote(str(blocked))}\n"
        for path in paths:
            quoted = shlex.quote(str(path))
            script += f"mkdir -p {quoted}; mount --bind {stash}/{number} {quoted}\n"
            number += 1
    return script


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def _system(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


def status_of(pid: int) -> dict[str, str]:
    """Return the fields of a process's status file."""
    text = Path(f"/proc/{pid}/status").read_text()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def pid_of(inspected: str) -> int:
    """Return the pid in the output of `pyctr inspect`."""
    return int(json.loads(inspected)[0]["State"]["Pid"])
