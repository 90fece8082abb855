"""The end of processes, as the keeper tells of it.

The keeper reaps whatever ends: those that are watched here, and orphans, which it has become the parent of. A process
that ends is told of by a notice in a pipe, so it is dealt with by the loop and never inside a call.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyctr_shim.keeper import Common, Notice, read_notices
from pyctr_shim.loop import READ, Loop

Ended = Callable[[Notice], None]


class Reaper:
    """Passes each end on to whoever watches that process."""

    def __init__(self, loop: Loop, common: Common, when_usr1: Callable[[], None]) -> None:
        """Read the keeper's notices. SIGUSR1 calls `when_usr1` (logs are opened anew)."""
        self._common = common
        self._when_usr1 = when_usr1
        self._watched: dict[int, Ended] = {}
        self._loop = loop
        self._holds = 0
        self._held: dict[int, Notice] = {}
        loop.watch(common.notices_fd, READ, self._noticed)

    def watch(self, pid: int, ended: Ended) -> None:
        """Call `ended` once, from the loop, when the process has been reaped."""
        notice = self._held.pop(pid, None)
        if notice is not None:
            self._loop.call_soon(lambda: ended(notice))
        else:
            self._watched[pid] = ended

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keep the ends of processes that nobody watches yet, of which one may be asked for before the next event.

        Another program that makes a process tells its pid when that may have ended already.
        """
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            if not self._holds:
                self._loop.call_soon(self._forget)

    def has_seen(self, pid: int) -> bool:
        """Whether a process has been reaped and its end is held; also if the keeper has told of it this very moment."""
        self._noticed(0)
        return pid in self._held

    def _forget(self) -> None:
        if not self._holds:
            self._held.clear()

    def _noticed(self, _events: int) -> None:
        for notice in read_notices(self._common):
            if notice.pid == 0:
                self._when_usr1()
                continue
            ended = self._watched.pop(notice.pid, None)
            if ended is not None:
                ended(notice)
            elif self._holds:
                self._held[notice.pid] = notice
