"""Signals as something to read: signalfd(2)."""

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import Final

from pyctr_sys.calls import address, check, ffi, syscall

_SET_SIZE: Final = 8  # the kernel's sigset_t, in bytes
_RECORD_SIZE: Final = 128  # struct signalfd_siginfo; its first word is the signal's number


def signalfd(signals: Iterable[signal.Signals]) -> int:
    """Block `signals` and return a non-blocking, close-on-exec fd that is readable while one is pending.

    Children inherit the mask: whoever executes a program resets it first. Source: signalfd(2).
    """
    blocked = set(signals)
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    mask = ffi.new("uint64_t *", sum(1 << (number - 1) for number in blocked))
    return check(syscall("signalfd4", -1, address(mask), _SET_SIZE, os.O_NONBLOCK | os.O_CLOEXEC), "signalfd4")


def read_signals(fd: int) -> Iterator[int]:
    """Yield the numbers of the pending signals; several of one kind count as one."""
    while True:
        try:
            data = os.read(fd, _RECORD_SIZE)
        except BlockingIOError:
            return
        yield int.from_bytes(data[:4], sys.byteorder)
