"""When Ctrl-C acts: not while modules are loaded. And when SIGTERM and SIGHUP act like it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)
_OURS: Final = frozenset({signal.SIGINT, *_ENDING})


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C's asks for the end; what was begun is undone all the same."""

    def __init__(self, number: int) -> None:
        """`number` is the signal's."""
        super().__init__()
        self.number = number


@contextmanager
def held() -> Iterator[None]:
    """Keep signals waiting.

    An import that one cuts short leaves modules half made, says so with a trace, and has crashed those in C.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def alike() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise Terminated, where they would have ended us at once: not below nohup."""
    taken = [number for number in _ENDING if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _terminate(number: int, _: FrameType | None) -> None:
    # The end of a terminal is told twice, by the kernel and by the shell: the second must not cut short what the
    # first has us undo, which is bounded.
    for one in _ENDING:
        signal.signal(one, signal.SIG_IGN)
    raise Terminated(number)
