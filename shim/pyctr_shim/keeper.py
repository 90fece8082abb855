"""The process that stays: a shim has one as long as it lives, and a worker while there is anything to do.

After a fork, a page of memory is shared until it is written to, and Python writes to whatever it looks at: making
a container leaves a process with 2.5 MB of its own for good. So all work is done by a child, the worker. When
nothing has happened for a while it writes its objects down and ends, and its pages with it; on the next event the
keeper, which has run little more than this file, forks the next worker, which reads them and goes on.

    worker ── idle ──► its objects in a memfd ──► ends ──► keeper polls ── event ──► worker …

Both have one table of descriptors (CLONE_FILES): what the worker opens is not lost with it, and numbers mean the
same to its successor. They have one epoll as well, so what would wake the worker wakes the keeper. The
container's processes are the keeper's children (CLONE_PARENT): it reaps them, and tells the worker through a
pipe. Neither survives the other, but for a worker that ends asleep.
"""

import os
import select
import signal
import struct
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, NoReturn

from pyctr_sys.namespaces import Clone, clone3
from pyctr_sys.process import set_name, set_parent_death_signal
from pyctr_sys.signalfd import read_signals

ASLEEP: Final = 75
"""Exit status of a worker that has written itself down."""
WORKER: Final = "pyctr-shim:work"
"""The name of a worker, for `ps`."""

_NOTICE: Final = struct.Struct("=iiddq")
_FULL_PAUSE: Final = 20.0  # milliseconds
_FORK_PAUSE: Final = 0.05  # seconds
_USR1: Final = int(signal.SIGUSR1)


class Common(NamedTuple):
    """What keeper and worker share: the keeper's pid, the epoll, both ends of the pipe of notices, the memfd."""

    keeper_pid: int
    epoll_fd: int
    notices_fd: int
    notify_fd: int
    memory_fd: int


class Notice(NamedTuple):
    """A child's end: its wait status (os.waitstatus_to_exitcode takes it) and what it used. Pid 0 is a SIGUSR1."""

    pid: int
    status: int = 0
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    max_rss_kib: int = 0


Work = Callable[[Common], NoReturn]


def share() -> Common:
    """Make this process a keeper: open what it will share with its workers."""
    epoll = select.epoll()
    epoll_fd = os.dup(epoll.fileno())  # a number that no object closes
    notices_fd, notify_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    memory_fd = os.memfd_create("pyctr-shim")
    return Common(os.getpid(), epoll_fd, notices_fd, notify_fd, memory_fd)


class Keeper:
    """Forks workers, one after the other, and attends to them."""

    def __init__(self, common: Common, signal_fd: int) -> None:
        """`signal_fd` tells of SIGCHLD and SIGUSR1, and takes the other signals that a shim shall not notice."""
        self._common = common
        self._signal_fd = signal_fd
        self._room = select.poll()
        self._room.register(common.notify_fd, select.POLLOUT)

    def run(self, begin: Work, go_on: Work) -> NoReturn:
        """Have `begin` done, and `go_on` whenever something happens while nobody works; end with the last worker."""
        work = begin
        while True:
            self._attend(_fork(self._common, work))
            self._sleep()
            work = go_on

    def _attend(self, worker: int) -> None:
        """Return when the worker has fallen asleep, and end when it has ended."""
        poll = select.poll()
        poll.register(self._signal_fd, select.POLLIN)
        while True:
            poll.poll(self._timeout())
            status = self.forward(worker)
            if status is not None:
                code = os.waitstatus_to_exitcode(status)
                if code != ASLEEP:
                    os._exit(code if code >= 0 else 128 - code)
                return

    def _sleep(self) -> None:
        """Return on the first event; what is forwarded is one, as the pipe belongs to the epoll."""
        poll = select.poll()
        poll.register(self._signal_fd, select.POLLIN)
        poll.register(self._common.epoll_fd, select.POLLIN)
        while not any(fd == self._common.epoll_fd for fd, _events in poll.poll(self._timeout())):
            self.forward()

    def forward(self, worker: int = 0) -> int | None:
        """Reap every child that has ended and tell of it; of the worker's own end, by returning its wait status."""
        if _USR1 in read_signals(self._signal_fd) and self._has_room():
            os.write(self._common.notify_fd, _NOTICE.pack(*Notice(0)))
        worker_status = None
        while self._has_room():
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == worker:
                worker_status = status
                continue
            notice = Notice(pid, status, usage.ru_utime, usage.ru_stime, usage.ru_maxrss)
            os.write(self._common.notify_fd, _NOTICE.pack(*notice))
        return worker_status

    def _has_room(self) -> bool:
        """Whether the pipe takes another notice: a container can have thousands of orphans that end at once."""
        return bool(self._room.poll(0))

    def _timeout(self) -> float | None:
        """Milliseconds to wait for signals: not for ever while children may be left that were not told of."""
        return None if self._has_room() else _FULL_PAUSE


def read_notices(common: Common) -> Iterator[Notice]:
    """Yield what the keeper has told."""
    while True:
        try:
            data = os.read(common.notices_fd, _NOTICE.size)
        except BlockingIOError:
            return
        yield Notice(*_NOTICE.unpack(data))


def _fork(common: Common, work: Work) -> int:
    """Fork a worker that dies with its keeper; as often as it takes."""
    while True:
        try:
            pid, pidfd = clone3(Clone.FILES, signal.SIGCHLD)
            break
        except OSError:  # no memory, or no pid: what waits for the worker goes on waiting
            time.sleep(_FORK_PAUSE)
    if pid == 0:
        try:
            set_parent_death_signal(signal.SIGKILL)
            set_name(WORKER)
            if os.getppid() == common.keeper_pid:
                work(common)
        finally:
            os._exit(1)
    os.close(pidfd)
    return pid
