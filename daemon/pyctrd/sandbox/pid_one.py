"""The first process of a PID namespace that a pod's containers share: it reaps orphans, and lasts.

A program of a few system calls, with 12 KiB of memory, put together here. Containers see it, and one with
CAP_SYS_PTRACE may take it over; so it is nobody, without capabilities, and the only file in its world is its own.
It waits until it is noted who it is: if this daemon ends before, nobody would ever end it.
Source: elf(5), rt_sigaction(2), pause(2), user_namespaces(7).
"""

import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pyctr_sys import elf
from pyctr_sys.mount import (
    MNT_DETACH,
    Attr,
    MountFlag,
    mount,
    mount_setattr,
    move_mount,
    new_file_system,
    pivot_root,
    umount2,
)
from pyctr_sys.namespaces import Clone, unshare
from pyctr_sys.openat2 import O_PATH
from pyctr_wire.errors import FailedPrecondition

_DATA_AT: Final = elf.CODE + elf.headers_size()
_NAME: Final = b"pyctr-pause".ljust(16, b"\0")
# SIG_IGN, SA_NOCLDWAIT: children need nobody to wait for them.
_ACTION: Final = struct.pack("<QQQQ", 1, 2, 0, 0)
_DATA: Final = _NAME + _ACTION
_NOBODY: Final = 65534
# (number, arguments) on x86-64. Source: asm/unistd_64.h.
_CALLS: Final = (
    (436, 3, 0xFFFFFFFF, 0),  # close_range(3, UINT_MAX, 0)
    (157, 15, _DATA_AT),  # prctl(PR_SET_NAME, name)
    (116, 0, 0),  # setgroups(0, NULL)
    (119, _NOBODY, _NOBODY, _NOBODY),  # setresgid
    (117, _NOBODY, _NOBODY, _NOBODY),  # setresuid, and with it goes every capability
    (13, 17, _DATA_AT + len(_NAME), 0, 8),  # rt_sigaction(SIGCHLD, action, NULL, 8)
)
_PAUSE: Final = bytes.fromhex("b8220000000f05ebf7")  # 1: mov eax, 34; syscall; jmp 1b
_GATE_FD: Final = 3
# if (read(3, below the stack, 1) != 1) exit(0): mov edi, 3; lea rsi, [rsp - 16]; mov edx, 1; xor eax, eax; syscall;
# dec eax; jz 1f; xor edi, edi; mov eax, 60; syscall; 1:
_WAIT: Final = bytes.fromhex("bf03000000 488d7424f0 ba01000000 31c0 0f05 ffc8 7409 31ff b83c000000 0f05")


@contextmanager
def gate() -> Iterator[tuple[int, int]]:
    """The ends of a pipe: the one for `start`, and the one to write a byte to once it is noted who was started."""
    waited_fd, opened_fd = os.pipe()
    try:
        yield waited_fd, opened_fd
    finally:
        os.close(waited_fd)
        os.close(opened_fd)


def start(gate_fd: int) -> int:
    """Start it in a new PID and a new mount namespace, and return its pid; it ends unless it reads a byte (`gate`).

    For a thread, or a process of one, that ends afterwards and has started nothing else. Raises OSError,
    FailedPrecondition on a machine whose language this does not know.
    """
    image = program(waits=True)
    null_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        unshare(Clone.NEWPID | Clone.NEWNS)
        mount(None, "/", None, MountFlag.REC | MountFlag.PRIVATE)
        _enter_world(image)
        files = [*((os.POSIX_SPAWN_DUP2, null_fd, fd) for fd in range(3)), (os.POSIX_SPAWN_DUP2, gate_fd, _GATE_FD)]
        return os.posix_spawn("/pause", ["pause"], {}, file_actions=files, setsid=True)
    finally:
        os.close(null_fd)


def program(*, waits: bool = False) -> bytes:
    """Return the program, which waits for a byte on descriptor 3 or does not.

    Raises FailedPrecondition on a machine whose language this does not know.
    """
    if platform.machine() != "x86_64":
        raise FailedPrecondition(f"a process for a whole pod cannot be had on {platform.machine()} yet")
    code = (_WAIT if waits else b"") + b"".join(_call(*call) for call in _CALLS) + _PAUSE
    return elf.program(_DATA + code, entry=len(_DATA))


def _enter_world(image: bytes) -> None:
    """Make a file system with the program in it the root of this thread's mount namespace."""
    tree_fd = new_file_system("tmpfs", {"mode": "0555", "size": "64k"}, Attr.NOSUID | Attr.NODEV)
    slash_fd = os.open("/", O_PATH | os.O_CLOEXEC)
    try:
        move_mount(tree_fd, slash_fd)  # over the one directory that can be reached from every user namespace
        os.fchdir(tree_fd)  # this thread's alone, since the mount namespace is
        program_fd = os.open("pause", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o555)
        os.write(program_fd, image)
        os.fchmod(program_fd, 0o555)  # whatever the umask is
        os.close(program_fd)
        mount_setattr(tree_fd, attr_set=Attr.RDONLY)
        pivot_root(".", ".")
        umount2(".", MNT_DETACH)
    finally:
        os.close(slash_fd)
        os.close(tree_fd)


def _call(number: int, *arguments: int) -> bytes:
    """Return: mov eax, number; mov edi, esi, edx, r10d; syscall."""
    edi, esi, edx, r10d = (*arguments, 0, 0, 0, 0)[:4]
    return struct.pack("<BIBIBIBI2sI2s", 0xB8, number, 0xBF, edi, 0xBE, esi, 0xBA, edx, b"\x41\xba", r10d, b"\x0f\x05")
