"""No cgroup at all: what a container of an ordinary user has where none has been delegated to that user.

Limits are refused, as nothing would keep them; so is a pause. Processes are found by what they are to init: those of
its PID namespace, or where it shares the runtime's, its descendants, as long as their parents live.
"""

import os
import signal
from typing import Final

from pyctr_shim.oci.cgroups.manager import Resources
from pyctr_shim.oci.errors import OciError
from pyctr_sys.pidfd import start_ticks

_REASON: Final = "no cgroup has been delegated to this user (`pyctr check rootless` says how that is done)"
_NO_LIMITS: Final = (None, 0, -1, "", False)
_NOT_HERE: Final = {"devices"}  # a user namespace can make none anyhow, so there is nothing to keep


class NoCgroup:
    """What stands for a cgroup that is not there."""

    def __init__(self, path: str, init_pid: int = 0) -> None:
        """Keep the name that it would have; without `init_pid` there are no processes."""
        self.path = path
        self._init_pid = init_pid
        self._born = _born(init_pid)

    def check_unused(self) -> None:
        """Nothing can be in it."""

    def create(self, pid: int = 0) -> None:
        """Nothing is made."""

    def apply(self, resources: Resources) -> None:
        """Raise OciError, naming the field, if there are limits."""
        for section, values in resources.items():
            if section in _NOT_HERE or not values:
                continue
            fields = values.items() if isinstance(values, dict) else [("", values)]
            for field, value in fields:
                if value not in _NO_LIMITS:
                    name = f"{section}.{field}" if field else section
                    raise OciError(f"linux.resources.{name}: {_REASON}")

    def delegate(self, uid: int) -> None:
        """Nothing is there to give away."""

    def join(self) -> None:
        """The process stays where it is."""

    def files_to_join(self) -> list[str]:
        """Return nothing to write to."""
        return []

    def directory_for_clone(self) -> str:
        """Return ""."""
        return ""

    def directory_of(self, pid: int) -> str:
        """Return ""."""
        return ""

    def pids(self) -> list[int]:
        """Return init and its kin, nothing if it has ended."""
        if not self._born or _born(self._init_pid) != self._born:
            return []
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        namespace = _pid_namespace(self._init_pid)
        if namespace == _pid_namespace(os.getpid()):
            return _descendants(self._init_pid, pids)
        return [pid for pid in pids if namespace and _pid_namespace(pid) == namespace]

    def pause(self) -> None:
        """Raise OciError."""
        raise OciError(f"a container is paused by its cgroup: {_REASON}")

    def resume(self) -> None:
        """Nothing is ever paused."""

    def is_paused(self) -> bool:
        """Return False."""
        return False

    def kill(self) -> None:
        """Send SIGKILL to all that are found."""
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def metrics(self) -> tuple[str, bytes]:
        """Return type URL and bytes of an io.containerd.cgroups.v2.Metrics that knows nothing."""
        return "io.containerd.cgroups.v2.Metrics", b""

    def oom_kills(self) -> int:
        """Return 0."""
        return 0

    def oom_watch(self) -> tuple[int, int] | None:
        """Return None."""
        return None

    def remove(self) -> None:
        """Nothing is to be removed."""


def _born(pid: int) -> int:
    """Return what tells a process from the next one of its number, 0 if there is none."""
    try:
        return start_ticks(pid) if pid else 0
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _pid_namespace(pid: int) -> int:
    """Return the inode of a process's PID namespace, 0 if it has ended or is not ours to look at."""
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return 0


def _descendants(init_pid: int, pids: list[int]) -> list[int]:
    children: dict[int, list[int]] = {}
    for pid in pids:
        children.setdefault(_parent(pid), []).append(pid)
    found = [init_pid]
    for pid in found:  # which grows meanwhile
        found += children.get(pid, ())
    return found


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return -1
