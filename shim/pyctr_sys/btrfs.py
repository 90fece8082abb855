"""Subvolumes of a btrfs file system. Source: btrfs-subvolume(8), linux/btrfs.h.

A subvolume is a directory with an inode number of its own kind; a snapshot is one that begins as another's copy, and
shares all blocks with it until they are changed.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path
from typing import Final

from pyctr_sys.process import file_system_type

_MAGIC: Final = 0x9123683E
_ARGS: Final = struct.Struct("q4088s")  # struct btrfs_ioctl_vol_args
_SNAP_CREATE: Final = 0x50009401
_SUBVOL_CREATE: Final = 0x5000940E
_SNAP_DESTROY: Final = 0x5000940F
_SUBVOL_GETFLAGS: Final = 0x80089419
_SUBVOL_SETFLAGS: Final = 0x4008941A
_FLAGS: Final = struct.Struct("Q")
_READ_ONLY: Final = 2
_ROOT_INODE: Final = 256  # of every subvolume, and of no other directory

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def is_btrfs(directory: Path) -> bool:
    """Return whether a directory lies on btrfs. Raises OSError."""
    with _opened(directory) as fd:
        return file_system_type(fd) == _MAGIC


def is_subvolume(status: os.stat_result) -> bool:
    """Return whether that is the status of a subvolume, if it is of a directory on btrfs."""
    return status.st_ino == _ROOT_INODE


def create(path: Path) -> None:
    """Make an empty subvolume. Raises OSError."""
    with _opened(path.parent) as parent_fd:
        _call(parent_fd, path.name, _SUBVOL_CREATE)


def snapshot(source: Path, path: Path) -> None:
    """Make a subvolume that begins as `source`, which is one; those below it are left out. Raises OSError."""
    with _opened(path.parent) as parent_fd, _opened(source) as source_fd:
        _call(parent_fd, path.name, _SNAP_CREATE, source_fd)


def destroy(parent_fd: int, name: str) -> None:
    """Remove a subvolume with all that is in it. Raises OSError: ENOTEMPTY while another one is below it."""
    _call(parent_fd, name, _SNAP_DESTROY)


def make_writable(fd: int) -> None:
    """See that what is in an open subvolume can be changed: who may write to it can have forbidden that. OSError."""
    flags = bytearray(_FLAGS.size)
    ioctl(fd, _SUBVOL_GETFLAGS, flags)
    (value,) = _FLAGS.unpack(flags)
    if value & _READ_ONLY:
        ioctl(fd, _SUBVOL_SETFLAGS, _FLAGS.pack(value & ~_READ_ONLY))


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, _DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def _call(parent_fd: int, name: str, request: int, fd: int = 0) -> None:
    try:
        ioctl(parent_fd, request, bytearray(_ARGS.pack(fd, os.fsencode(name))))  # bytes may have 1024 at most
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None
