"""Reading and writing the small files of a cgroup directory, and what is below it."""

import os
import time
from typing import Final

from pyctr_sys.cgroup_files import fields, number, read

__all__ = [
    "child_directories", "fields", "nearest", "number", "read", "remove_tree", "subtree_pids", "write",
]  # fmt: skip

_DYING_SECONDS: Final = 2.0


def write(path: str, value: str) -> None:
    """Write `value` in one call. Raises OSError, as the kernel judges the value."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def nearest(directory: str) -> str:
    """Return the directory, or the lowest of those above it that are there; "" for "", which stands for none."""
    while directory and not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    return directory


def subtree_pids(directory: str) -> list[int]:
    """Return the processes in a cgroup directory and below it."""
    pids = [int(line) for line in read(f"{directory}/cgroup.procs").split()]
    for child in child_directories(directory):
        pids += subtree_pids(child)
    return pids


def child_directories(directory: str) -> list[str]:
    """Return the cgroups directly below one."""
    try:
        with os.scandir(directory) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def remove_tree(directory: str) -> None:
    """Remove a cgroup and those below it. Raises OSError: EBUSY while processes are in it."""
    deadline = None
    while True:
        try:
            os.rmdir(directory)
            return
        except FileNotFoundError:
            return
        except OSError:
            for child in child_directories(directory):
                remove_tree(child)
            # A killed process counts for a moment after it has left cgroup.procs.
            deadline = deadline or time.monotonic() + _DYING_SECONDS
            if time.monotonic() > deadline or read(f"{directory}/cgroup.procs"):
                raise
            time.sleep(0.001)
