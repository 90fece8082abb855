"""The C library, and the one place where a failed call becomes an OSError."""

import os
from enum import IntEnum
from typing import Any, Final

from pyctr_sys._abi import ffi as _ffi

ffi: Final[Any] = _ffi
libc: Final[Any] = ffi.dlopen(None)

# Numbers from 424 on are the same on every architecture; the older ones come in two families.
_X86_64: Final = {
    "read": 0, "write": 1, "rt_sigaction": 13, "rt_sigprocmask": 14, "ioctl": 16, "recvmsg": 47, "execve": 59,
    "fcntl": 72, "chdir": 80, "fchdir": 81, "umask": 95, "setsid": 112, "setgroups": 116, "setresuid": 117,
    "setresgid": 119, "capset": 126, "personality": 135, "pivot_root": 155, "prctl": 157, "chroot": 161,
    "set_mempolicy": 238, "keyctl": 250, "ioprio_set": 251, "openat": 257, "unshare": 272, "signalfd4": 289,
    "dup3": 292, "prlimit64": 302, "setns": 308, "sched_setattr": 314, "seccomp": 317, "bpf": 321, "execveat": 322,
}  # fmt: skip
_GENERIC: Final = {
    "dup3": 24, "fcntl": 25, "ioctl": 29, "ioprio_set": 30, "pivot_root": 41, "chdir": 49, "fchdir": 50, "chroot": 51,
    "openat": 56, "read": 63, "write": 64, "signalfd4": 74, "capset": 91, "personality": 92, "unshare": 97,
    "rt_sigaction": 134, "rt_sigprocmask": 135, "setresuid": 147, "setresgid": 149, "setsid": 157, "setgroups": 159,
    "umask": 166, "prctl": 167, "keyctl": 219, "execve": 221, "set_mempolicy": 237, "recvmsg": 212, "prlimit64": 261,
    "setns": 268, "sched_setattr": 274, "seccomp": 277, "bpf": 280, "execveat": 281,
}  # fmt: skip
NUMBERS: Final[dict[str, int]] = {
    **(_X86_64 if os.uname().machine == "x86_64" else _GENERIC),
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "clone3": 435,
    "close_range": 436, "openat2": 437, "pidfd_getfd": 438, "faccessat2": 439,
    "mount_setattr": 442,
}  # fmt: skip

_ADDRESS: Final = ffi.typeof("uintptr_t")


def check(result: int, call: str, *paths: str) -> int:
    """Return `result`, or raise the OSError that errno names if the call failed."""
    if result < 0:
        number = ffi.errno  # read before anything else can overwrite it
        raise OSError(number, f"{call}: {os.strerror(number)}", *paths)
    return result


def named(kind: type[IntEnum], flags: int) -> str:
    """Return what to call several flags in an error."""
    return "|".join(flag.name for flag in kind if flag & flags) or str(flags)


def address(buffer: Any) -> int:
    """Return where a cffi buffer lies, for `syscall`; the caller keeps the buffer alive."""
    return int(ffi.cast(_ADDRESS, buffer))


def syscall(name: str, a: int = 0, b: int = 0, c: int = 0, d: int = 0, e: int = 0, f: int = 0) -> int:
    """Make a system call that the C library has no wrapper for; -1 and errno on failure, as in C."""
    result: int = libc.syscall(NUMBERS[name], a, b, c, d, e, f)
    return result
