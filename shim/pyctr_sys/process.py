"""What a process may change about itself: prctl(2), close_range(2), names, keyring, scheduling."""

import os
from collections.abc import Iterable
from enum import IntEnum

from pyctr_sys.calls import address, check, ffi, libc, syscall
from pyctr_sys.steps import Steps

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
_KEYCTL_JOIN_SESSION_KEYRING = 1
_KEYCTL_SETPERM = 5
_KEY_SPEC_SESSION_KEYRING = -3
_KEY_POSSESSOR_ALL = 0x3F000000
_KEY_USER_SEARCH = 0x00080000
_WORD_BITS = 64
_WORD_MASK = (1 << _WORD_BITS) - 1
LAST_FD = 0xFFFFFFFF
PROC_SUPER_MAGIC = 0x9FA0


class IoClass(IntEnum):
    """Classes of ioprio_set(2)."""

    IOPRIO_CLASS_RT = 1
    IOPRIO_CLASS_BE = 2
    IOPRIO_CLASS_IDLE = 3


def set_dumpable(value: int) -> None:
    """With 0, nobody but the host's root may trace this process or open its /proc/PID/fd."""
    check(libc.prctl(PR_SET_DUMPABLE, value, 0, 0, 0), "prctl(PR_SET_DUMPABLE)")


def set_name(name: str) -> None:
    """Set what `ps -o comm` shows; cut at 15 bytes."""
    text = ffi.new("char[]", os.fsencode(name)[:15])
    check(libc.prctl(PR_SET_NAME, address(text), 0, 0, 0), "prctl(PR_SET_NAME)")


def set_parent_death_signal(number: int) -> None:
    """Be sent a signal when the parent ends; 0 for none. A change of user resets it, exec does not."""
    check(libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def set_child_subreaper(*, on: bool = True) -> None:
    """Become the parent of descendants whose own parents end from now on, or not any more."""
    check(libc.prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")


def trim_heap() -> None:
    """Give memory that has been freed back to the kernel, where the C library can. Source: malloc_trim(3)."""
    trim = getattr(libc, "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def set_no_new_privs() -> None:
    """Give up gaining privileges by exec, for good."""
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


def close_range(first: int, last: int = LAST_FD) -> None:
    """Close all fds from `first` to `last`, both included. Source: close_range(2)."""
    if first <= last:
        check(syscall("close_range", first, last, 0), "close_range")


def sethostname(name: str) -> None:
    """Set the UTS namespace's host name. Raises OSError: EINVAL beyond 64 bytes, EPERM."""
    text = os.fsencode(name)
    check(libc.sethostname(text, len(text)), "sethostname")


def setdomainname(name: str) -> None:
    """Set the UTS namespace's NIS domain name. Raises OSError: EINVAL beyond 64 bytes, EPERM."""
    text = os.fsencode(name)
    check(libc.setdomainname(text, len(text)), "setdomainname")


def add_personality(steps: Steps, persona: int) -> None:
    """Set the execution domain. Source: personality(2)."""
    steps.call("linux.personality", "personality", persona)


def add_memory_policy(steps: Steps, mode: int, nodes: Iterable[int]) -> None:
    """Set from which nodes a process's memory comes, flags included in `mode`.

    EINVAL for nodes that the mode does not take or that are not there. Source: set_mempolicy(2).
    """
    mask = sum(1 << node for node in set(nodes))
    words = [mask >> shift & _WORD_MASK for shift in range(0, max(mask.bit_length(), 1), _WORD_BITS)]
    bits = len(words) * _WORD_BITS + 1 if mask else 0  # the kernel takes one off
    steps.call("linux.memoryPolicy", "set_mempolicy", mode, steps.buffer("uint64_t[]", words) if mask else 0, bits)


def join_session_keyring(name: str) -> None:
    """Start a new session keyring that only its possessor may use, searchable by its user.

    Raises OSError: ENOSYS where the kernel has no keyrings, EDQUOT. Source: keyctl(2).
    """
    text = ffi.new("char[]", os.fsencode(name))
    key = check(syscall("keyctl", _KEYCTL_JOIN_SESSION_KEYRING, address(text)), "keyctl(JOIN_SESSION_KEYRING)", name)
    check(syscall("keyctl", _KEYCTL_SETPERM, key, _KEY_POSSESSOR_ALL | _KEY_USER_SEARCH), "keyctl(SETPERM)", name)


def add_session_keyring(steps: Steps, name: str) -> None:
    """Make `join_session_keyring` steps."""
    text = steps.buffer("char[]", os.fsencode(name))
    steps.call("keyctl(JOIN_SESSION_KEYRING)", "keyctl", _KEYCTL_JOIN_SESSION_KEYRING, text)
    permissions = _KEY_POSSESSOR_ALL | _KEY_USER_SEARCH
    steps.call("keyctl(SETPERM)", "keyctl", _KEYCTL_SETPERM, _KEY_SPEC_SESSION_KEYRING, permissions)


def set_io_priority(io_class: IoClass, level: int, pid: int = 0) -> None:
    """Set a process's I/O priority, 0 (first) to 7; this process's by default. Source: ioprio_set(2)."""
    check(syscall("ioprio_set", 1, pid, io_class << 13 | level), "ioprio_set")


def sched_setattr(
    pid: int, policy: int, *, flags: int, nice: int, priority: int, runtime_ns: int, deadline_ns: int, period_ns: int
) -> None:
    """Set a process's scheduling policy and its parameters; this process's if 0. Source: sched_setattr(2)."""
    attributes = ffi.new("struct sched_attr *")
    attributes.size = ffi.sizeof("struct sched_attr")
    attributes.sched_policy, attributes.sched_flags = policy, flags
    attributes.sched_nice, attributes.sched_priority = nice, priority
    attributes.sched_runtime, attributes.sched_deadline, attributes.sched_period = runtime_ns, deadline_ns, period_ns
    check(syscall("sched_setattr", pid, address(attributes), 0), "sched_setattr")


def file_system_type(fd: int) -> int:
    """Return the magic number of the file system that `fd` lies on. Source: fstatfs(2)."""
    buffer = ffi.new("long[32]")  # more than struct statfs on any architecture; f_type comes first
    check(libc.fstatfs(fd, buffer), "fstatfs")
    return int(buffer[0])
