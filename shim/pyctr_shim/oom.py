"""Out-of-memory kills in a container's cgroup, told as they happen."""

import os
import stat
from collections.abc import Callable
from typing import Final, Protocol

from pyctr_shim.loop import PRIORITY, READ, Loop

_SECOND_LOOK: Final = 0.1


class MemoryEvents(Protocol):
    """What a container's cgroup tells about memory; the runtime's cgroup managers are such."""

    def oom_kills(self) -> int:
        """How many processes the kernel has killed for want of memory."""
        ...

    def oom_watch(self) -> tuple[int, int] | None:
        """Two descriptors, the caller's: one that is ready when that number may have grown, one to keep with it."""
        ...


class OomWatch:
    """Calls back for every new kill until it is closed."""

    def __init__(self, loop: Loop, events: MemoryEvents, when_killed: Callable[[], None]) -> None:
        """Watch, where the kernel accounts memory."""
        self._loop = loop
        self._events = events
        self._when_killed = when_killed
        self._seen = 0
        self._fds = events.oom_watch()
        if self._fds is not None:
            # A file of version 2 is readable at any time, an eventfd of version 1 when there is something.
            is_file = stat.S_ISREG(os.fstat(self._fds[0]).st_mode)
            loop.watch(self._fds[0], PRIORITY if is_file else READ, self._ready)

    def check(self) -> int:
        """Call back for kills that have not been told yet, and return how many are known in all."""
        kills = self._events.oom_kills()
        while self._seen < kills:
            self._seen += 1
            self._when_killed()
        return self._seen

    def has_missed(self, pid: int) -> bool:
        """Whether this process, which SIGKILL ended, was a kill that the cgroup is gone too soon to tell of."""
        if self._seen or not self._is_gone():
            return False
        from pyctr_shim import oom_log  # seldom needed

        if not oom_log.tells_of(pid):
            return False
        self._seen += 1
        self._when_killed()
        return True

    def _is_gone(self) -> bool:
        """Whether the cgroup has been removed."""
        if self._fds is None:
            return False
        try:
            os.pread(self._fds[1], 1, 0)
        except OSError:
            return True
        return False

    def close(self) -> None:
        """Stop watching; harmless if stopped."""
        if self._fds is None:
            return
        self._loop.unwatch(self._fds[0])
        for fd in self._fds:
            os.close(fd)
        self._fds = None

    def _ready(self, _events: int) -> None:
        """Take the event, and look again soon: v1 tells of the shortage, the kill is counted a moment later."""
        assert self._fds is not None
        ready_fd = self._fds[0]
        try:
            os.read(ready_fd, 4096)  # the count of an eventfd (v1), or the file that poll(2) then holds read (v2)
        except OSError:
            # The cgroup is gone, which makes the file ready for ever.
            self._loop.unwatch(ready_fd)
            return
        os.lseek(ready_fd, 0, os.SEEK_SET)
        self.check()
        self._loop.call_later(_SECOND_LOOK, self._look_again)

    def _look_again(self) -> None:
        if self._fds is not None:
            self.check()
