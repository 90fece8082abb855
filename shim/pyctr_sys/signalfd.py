"""Signals as something to read: signalfd(2)."""

import os
import sys
from collections.abc import Iterator
from typing import Final

from pyctr_sys.calls import address, check, ffi, syscall

_SET_SIZE: Final = 8  # the kernel's sigset_t, in bytes
_EVERY_SIGNAL: Final = (1 << 64) - 1
_SIG_BLOCK: Final = 0
# Which the C library keeps for itself: its own functions do not touch them.
_INTERNAL: Final = (32, 33)
_SIGACTION: Final = "uint64_t[8]"  # zeros are the default action; the kernel's struct is 32 bytes of them or less
_RECORD_SIZE: Final = 128  # struct signalfd_siginfo; its first word is the signal's number


def take_over_signals() -> int:
    """Block every signal and return a non-blocking, close-on-exec fd that is readable while one is pending.

    SIGKILL and SIGSTOP cannot be blocked, and what this process does wrong itself (SIGSEGV and its like) still ends
    it. Children inherit the mask: whoever executes a program resets it first. Source: sigprocmask(2), signalfd(2).
    """
    mask = ffi.new("uint64_t *", _EVERY_SIGNAL)
    check(syscall("rt_sigprocmask", _SIG_BLOCK, address(mask), 0, _SET_SIZE), "rt_sigprocmask")
    # posix_spawn(3) of glibc starts its children with these ignored, and programs would inherit that.
    action = ffi.new(_SIGACTION)
    for number in _INTERNAL:
        check(syscall("rt_sigaction", number, address(action), 0, _SET_SIZE), "rt_sigaction")
    return check(syscall("signalfd4", -1, address(mask), _SET_SIZE, os.O_NONBLOCK | os.O_CLOEXEC), "signalfd4")


def read_signals(fd: int) -> Iterator[int]:
    """Yield the numbers of the pending signals; several of one kind count as one, but for real-time ones."""
    while True:
        try:
            data = os.read(fd, _RECORD_SIZE)
        except BlockingIOError:
            return
        yield int.from_bytes(data[:4], sys.byteorder)
