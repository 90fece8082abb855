"""Removing trees with a constant number of fds and no recursion: layers can nest deeper than either allows."""

import os
import stat
from collections.abc import Callable
from enum import Enum

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Fate(Enum):
    """What becomes of an entry: KEEP spares it with all that is below it, DESCEND asks about that again."""

    REMOVE = 0
    KEEP = 1
    DESCEND = 2


# Decides by the inode number of the directory, the entry's name and its own inode number.
Judge = Callable[[int, bytes, int], Fate]


def prune(dir_fd: int, judge: Judge) -> None:
    """Remove what is below `dir_fd` (borrowed) as `judge` says; below a removed directory nobody is asked.

    Raises OSError, also if entries vanish meanwhile: nobody else has business in the tree.
    """
    fd = os.open(".", _DIRECTORY, dir_fd=dir_fd)
    try:
        # A frame per directory between `dir_fd` and `fd`: its name, its fate, the children still to visit.
        frames = [(b"", Fate.DESCEND, _sweep(fd, Fate.DESCEND, judge))]
        while True:
            name, fate, children = frames[-1]
            if children:
                child, child_fate = children.pop()
                fd = _move(fd, child)
                frames.append((child, child_fate, _sweep(fd, child_fate, judge)))
                continue
            frames.pop()
            if not frames:
                return
            fd = _move(fd, b"..")
            if fate is Fate.REMOVE:
                os.rmdir(name, dir_fd=fd)
    finally:
        os.close(fd)


def remove(name: bytes, dir_fd: int) -> None:
    """Remove the entry `name` of `dir_fd` (borrowed), a directory with all that is in it."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=dir_fd)
        return
    fd = os.open(name, _DIRECTORY, dir_fd=dir_fd)
    try:
        prune(fd, lambda _directory, _name, _inode: Fate.REMOVE)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=dir_fd)


def _move(fd: int, name: bytes) -> int:
    """Return an fd of the directory `name` seen from `fd`, which is closed."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=fd)
    finally:
        os.close(fd)


def _sweep(fd: int, own_fate: Fate, judge: Judge) -> list[tuple[bytes, Fate]]:
    """Remove the entries of the directory `fd` that are no directories; return the directories to visit."""
    directory = os.fstat(fd).st_ino
    with os.scandir(fd) as entries:
        listed = [(os.fsencode(entry.name), entry.inode(), entry.is_dir(follow_symlinks=False)) for entry in entries]
    visit: list[tuple[bytes, Fate]] = []
    for name, inode, is_directory in listed:
        fate = own_fate if own_fate is Fate.REMOVE else judge(directory, name, inode)
        if is_directory and fate is not Fate.KEEP:
            visit.append((name, fate))
        elif fate is Fate.REMOVE:
            os.unlink(name, dir_fd=fd)
    return visit
