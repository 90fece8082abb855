"""openat2(2): the only way to open a path below a container's root.

Every function takes the fd of that root and a path as the container sees it. The kernel resolves
it with that directory as `/`: symlinks and `..` cannot leave it, and links of /proc that jump
elsewhere are refused, at the moment of opening and not a moment before.
"""

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from enum import IntFlag
from functools import lru_cache
from typing import Any, Final

from pyctr_sys.calls import address, check, ffi, syscall

O_PATH: Final = 0o10000000
_DIRECTORY: Final = O_PATH | os.O_DIRECTORY
# Renames and mounts elsewhere make the kernel give up with EAGAIN although nothing is wrong.
_ATTEMPTS: Final = 128
_TRANSIENT: Final = frozenset({errno.EAGAIN, errno.EINTR})
_HOW_SIZE: Final = ffi.sizeof("struct open_how")
_MOST_LINKS: Final = 40  # as the kernel follows


class Resolve(IntFlag):
    """How a path may be resolved. Source: linux/openat2.h."""

    NO_XDEV = 0x01
    NO_MAGICLINKS = 0x02
    NO_SYMLINKS = 0x04
    BENEATH = 0x08
    IN_ROOT = 0x10


IN_ROOT: Final = int(Resolve.IN_ROOT | Resolve.NO_MAGICLINKS)
_NO_LINK: Final = int(Resolve.BENEATH | Resolve.NO_SYMLINKS)


def openat2(dir_fd: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """Open `path` under the rules of `resolve`; close-on-exec.

    Raises OSError: ELOOP for a symlink that is refused, EXDEV for an escape, ENOENT and the rest.
    """
    text = ffi.new("char[]", os.fsencode(path))
    where = address(text)
    _kept, how = _how(flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(_ATTEMPTS):
        fd = syscall("openat2", dir_fd, where, how, _HOW_SIZE)
        if fd >= 0:
            return fd
        if ffi.errno not in _TRANSIENT:
            break
    return check(fd, "openat2", path)


@lru_cache(maxsize=32)
def _how(flags: int, mode: int, resolve: int) -> tuple[Any, int]:
    """Return what the kernel reads of an opening, and its address.

    There are a handful, and a container takes a hundred openings.
    """
    made = ffi.new("struct open_how *", (flags, mode, resolve))
    return made, address(made)


def open_in_root(root_fd: int, path: str, flags: int = O_PATH, mode: int = 0) -> int:
    """Open `path` with the directory `root_fd` as its root."""
    return openat2(root_fd, path, flags, IN_ROOT, mode)


def open_regular(root_fd: int, path: str) -> int:
    """Open a file for reading that must be a regular one: opening a device or a pipe can have effects of its own.

    Needs /proc. Raises FileNotFoundError also for anything else than a regular file.
    """
    path_fd = open_in_root(root_fd, path)
    try:
        if not stat.S_ISREG(os.fstat(path_fd).st_mode):
            raise FileNotFoundError(errno.ENOENT, "not a regular file", path)
        return os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(path_fd)


def make_directories(root_fd: int, path: str, mode: int = 0o755) -> int:
    """Return an O_PATH fd of the directory `path`, made with its parents where missing.

    A symlink that leads nowhere is followed to what it names, below the root. Raises NotADirectoryError if a component
    is something else, ELOOP for links without an end.
    """
    try:
        return open_in_root(root_fd, path, _DIRECTORY)
    except FileNotFoundError:
        pass
    left = _components(path)
    with suppress(FileNotFoundError, FileExistsError):  # mostly it is but the last one that is missing
        return _make_last(root_fd, left, mode)
    done, links = "/", 0
    while left:
        name = left.pop(0)
        if name != "..":
            target = _make_directory(root_fd, done, name, mode)
            if target:
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                left = _components(target) + left
                done = "/" if target.startswith("/") else done
                continue
        done = f"{done}{name}/"
    return open_in_root(root_fd, done, _DIRECTORY)


def _make_last(root_fd: int, names: Sequence[str], mode: int) -> int:
    """Make the directory that a path ends in, and return an O_PATH fd of it.

    Raises FileNotFoundError if its parent is missing, or it can be no name, FileExistsError if something has it.
    """
    *parents, name = names
    parent_fd = open_in_root(root_fd, "/" + "/".join(parents), _DIRECTORY)
    try:
        os.mkdir(name, mode, dir_fd=parent_fd)
        return openat2(parent_fd, name, _DIRECTORY, _NO_LINK)
    finally:
        os.close(parent_fd)


def _make_directory(root_fd: int, parent: str, name: str, mode: int) -> str:
    """Make a directory unless something is there. Returns where that leads if it is a symlink that leads nowhere."""
    parent_fd = open_in_root(root_fd, parent, _DIRECTORY)
    try:
        os.mkdir(name, mode, dir_fd=parent_fd)
    except FileExistsError:  # it is there, or somebody else made it: the next open decides what it is
        return _leads_nowhere(root_fd, parent_fd, f"{parent}{name}")
    finally:
        os.close(parent_fd)
    return ""


def _leads_nowhere(root_fd: int, parent_fd: int, path: str) -> str:
    """Return the target of a symlink below `parent_fd` if nothing is there, else ""."""
    try:
        os.close(open_in_root(root_fd, path))
    except FileNotFoundError:
        try:
            return os.readlink(path.rpartition("/")[2], dir_fd=parent_fd)
        except OSError:
            return ""
    return ""


def make_file(root_fd: int, path: str, mode: int = 0o644) -> int:
    """Return an O_PATH fd of the file `path`, made empty with its parent directories if missing.

    Symlinks that lead nowhere are followed as `make_directories` does.
    """
    for _ in range(_MOST_LINKS):
        try:
            return open_in_root(root_fd, path)
        except FileNotFoundError:
            pass
        parent, _, name = path.rstrip("/").rpartition("/")
        parent_fd = make_directories(root_fd, parent or "/")
        try:
            # O_EXCL never follows a symlink; whoever made the file meanwhile is found by the open below.
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode, dir_fd=parent_fd))
        except FileExistsError:
            target = _leads_nowhere(root_fd, parent_fd, f"{parent}/{name}")
            if target:
                path = target if target.startswith("/") else f"{parent}/{target}"
                continue
        finally:
            os.close(parent_fd)
        return open_in_root(root_fd, path)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def is_directory(fd: int) -> bool:
    """Return whether `fd` stands for a directory."""
    return stat.S_ISDIR(os.fstat(fd).st_mode)


def _components(path: str) -> list[str]:
    """Split `path`; `..` is the kernel's to follow, which stops at the root."""
    return [name for name in path.split("/") if name not in {"", "."}]
