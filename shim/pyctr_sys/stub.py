"""A process of two dozen instructions that makes the system calls it is told to.

Whoever becomes a container's first process must be in its PID namespace, in its cgroup and of its user, but need not
be an interpreter: a fork of one copies a thousand pages, runs code that it has to warm up for, and is taken
down at the exec. The stub has 12 KiB. It reads a table of (number, five arguments), with everything that the
arguments point to behind it, from descriptor 3 into its memory; goes through it until one fails or a word of ones
ends it; answers with the address of that step and the call's result (0 at the end); and ends after a failure, or when
nobody is there any more. The last table's last call executes a program.

For x86-64; elsewhere there is none. A test compares the bytes with this listing.

obey:

        mov    ebx, 0x600000
    again:
        mov    edi, 3
        mov    esi, ebx
        mov    edx, 0x20000
        xor    eax, eax                 ; read
        syscall
        test   rax, rax
        jle    gone
        mov    ebp, ebx
    next:
        mov    rax, [rbp]
        cmp    rax, -1
        je     done
        mov    rdi, [rbp + 8]
        mov    rsi, [rbp + 16]
        mov    rdx, [rbp + 24]
        mov    r10, [rbp + 32]
        mov    r8, [rbp + 40]
        syscall
        test   rax, rax
        js     answer
        add    rbp, 48
        jmp    next
    done:
        xor    eax, eax
    answer:
        mov    [rbx], rbp
        mov    [rbx + 8], rax
        mov    r12, rax
        mov    edi, 3
        mov    esi, ebx
        mov    edx, 16
        mov    eax, 1                   ; write
        syscall
        test   r12, r12
        jns    again
    gone:
        mov    edi, 1
        mov    eax, 60                  ; exit
        syscall
        ud2
"""

import errno
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Final, NamedTuple

from pyctr_sys import elf
from pyctr_sys.pidfd import pidfd_send_signal, wait
from pyctr_sys.process import LAST_FD, PR_SET_PDEATHSIG
from pyctr_sys.routine import routine
from pyctr_sys.spawn import spawn
from pyctr_sys.steps import STEP_BYTES, StepFailed, Steps

_OBEY: Final = {
    "x86_64": bytes.fromhex(
        "bb00006000 bf03000000 89de ba00000200 31c0 0f05 4885c0 7e51 89dd"
        "488b4500 4883f8ff 7421 488b7d08 488b7510 488b5518 4c8b5520 4c8b4528 0f05 4885c0 7808 4883c530 ebd5 31c0"
        "48892b 48894308 4989c4 bf03000000 89de ba10000000 b801000000 0f05 4d85e4 799a bf01000000 b83c000000 0f05 0f0b"
    )
}
_MEMORY_SIZE: Final = 0x20000
LARGEST: Final = 0x10000
"""The size of a table, with what belongs to it, that is sent in one packet whatever the socket's limits are."""
_CONTROL_FD: Final = 3
_PROGRAM_FD: Final = 4
FIRST_EXTRA_FD: Final = 4
_INT: Final = 4  # bytes
_ANSWER: Final = struct.Struct("=Qq")
_MFD_EXEC: Final = 0x10  # source: memfd_create(2), since Linux 6.3
_AT_EMPTY_PATH: Final = 0x1000
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class StubEnded(OSError):
    """The stub has ended without an answer: killed, or its program has been executed."""


class Prepared(NamedTuple):
    """Steps as a stub takes them, and what each is for."""

    image: bytes
    purposes: tuple[str, ...]


class Stub:
    """A stub, seen from the process that tells it what to do. Owns its descriptors; pickled, they are numbers."""

    def __init__(self, pid: int, pidfd: int, control_fd: int) -> None:
        """Take over both descriptors."""
        self.pid = pid
        self.pidfd = pidfd
        self._control_fd = control_fd
        self._told: list[tuple[str, ...]] = []  # what has not been answered

    def tell(self, steps: Steps) -> None:
        """Have it go through `steps` after what it is doing; `await_done` says how that went.

        Raises StubEnded, and OSError: EMSGSIZE for too much.
        """
        self.tell_prepared(prepare(steps))

    def tell_prepared(self, prepared: Prepared) -> None:
        """Do the same with what `prepare` has returned."""
        try:
            os.write(self._control_fd, prepared.image)
        except (BrokenPipeError, ConnectionResetError):
            raise StubEnded(0, "the stub has ended") from None
        self._told.append(prepared.purposes)

    def await_done(self) -> None:
        """Return when it is through the oldest of what was told. Raises StepFailed, StubEnded if it never will be."""
        try:
            answer = os.read(self._control_fd, _ANSWER.size)
        except ConnectionResetError:
            answer = b""
        if not answer:
            raise StubEnded(0, "the stub has ended")
        where, result = _ANSWER.unpack(answer)
        purposes = self._told.pop(0)
        if result < 0:
            purpose = purposes[(where - elf.MEMORY) // STEP_BYTES]
            raise StepFailed(-result, f"{purpose}: {os.strerror(-result)}")

    def give(self, fds: Sequence[int]) -> None:
        """Send descriptors (borrowed), for which a step of `add_receipt` that it was told waits. Raises StubEnded."""
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=self._control_fd)
        try:
            socket.send_fds(control, [b"\0"], fds)
        except (BrokenPipeError, ConnectionResetError):
            raise StubEnded(0, "the stub has ended") from None
        finally:
            control.detach()

    def wake(self) -> None:
        """Have it go on where a step of what it was told waits for a packet. Raises StubEnded."""
        try:
            os.write(self._control_fd, b"\1")
        except (BrokenPipeError, ConnectionResetError):
            raise StubEnded(0, "the stub has ended") from None

    def run(self, steps: Steps) -> None:
        """Have it go through `steps`, and return when it is through. Raises as `tell` and `await_done`."""
        self.tell(steps)
        self.await_done()

    def close(self) -> None:
        """Let go of it: if it still waits, it ends. The pidfd stays."""
        if self._control_fd >= 0:
            os.close(self._control_fd)
            self._control_fd = -1

    def end(self) -> None:
        """Kill it, wait for its end, reap it if it is this process's child, and close everything."""
        self.close()
        with suppress(ProcessLookupError):
            pidfd_send_signal(self.pidfd, signal.SIGKILL)
        wait(self.pidfd)
        os.close(self.pidfd)


def prepare(steps: Steps) -> Prepared:
    """Return steps in the form that `Stub.tell_prepared` takes."""
    return Prepared(steps.image(elf.MEMORY), steps.purposes())


def start(flags: int, exit_signal: int, cgroup_fd: int = 0) -> Stub:
    """Start a stub, which has no other descriptor than the one by which it is told; `add_receipt` has it take some.

    `flags`, `exit_signal` and `cgroup_fd` are those of clone3. It is killed when its parent ends. Raises OSError,
    StepFailed; ENOSYS where there is no stub.
    """
    program_fd = program()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    opened: list[int] = []
    try:
        steps = Steps()
        steps.call("prctl", "prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
        for number, fd, flag in ((_CONTROL_FD, theirs.fileno(), 0), (_PROGRAM_FD, program_fd, os.O_CLOEXEC)):
            if fd <= _PROGRAM_FD:  # or it could be overwritten before its turn
                fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _PROGRAM_FD + 1)
                opened.append(fd)
            steps.call("dup3", "dup3", fd, number, flag)
        steps.call("close_range", "close_range", 0, _CONTROL_FD - 1)
        steps.call("close_range", "close_range", _PROGRAM_FD + 1, LAST_FD)
        name, nothing = steps.buffer("char[]", b""), steps.strings(())
        argv = steps.strings(("pyctr-init",))
        steps.call("execveat", "execveat", _PROGRAM_FD, name, argv, nothing, _AT_EMPTY_PATH)
        pid, pidfd = spawn(steps, flags, exit_signal, cgroup_fd)
        return Stub(pid, pidfd, ours.detach())
    finally:
        ours.close()
        theirs.close()
        for fd in opened:
            os.close(fd)


def add_receipt(steps: Steps, count: int) -> None:
    """Have a stub take so many descriptors that `Stub.give` sends: the first become its 0, 1 and 2.

    Those that follow are FIRST_EXTRA_FD and so on, if it has taken none before.
    """
    space = socket.CMSG_SPACE(count * _INT)
    data, control = steps.buffer("char[]", 1), steps.buffer("char[]", space)
    vector = steps.buffer("uintptr_t[]", [data, 1], {0: data})
    # Name, its length, vector, its length, control data, its length, flags. Source: recvmsg(2), with words of 8 bytes.
    message = steps.buffer("uintptr_t[]", [0, 0, vector, 1, control, space, 0], {16: vector, 32: control})
    steps.call("taking descriptors", "recvmsg", _CONTROL_FD, message, 0)


@cache
def program() -> int:
    """Return a descriptor of the stub's program, which can never be changed; made once, open for good.

    Raises OSError: ENOSYS where there is none, EACCES where nothing in memory may be executed.
    """
    machine = os.uname().machine
    if machine not in _OBEY or routine() is None:
        raise OSError(errno.ENOSYS, f"no stub on {machine}")
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("pyctr-init", flags | _MFD_EXEC)
    except OSError:
        fd = os.memfd_create("pyctr-init", flags)
    try:
        os.write(fd, elf.program(_OBEY[machine], memory_size=_MEMORY_SIZE))
        os.fchmod(fd, 0o500)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)  # who may write cannot execute it
    finally:
        os.close(fd)
