"""Giving a tree of files to the users of a user namespace. Source: chown(2), user_namespaces(7)."""

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from pyctrd.core.idmaps import UNCHANGED, IdMap, Maps, host_id

_NOBODY: Final = 65534  # who a file belongs to that no user of the namespace owns
_CAPABILITY: Final = "security.capability"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def shift(tree: Path, maps: Maps) -> None:
    """Give everything below `tree`, and itself, to those whom its owners' numbers are in the namespace.

    Nobody else may change the tree meanwhile; it may be as deep as a container has made it: one directory is open at a
    time, and no path is used. Modes and file capabilities, which a change of owner takes away, stay. Raises OSError.
    """
    linked: set[int] = set()  # files with several names that are done
    fd = os.open(tree, _DIRECTORY)
    try:
        _shift_one(".", fd, maps, linked)
        levels = [_Level(os.fstat(fd), _shift_entries(fd, maps, linked))]
        while True:
            if levels[-1].pending:
                fd = _moved(fd, levels[-1].pending.pop(), os.O_NOFOLLOW)
                levels.append(_Level(os.fstat(fd), _shift_entries(fd, maps, linked)))
                continue
            levels.pop()
            if not levels:
                return
            fd = _moved(fd, "..")
            if not os.path.samestat(os.fstat(fd), levels[-1].status):
                raise OSError(errno.EBUSY, "a directory was moved meanwhile", str(tree))
    finally:
        os.close(fd)


class _Level(NamedTuple):
    """A directory on the way down: its status, and the names of those in it that are still to be entered."""

    status: os.stat_result
    pending: list[str]


def _moved(fd: int, name: str, flags: int = 0) -> int:
    """Open a directory from another one, which is closed."""
    opened = os.open(name, _DIRECTORY | flags, dir_fd=fd)
    os.close(fd)
    return opened


def _shift_entries(fd: int, maps: Maps, linked: set[int]) -> list[str]:
    """Give away what is in a directory, and return the directories among it."""
    with os.scandir(fd) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, _ in found:
        _shift_one(name, fd, maps, linked)
    return [name for name, is_directory in found if is_directory]


def _shift_one(name: str, dir_fd: int, maps: Maps, linked: set[int]) -> None:
    status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
        if status.st_ino in linked:
            return
        linked.add(status.st_ino)
    is_file = stat.S_ISREG(status.st_mode)
    path = f"/proc/self/fd/{dir_fd}/{name}"
    kept = _capability(path) if is_file else b""
    uid, gid = _new(maps.uids, status.st_uid), _new(maps.gids, status.st_gid)
    os.chown(name, uid, gid, dir_fd=dir_fd, follow_symlinks=False)
    if is_file and status.st_mode & (stat.S_ISUID | stat.S_ISGID):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=dir_fd)
    if kept:
        os.setxattr(path, _CAPABILITY, kept, follow_symlinks=False)


def _capability(path: str) -> bytes:
    with suppress(OSError):
        return os.getxattr(path, _CAPABILITY, follow_symlinks=False)
    return b""


def _new(maps: Sequence[IdMap], number: int) -> int:
    if not maps:
        return UNCHANGED
    found = host_id(maps, number)
    return _NOBODY if found is None else found
