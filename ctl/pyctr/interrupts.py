"""When Ctrl-C acts: not while modules are loaded."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_OURS: Final = frozenset({signal.SIGINT})


@contextmanager
def held() -> Iterator[None]:
    """Keep SIGINT waiting.

    An import that it cuts short leaves modules half made, says so with a trace, and has crashed those in C.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
