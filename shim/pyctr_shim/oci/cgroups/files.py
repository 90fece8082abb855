"""Reading and writing the small files of a cgroup directory."""

import os
import time
from typing import Final

_SMALL: Final = 4096
_DYING_SECONDS: Final = 2.0


def write(path: str, value: str) -> None:
    """Write `value` in one call. Raises OSError, as the kernel judges the value."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def read(path: str) -> str:
    """Return a file's text, "" if it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    try:
        chunks = [os.read(fd, _SMALL)]
        while len(chunks[-1]) == _SMALL:
            chunks.append(os.read(fd, _SMALL))
    except OSError:  # ENODEV: the cgroup went away; EOPNOTSUPP: not accounted here
        return ""
    finally:
        os.close(fd)
    return b"".join(chunks).decode()


def number(path: str) -> int:
    """Return a file's number; "max" is the largest unsigned one, a missing file 0."""
    text = read(path).strip()
    if text == "max":
        return (1 << 64) - 1
    return int(text) if text.lstrip("-").isdigit() else 0


def fields(path: str) -> dict[str, int]:
    """Return a flat-keyed file (`name value` lines) as a dictionary."""
    found = {}
    for line in read(path).splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            found[name] = int(value)
    return found


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
