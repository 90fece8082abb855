"""The end of processes, as the keeper tells of it.

The keeper reaps whatever ends: those that are watched here, and orphans, which it has become the parent of. A process
that ends is told of by a notice in a pipe, so it is dealt with by the loop and never inside a call.

A spawned exec is this worker's own child: mostly it is short, and the way by the keeper would take a tenth of its time.
Of a worker that ends before it, the keeper inherits it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from pyctr_shim.keeper import Common, Notice, read_notices
from pyctr_shim.loop import READ, Loop

Ended = Callable[[Notice], None]
_TRACED_PAUSE: Final = 0.05


class Reaper:
    """Passes each end on to whoever watches that process."""

    def __init__(self, loop: Loop, common: Common, when_usr1: Callable[[], None]) -> None:
        """Read the keeper's notices. SIGUSR1 calls `when_usr1` (logs are opened anew)."""
        self._common = common
        self._when_usr1 = when_usr1
        self._watched: dict[int, Ended] = {}
        self._pidfds: dict[int, int] = {}
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

    def watch_child(self, pid: int, pidfd: int | None, ended: Ended) -> None:
        """As `watch`, for one that may be this process's own child: also by its pidfd, which is borrowed until then."""
        self.watch(pid, ended)
        if pidfd is not None and pid in self._watched:
            self._pidfds[pid] = pidfd
            self._loop.watch(pidfd, READ, partial(self._reap, pid, pidfd))

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

    def _reap(self, pid: int, pidfd: int, _events: int = 0) -> None:
        self._loop.unwatch(pidfd)
        try:
            reaped, status, usage = os.wait4(pid, os.WNOHANG)
        except ChildProcessError:
            return  # the keeper's
        if reaped:
            self._tell(Notice(pid, status, usage.ru_utime, usage.ru_stime, usage.ru_maxrss))
        else:  # somebody traces it, and has not seen its end
            self._loop.call_later(_TRACED_PAUSE, partial(self._reap, pid, pidfd))

    def _forget(self) -> None:
        if not self._holds:
            self._held.clear()

    def _noticed(self, _events: int) -> None:
        for notice in read_notices(self._common):
            if notice.pid == 0:
                self._when_usr1()
                continue
            self._tell(notice)

    def _tell(self, notice: Notice) -> None:
        pidfd = self._pidfds.pop(notice.pid, None)
        if pidfd is not None:
            self._loop.unwatch(pidfd)
        ended = self._watched.pop(notice.pid, None)
        if ended is not None:
            ended(notice)
        elif self._holds:
            self._held[notice.pid] = notice
