"""A routine that cannot be Python, as the process that runs it shares its memory with one that does.

For x86-64; elsewhere, or where memory may not be made executable, there is none. A test compares the bytes with
this listing. It uses neither the stack in the new process, nor memory that may be freed.

spawn:  make a process; it makes system calls from a table of (number, five arguments) until one fails or executes
        a program. The order: clone_args, their size, the table, room for which call failed and for its result.

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

from pyctr_sys.calls import ffi, libc

_SPAWN: Final = {
    "x86_64": bytes.fromhex(
        "41544155 4989fc 4c8b6f10 488b7708 488b3f b8b3010000 0f05 4885c0 753d"
        "498b4500 498b7d08 498b7510 498b5518 4d8b5520 4d8b4528 0f05 4885c0 7806 4983c530 ebdb"
        "4d896c2418 4989442420 bf7f000000 b83c000000 0f05 0f0b 415d415cc3"
    )
}
_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4
_MAP_PRIVATE, _MAP_ANONYMOUS = 2, 32
_KIND: Final = "long (*)(uintptr_t)"


@cache
def routine() -> Any:
    """Return it as a C function of an order's address, in a page that is not written to again; None where it cannot be.

    It returns what clone3 does.
    """
    machine = os.uname().machine
    if machine not in _SPAWN:
        return None
    length = os.sysconf("SC_PAGE_SIZE")
    page = libc.mmap(ffi.NULL, length, _PROT_READ | _PROT_WRITE, _MAP_PRIVATE | _MAP_ANONYMOUS, -1, 0)
    if int(ffi.cast("intptr_t", page)) == -1:
        return None
    code = _SPAWN[machine]
    ffi.memmove(page, code, len(code))
    if libc.mprotect(page, length, _PROT_READ | _PROT_EXEC) < 0:
        return None
    return ffi.cast(_KIND, page)
