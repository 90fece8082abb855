"""Processes by file descriptor: a number may be reused, a pidfd never stands for a stranger."""

import errno
import os
import select
import signal
from typing import Final

from pyctr_sys.calls import check, syscall

_PROCESS_GROUP: Final = 4  # PIDFD_SIGNAL_PROCESS_GROUP


def pidfd_open(pid: int) -> int:
    """Return a pidfd, close-on-exec. Raises ProcessLookupError if the process has been reaped."""
    return os.pidfd_open(pid)


def pidfd_send_signal(pidfd: int, number: int) -> None:
    """Signal the process. Raises ProcessLookupError if it has been reaped; a zombie takes it silently."""
    signal.pidfd_send_signal(pidfd, number)


def pidfd_send_signal_to_group(pidfd: int, pid: int, number: int) -> None:
    """Signal the group that the process `pid` leads, of which `pidfd` is one; also a zombie is still in it.

    Raises ProcessLookupError if nobody is in it. Source: pidfd_send_signal(2), Linux 6.9; by its number before.
    """
    try:
        signal.pidfd_send_signal(pidfd, number, None, _PROCESS_GROUP)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        os.killpg(pid, number)


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """Return a duplicate, close-on-exec, of another process's fd. Raises OSError: EBADF, EPERM, ESRCH.

    Source: pidfd_getfd(2).
    """
    return check(syscall("pidfd_getfd", pidfd, fd, 0), "pidfd_getfd")


def readable(fd: int, seconds: float) -> bool:
    """Whether a descriptor is readable within so many seconds: a pidfd is when its process has ended.

    By poll(2): select(2) takes no descriptor from 1024 on.
    """
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def wait(pidfd: int) -> os.waitid_result | None:
    """Wait for a process's end and reap it. None if somebody else does that: the process is not our child."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll()
    try:
        return os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        return None


def start_ticks(pid: int) -> int:
    """Return when a process started, in clock ticks since boot: with its pid, a name that is not reused.

    Raises FileNotFoundError or ProcessLookupError if there is no such process.
    """
    fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(fd, 4096).rpartition(b")")[2].split()[19])
    finally:
        os.close(fd)
