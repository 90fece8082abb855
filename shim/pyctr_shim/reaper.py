"""The end of processes: those that are watched, and orphans that the kernel hands to us.

A watched process has a pidfd in the loop. The shim is a child subreaper, so the children of a container without
a pid namespace of its own come to it when their parents end; SIGCHLD arrives through a signalfd, never as a
handler, and says no more than "look". Nothing is reaped inside a call that forks and waits for its own child,
because the loop does not run meanwhile.
"""

import os
import resource
import signal
from collections.abc import Callable
from typing import Final

from pyctr_shim.loop import READ, Loop
from pyctr_sys.signalfd import read_signals

Ended = Callable[[int, resource.struct_rusage], None]
"""Called with a wait status (os.waitstatus_to_exitcode takes it) and the resources used."""

_USR1: Final = int(signal.SIGUSR1)


class Reaper:
    """Waits for the shim's children."""

    def __init__(self, loop: Loop, signal_fd: int, when_usr1: Callable[[], None]) -> None:
        """Serve the signals that arrive at `signal_fd`, which is owned from now on.

        SIGUSR1 calls `when_usr1` (logs are opened anew). All others do nothing: a shim lives as long as its
        container, whoever signals a process group.
        """
        self._loop = loop
        self._when_usr1 = when_usr1
        self._watched: dict[int, tuple[int, Ended]] = {}
        self._signal_fd = signal_fd
        loop.watch(signal_fd, READ, self._signalled)

    def watch(self, pid: int, pidfd: int, ended: Ended) -> None:
        """Call `ended` once, from the loop, when the child has been reaped; `pidfd` is borrowed until then."""
        self._watched[pid] = (pidfd, ended)
        self._loop.watch(pidfd, READ, lambda _events: self._reap(pid))

    def _signalled(self, _events: int) -> None:
        for number in read_signals(self._signal_fd):
            if number == _USR1:
                self._when_usr1()
        self._sweep()

    def _sweep(self) -> None:
        """Reap every child that has ended, watched or not."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            self._reap(found.si_pid)

    def _reap(self, pid: int) -> None:
        reaped, status, usage = os.wait4(pid, os.WNOHANG)
        if reaped != pid:
            return
        watched = self._watched.pop(pid, None)
        if watched is not None:
            pidfd, ended = watched
            self._loop.unwatch(pidfd)
            ended(status, usage)
