"""The end of processes, as the keeper tells of it.

The keeper reaps whatever ends: those that are watched here, and orphans, which it has become the parent of. A process
that ends is told of by a notice in a pipe, so it is dealt with by the loop and never inside a call.
"""

from collections.abc import Callable

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
        loop.watch(common.notices_fd, READ, self._noticed)

    def watch(self, pid: int, ended: Ended) -> None:
        """Call `ended` once, from the loop, when the process has been reaped."""
        self._watched[pid] = ended

    def _noticed(self, _events: int) -> None:
        for notice in read_notices(self._common):
            if notice.pid == 0:
                self._when_usr1()
                continue
            ended = self._watched.pop(notice.pid, None)
            if ended is not None:
                ended(notice)
