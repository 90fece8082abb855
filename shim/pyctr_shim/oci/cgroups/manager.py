"""What the runtime asks of a cgroup, whichever version the machine has, and which version that is.

A path of the spec (`linux.cgroupsPath`) counts from the mount point of each hierarchy. A relative
one, or none, is taken below /pyctr, so that nothing depends on where the calling process lives.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Protocol

from pyctr_shim.oci.errors import OciError
from pyctr_sys.cgroups import base_of, own_hierarchies
from pyctr_sys.namespaces import in_user_namespace
from pyctr_sys.proc_lines import read_lines

MOUNT_POINT: Final = "/sys/fs/cgroup"
_HOME: Final = "/pyctr"

Resources = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """Where cgroups are mounted: v1 mount points by controller, v2's ("" if there is none).

    `base` is the cgroup that has been delegated to us where not all are ours.
    """

    controllers: Mapping[str, str]
    unified: str
    base: str = ""

    @property
    def is_v2(self) -> bool:
        """Whether v2 is in charge. A v2 mount beside v1 controllers (hybrid) is not."""
        return bool(self.unified) and not self.controllers

    def below_base(self, path: str) -> str:
        """Return where a cgroup that is to be at `path` is made."""
        return path if not self.base or path.startswith(self.base + "/") else self.base + path


class Cgroup(Protocol):
    """One container's cgroup."""

    @property
    def path(self) -> str:
        """Its path below the hierarchies' mount points."""

    def check_unused(self) -> None:
        """Raise OciError if processes are in it already: it is somebody else's then."""

    def create(self, pid: int = 0) -> None:
        """Make it; nothing happens if it is there.

        Systemd makes none without a process: it puts `pid` there, or whoever calls.
        """

    def apply(self, resources: Resources) -> None:
        """Write limits. Raises OciError naming the field that the kernel refused."""

    def delegate(self, uid: int) -> None:
        """Give a user of the host what it takes to make cgroups below it, where that is safe. Raises OciError."""

    def join(self) -> None:
        """Move the calling, single-threaded process into it."""

    def files_to_join(self) -> list[str]:
        """Return files: a process that writes 0 to all of them has joined."""

    def directory_for_clone(self) -> str:
        """Return the directory for CLONE_INTO_CGROUP, or "" where `join` is how to get in."""

    def directory_of(self, pid: int) -> str:
        """Return the directory, for CLONE_INTO_CGROUP, of a process in it that may be further down."""

    def pids(self) -> list[int]:
        """Return the processes in it and below it."""

    def pause(self) -> None:
        """Stop everything in it; returns when all are stopped."""

    def resume(self) -> None:
        """Let everything in it run."""

    def is_paused(self) -> bool:
        """Whether `pause` is in force."""

    def kill(self) -> None:
        """Send SIGKILL to everything in it, also what is being forked."""

    def metrics(self) -> tuple[str, bytes]:
        """Return type URL and bytes of io.containerd.cgroups.v1.Metrics or v2.Metrics."""

    def oom_kills(self) -> int:
        """Return how many processes the kernel killed for memory in it, 0 if it is gone."""

    def oom_watch(self) -> tuple[int, int] | None:
        """Return an fd that becomes readable (v1) or exceptional (v2) at an OOM kill, and one to keep open with it.

        The caller owns both. None where memory is not accounted.
        """

    def remove(self) -> None:
        """Remove it and what is below it; nothing happens if it is gone. Raises OSError: EBUSY."""


@cache
def mounted() -> Hierarchies:
    """Return what is mounted on this machine; read once, so that processes forked later need not."""
    found = detect(read_lines("/proc/self/mountinfo"))
    return _delegated(found) if in_user_namespace() else found


def _delegated(found: Hierarchies) -> Hierarchies:
    """Return what of it root of a user namespace may use: version 2 from a cgroup that it was given on, or nothing."""
    if found.is_v2:
        own = next((one for one in own_hierarchies() if one.is_v2), None)
        if own is not None:
            return Hierarchies({}, found.unified, base_of(own.own))
    return Hierarchies({}, "")


def detect(mountinfo: Iterable[str]) -> Hierarchies:
    """Find the hierarchies below /sys/fs/cgroup in the lines of a mountinfo file."""
    controllers: dict[str, str] = {}
    unified = ""
    for line in mountinfo:
        before, _, after = line.partition(" - ")
        mount_point = before.split(" ")[4]
        kind, _, super_options = after.split(" ")[:3]
        if mount_point != MOUNT_POINT and not mount_point.startswith(MOUNT_POINT + "/"):
            continue
        if kind == "cgroup2":
            unified = mount_point
        elif kind == "cgroup":
            for controller in super_options.split(","):
                if controller.startswith("name=") or controller in _V1_CONTROLLERS:
                    controllers[controller] = mount_point
    return Hierarchies(controllers, unified)


_V1_CONTROLLERS: Final = {
    "cpuset", "cpu", "cpuacct", "blkio", "memory", "devices", "freezer", "net_cls", "perf_event", "net_prio",
    "hugetlb", "pids", "rdma", "misc",
}  # fmt: skip


def cgroup_path(spec_path: str, container: str) -> str:
    """Return where a container's cgroup lies below the mount points.

    Raises OciError for a path that climbs (`..`).
    """
    path = spec_path if spec_path.startswith("/") else f"{_HOME}/{spec_path or container}"
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if not parts or ".." in parts:
        raise OciError(f"linux.cgroupsPath: {spec_path!r} is not the path of a cgroup of its own")
    return "/" + "/".join(parts)
