"""Giving a tree of files to the users of a user namespace. Source: chown(2), user_namespaces(7)."""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from pyctr_sys.descent import descend
from pyctrd.core.idmaps import UNCHANGED, IdMap, Maps, host_id

_NOBODY: Final = 65534  # who a file belongs to that no user of the namespace owns
_CAPABILITY: Final = "security.capability"


def shift(tree: Path, maps: Maps) -> None:
    """Give everything below `tree`, and itself, to those whom its owners' numbers are in the namespace.

    Nobody else may change the tree meanwhile; it may be as deep as a container has made it. Modes and file
    capabilities, which a change of owner takes away, stay. Raises OSError.
    """
    linked: set[int] = set()  # files with several names that are done
    for fd, names in descend(str(tree)):
        for name in names:
            _shift_one(name, fd, maps, linked)
    top_fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _shift_one(".", top_fd, maps, linked)
    finally:
        os.close(top_fd)


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
