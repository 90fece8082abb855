"""A process that goes through steps and executes a program without ever having memory of its own.

A fork copies page tables, then each page that either side writes to, and the exec throws all of it away: for an
interpreter that is milliseconds. vfork(2) does none of that, as the child runs in its parent's memory while that
waits. But it must not return into the code that called it, which rules out Python. So the child runs a dozen
instructions that make one system call after the other, as `Steps` lists them, the last of them execve(2).

The code for x86-64; elsewhere, or where memory may not be made executable, there is no `spawn`:

        push   r12
        push   r13
        mov    r12, rdi                 ; the order, see below
        mov    r13, [rdi + 16]          ; the first step
        mov    rsi, [rdi + 8]
        mov    rdi, [rdi]
        mov    eax, 435                 ; clone3
        syscall
        test   rax, rax
        jnz    parent
    next:
        mov    rax, [r13]
        mov    rdi, [r13 + 8]
        mov    rsi, [r13 + 16]
        mov    rdx, [r13 + 24]
        mov    r10, [r13 + 32]
        mov    r8, [r13 + 40]
        syscall
        test   rax, rax
        js     failed
        add    r13, 48
        jmp    next
    failed:
        mov    [r12 + 24], r13          ; which step
        mov    [r12 + 32], rax          ; and why
        mov    edi, 127
        mov    eax, 60                  ; exit
        syscall
        ud2
    parent:
        pop    r13
        pop    r12
        ret
"""

import os
from functools import cache
from typing import Any, Final

from pyctr_sys.calls import address, check, ffi, libc
from pyctr_sys.namespaces import Clone, clone_arguments
from pyctr_sys.steps import StepFailed, Steps

_CODE: Final = {
    "x86_64": bytes.fromhex(
        "41544155 4989fc 4c8b6f10 488b7708 488b3f b8b3010000 0f05 4885c0 753d"
        "498b4500 498b7d08 498b7510 498b5518 4d8b5520 4d8b4528 0f05 4885c0 7806 4983c530 ebdb"
        "4d896c2418 4989442420 bf7f000000 b83c000000 0f05 0f0b"
        "415d415cc3"
    )
}
_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4
_MAP_PRIVATE, _MAP_ANONYMOUS = 2, 32
_STEP_WORDS: Final = 6


@cache
def code() -> Any:
    """Return the code as a function of an order's address, in a page not written to again; None if that cannot be."""
    instructions = _CODE.get(os.uname().machine)
    if instructions is None:
        return None
    length = os.sysconf("SC_PAGE_SIZE")
    page = libc.mmap(ffi.NULL, length, _PROT_READ | _PROT_WRITE, _MAP_PRIVATE | _MAP_ANONYMOUS, -1, 0)
    if int(ffi.cast("intptr_t", page)) == -1:
        return None
    ffi.memmove(page, instructions, len(instructions))
    if libc.mprotect(page, length, _PROT_READ | _PROT_EXEC) < 0:
        return None
    return ffi.cast("long (*)(uintptr_t)", page)


def spawn(steps: Steps, flags: int, exit_signal: int, cgroup_fd: int = 0) -> tuple[int, int]:
    """Make a process that goes through `steps`, of which the last executes a program; return its pid and a pidfd.

    The calling process, of one thread, stands still meanwhile. `flags`, `exit_signal` and `cgroup_fd` are those of
    clone3. Raises StepFailed; the process has ended then and, unless it is a sibling (PARENT), been reaped.
    """
    pidfd = ffi.new("int *", -1)
    arguments = clone_arguments(flags | Clone.VM | Clone.VFORK, exit_signal, cgroup_fd, pidfd)
    table = steps.table()
    order = ffi.new("uintptr_t[5]", [address(arguments), ffi.sizeof("struct clone_args"), address(table), 0, 0])
    result = code()(address(order))
    if result < 0:
        raise OSError(-result, f"clone3: {os.strerror(-result)}")
    if order[3]:
        index = (order[3] - address(table)) // (_STEP_WORDS * ffi.sizeof("uintptr_t"))
        if not flags & Clone.PARENT:
            os.waitpid(result, 0)
        os.close(pidfd[0])
        reason = -int(ffi.cast("intptr_t", order[4]))
        raise StepFailed(reason, f"{steps.purpose(index)}: {os.strerror(reason)}")
    return check(result, "clone3"), int(pidfd[0])
