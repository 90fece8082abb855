"""Which namespaces a container gets: new ones, others' by path, or the runtime's own."""

import fcntl
import os
import signal
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from pyctr_shim.oci.errors import OciError
from pyctr_sys.namespaces import Clone, clone3, setns, unshare
from pyctr_sys.openat2 import O_PATH
from pyctr_sys.pidfd import pidfd_send_signal, wait

KINDS: Final[Mapping[str, Clone]] = {
    "pid": Clone.NEWPID, "network": Clone.NEWNET, "mount": Clone.NEWNS, "ipc": Clone.NEWIPC,
    "uts": Clone.NEWUTS, "user": Clone.NEWUSER, "cgroup": Clone.NEWCGROUP, "time": Clone.NEWTIME,
}  # fmt: skip

# In the order of joining: what a joined user namespace may not own comes while we are the host's root.
_JOIN_ORDER: Final = (
    Clone.NEWNET, Clone.NEWIPC, Clone.NEWUTS, Clone.NEWCGROUP, Clone.NEWTIME, Clone.NEWPID, Clone.NEWUSER,
)  # fmt: skip

_FILES: Final = {
    Clone.NEWNET: "net", Clone.NEWIPC: "ipc", Clone.NEWUTS: "uts", Clone.NEWCGROUP: "cgroup", Clone.NEWNS: "mnt",
}  # fmt: skip
_NAMESPACE: Final = os.O_RDONLY | os.O_CLOEXEC
_DIRECTORY: Final = O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 0x1
_IFF_RUNNING: Final = 0x40


@dataclass(frozen=True, slots=True)
class Plan:
    """New namespaces as clone flags, and fds of those to join by flag.

    The root is always made in a new mount namespace. Where the container is to have another one, `mounts_fd` is that,
    and it is the runtime's own unless it has been given by path.
    """

    new: int
    joined: Mapping[Clone, int]
    mounts_fd: int = -1
    mounts_by_path: bool = False

    def has(self, kind: Clone) -> bool:
        """Whether the container has a namespace of this kind that is not the runtime's own."""
        return bool(self.new & kind) or kind in self.joined

    @property
    def flags(self) -> int:
        """All kinds in which the container differs from the runtime."""
        flags = self.new
        for kind in self.joined:
            flags |= kind
        return flags

    def join(self) -> None:
        """Enter the namespaces given by path, except the mount namespace; PID for the next child only."""
        for kind in _JOIN_ORDER:
            if kind in self.joined:
                try:
                    setns(self.joined[kind], kind)
                except OSError as error:
                    raise OciError(f"joining {kind.name} namespace: {error.strerror}", error.errno or 0) from None

    def enter_new(self, kinds: int) -> None:
        """Create those of the new namespaces that `kinds` names."""
        if flags := self.new & kinds:
            unshare(flags)

    def close(self) -> None:
        """Close the fds."""
        for fd in self.joined.values():
            os.close(fd)
        if self.mounts_fd >= 0:
            os.close(self.mounts_fd)


def plan(namespaces: Iterable[Mapping[str, Any]]) -> Plan:
    """Open what is joined by path and return the plan.

    The fds stay open until the program is executed. A path to the runtime's own user namespace
    counts as none at all: it cannot be joined, and need not be.
    """
    new = 0
    joined: dict[Clone, int] = {}
    for namespace in namespaces:
        kind = KINDS[namespace["type"]]
        path = namespace.get("path")
        if not path:
            new |= kind
            continue
        try:
            fd = os.open(path, _NAMESPACE | os.O_NONBLOCK)  # of a FIFO, nobody waits for a writer
        except OSError as error:
            raise OciError(f"linux.namespaces: {namespace['type']}: open {path}: {error.strerror}",
                           error.errno or 0) from None  # fmt: skip
        if kind == Clone.NEWUSER and os.fstat(fd).st_ino == os.stat("/proc/self/ns/user").st_ino:
            os.close(fd)
            continue
        joined[kind] = fd
    if new & Clone.NEWNS:
        return Plan(new, joined)
    by_path = Clone.NEWNS in joined
    mounts_fd = joined.pop(Clone.NEWNS) if by_path else os.open("/proc/self/ns/mnt", _NAMESPACE)
    return Plan(new | Clone.NEWNS, joined, mounts_fd, by_path)


@contextmanager
def visited(pidfd: int, kinds: int) -> Iterator[None]:
    """Be in those namespaces of a process for a while, a mount namespace among them, and at the root of that.

    For a mount namespace alone, an fd of that will do.
    For a process of one thread. One that could not come back must not go on: it ends. Raises OSError, and is where it
    was then: EINVAL for a process of several threads.
    """
    home = [(kind, os.open(f"/proc/self/ns/{name}", _NAMESPACE)) for kind, name in _FILES.items() if kinds & kind]
    root_fd, directory_fd = os.open("/", _DIRECTORY), os.open(".", _DIRECTORY)
    mask = os.umask(0)
    try:
        setns(pidfd, Clone.NEWNS)  # by itself, as the way back: only so it is refused to a process of several threads
        try:
            if others := kinds & ~Clone.NEWNS:
                setns(pidfd, others)
            yield
        finally:
            try:
                for kind, fd in home:
                    setns(fd, kind)
                os.fchdir(root_fd)
                os.chroot(".")
                os.fchdir(directory_fd)
            except OSError:
                os._exit(1)
    finally:
        os.umask(mask)
        for fd in (*(fd for _kind, fd in home), root_fd, directory_fd):
            os.close(fd)


def write_maps(pid: int, uids: Sequence[Mapping[str, int]], gids: Sequence[Mapping[str, int]]) -> None:
    """Give a process's new user namespace its id maps, with the privileges of the parent namespace.

    Raises OciError for maps that the kernel refuses.
    """
    for name, maps in (("uid_map", uids), ("gid_map", gids)):
        text = "".join(f"{item['containerID']} {item['hostID']} {item['size']}\n" for item in maps)
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        except OSError as error:
            raise OciError(f"linux.{name[:3]}Mappings: {error.strerror}", error.errno or 0) from None
        finally:
            os.close(fd)


def with_maps(uids: Sequence[Mapping[str, int]], gids: Sequence[Mapping[str, int]]) -> int:
    """Return an fd of a new user namespace with these maps that nothing is in.

    It lasts as long as the fd or a mount that was made with it. Raises OciError for maps that the kernel refuses.
    """
    pid, pidfd = clone3(Clone.NEWUSER, signal.SIGCHLD)
    if pid == 0:
        signal.pause()
        os._exit(1)
    try:
        seen = _pid_in_proc(pidfd)
        write_maps(seen, uids, gids)
        return os.open(f"/proc/{seen}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        pidfd_send_signal(pidfd, signal.SIGKILL)
        wait(pidfd)
        os.close(pidfd)


def _pid_in_proc(pidfd: int) -> int:
    """Return the pid as /proc has it, which may be another PID namespace's than ours."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pid:"))


def enter_time(offsets: Mapping[str, Mapping[str, int]]) -> None:
    """Create a time namespace for the next child, its clocks shifted."""
    unshare(Clone.NEWTIME)
    for clock, offset in offsets.items():
        fd = os.open("/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, f"{clock} {offset.get('secs') or 0} {offset.get('nanosecs') or 0}\n".encode())
        except OSError as error:
            raise OciError(f"linux.timeOffsets: {clock}: {error.strerror}", error.errno or 0) from None
        finally:
            os.close(fd)


def bring_loopback_up() -> None:
    """Set the loopback device of a new network namespace up. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP | _IFF_RUNNING))
