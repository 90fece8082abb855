"""Processes by file descriptor, in one that has many."""

import fcntl
import os
import resource
import subprocess

from pyctr_sys import pidfd


def test_the_end_of_a_process_is_seen_by_any_descriptor() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    low_fd = pidfd.pidfd_open(process.pid)
    high_fd = fcntl.fcntl(low_fd, fcntl.F_DUPFD_CLOEXEC, 1024)
    try:
        assert not pidfd.readable(high_fd, 0)
        assert not pidfd.readable(high_fd, -1)
        process.communicate()
        assert pidfd.readable(high_fd, 10)
    finally:
        os.close(low_fd)
        os.close(high_fd)
