"""Namespaces and clones: unshare(2), setns(2), clone3(2)."""

from enum import IntEnum
from functools import cache
from typing import Any, Final

from pyctr_sys.calls import address, check, ffi, libc, named, syscall

_ALL_IDS: Final = ["0", "0", "4294967295"]


class Clone(IntEnum):
    """Flags of clone(2), several are a plain number; those that name a namespace also serve unshare and setns."""

    NEWTIME = 0x00000080
    VM = 0x00000100
    FILES = 0x00000400
    PIDFD = 0x00001000
    VFORK = 0x00004000
    PARENT = 0x00008000
    NEWNS = 0x00020000
    NEWCGROUP = 0x02000000
    NEWUTS = 0x04000000
    NEWIPC = 0x08000000
    NEWUSER = 0x10000000
    NEWPID = 0x20000000
    NEWNET = 0x40000000
    INTO_CGROUP = 0x200000000


def unshare(flags: int) -> None:
    """Move the calling thread into new namespaces; NEWPID takes effect for its next child.

    Raises OSError: EPERM without CAP_SYS_ADMIN (NEWUSER excepted), ENOSPC at a
    user.max_*_namespaces limit, EINVAL for NEWUSER in a threaded process. Source: unshare(2).
    """
    if libc.unshare(flags) < 0:
        check(-1, f"unshare({named(Clone, flags)})")


def setns(fd: int, flags: int) -> None:
    """Join the namespace behind `fd`, or with a pidfd all those of that process that `flags` name.

    Raises OSError: EINVAL if fd is no such namespace, EPERM, ESRCH if the process has ended.
    Source: setns(2).
    """
    if libc.setns(fd, flags) < 0:
        check(-1, f"setns({named(Clone, flags)})")


@cache
def in_user_namespace() -> bool:
    """Whether this process is in a user namespace other than the first: then its root is not the machine's.

    Read once, so that processes forked later need not; whoever enters one is to clear the cache. Source:
    user_namespaces(7).
    """
    with open("/proc/self/uid_map") as file:
        return file.read().split() != _ALL_IDS


@cache
def groups_are_denied() -> bool:
    """Whether setgroups is, as in a user namespace that nobody with privileges made. Read once, as above."""
    with open("/proc/self/setgroups") as file:
        return file.read().strip() == "deny"


def clone3(flags: int, exit_signal: int, cgroup_fd: int = 0) -> tuple[int, int]:
    """Fork with clone flags: 0 and -1 in the child; its pid and a pidfd, close-on-exec, in the parent.

    CPython is not told, unlike by os.fork: only for a process of one thread whose child execs or
    ends by os._exit. With PARENT, `exit_signal` is 0 and our own is meant. `cgroup_fd` (borrowed)
    goes with INTO_CGROUP. Raises OSError: EBUSY if that cgroup has controllers enabled for its
    children, ENOSPC, EAGAIN. Source: clone(2).
    """
    pidfd = ffi.new("int *", -1)
    arguments = clone_arguments(flags, exit_signal, cgroup_fd, pidfd)
    pid = syscall("clone3", address(arguments), ffi.sizeof("struct clone_args"))
    if pid < 0:
        check(pid, f"clone3({named(Clone, flags)})")
    return pid, pidfd[0] if pid else -1


def clone_arguments(flags: int, exit_signal: int, cgroup_fd: int, pidfd: Any) -> Any:
    """Return a C `struct clone_args` that lets the kernel put a pidfd into the C int that `pidfd` points to."""
    fields = {
        "flags": flags | Clone.PIDFD,
        "pidfd": address(pidfd),
        "exit_signal": exit_signal,
        "cgroup": cgroup_fd,
    }
    return ffi.new("struct clone_args *", fields)
