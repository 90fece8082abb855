"""Delete a directory tree that a container may have filled, whatever its depth and whatever is in it."""

import os
from contextlib import suppress
from itertools import count
from pathlib import Path


def remove_tree(root: Path) -> None:
    """Delete `root` and everything below it; a tree that is not there is a success.

    Directories are moved up to `root` before they are opened, so neither depth nor the length of
    a path matters, no symbolic link is followed, and no mount point is entered: those cannot be
    renamed. Raises OSError, EBUSY for a mount point and EPERM for an immutable file; another call
    goes on from there.
    """
    try:
        root_fd = _open_directory(str(root))
    except FileNotFoundError:
        return
    try:
        names = count()
        pending = _empty(root_fd, root_fd, names)
        while pending:
            name = pending.pop()
            fd = _open_directory(name, root_fd)
            try:
                pending += _empty(fd, root_fd, names)
            finally:
                os.close(fd)
            os.rmdir(name, dir_fd=root_fd)
    finally:
        os.close(root_fd)
    root.rmdir()


def _empty(fd: int, root_fd: int, names: "count[int]") -> list[str]:
    """Delete the files in a directory and move its directories up; return their new names."""
    moved = []
    with os.scandir(fd) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if not is_directory:
            os.unlink(name, dir_fd=fd)
        elif not _removed(name, fd):
            moved.append(_move_up(name, fd, root_fd, names))
    return moved


def _removed(name: str, fd: int) -> bool:
    """Delete a directory that is empty already, as most are that overlayfs leaves; return whether it was."""
    with suppress(OSError):
        os.rmdir(name, dir_fd=fd)
        return True
    return False


def _move_up(name: str, fd: int, root_fd: int, names: "count[int]") -> str:
    target = f".remove-{next(names)}"
    while _exists(target, root_fd):  # left by an earlier call; rename would replace an empty one silently
        target = f".remove-{next(names)}"
    os.rename(name, target, src_dir_fd=fd, dst_dir_fd=root_fd)
    return target


def _exists(name: str, fd: int) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _open_directory(name: str, parent_fd: int | None = None) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
