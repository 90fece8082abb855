"""Copies a directory out of an image, as a container would see it, into a fresh one: what a volume starts with.

The image is read through `layer_view`, a name at a time; the target is nobody's but ours until it is complete.
"""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from pyctr_wire.errors import FailedPrecondition
from pyctrd.core.values import dataclass
from pyctrd.diff import attributes
from pyctrd.runtime import layer_view

# Each level holds the fds of its layers open while those below are copied.
_MAX_DEPTH: Final = 128
_CHUNK: Final = 1 << 20  # bytes


@dataclass(slots=True)
class _Level:
    """A directory that is being copied: its layers and its copy (fds, owned), and what is left to do."""

    layers: list[int]
    copy_fd: int
    path: str  # of the copy, below the target
    names: Iterator[str]
    times: tuple[int, int]


class _Copy:
    """One copy under way."""

    def __init__(self, target_fd: int) -> None:
        self._target_fd = target_fd
        self._levels: list[_Level] = []
        # Where the first name of a file with several is, by device and inode number.
        self._linked: dict[tuple[int, int], str] = {}

    def run(self, layers: Sequence[int]) -> None:
        try:
            self._enter([os.dup(fd) for fd in layers], os.dup(self._target_fd), "")
            while self._levels:
                level = self._levels[-1]
                name = next(level.names, None)
                if name is None:
                    os.utime(level.copy_fd, ns=level.times)
                    self._leave()
                else:
                    self._take(level, name)
        finally:
            while self._levels:
                self._leave()

    def _enter(self, layers: list[int], copy_fd: int, path: str) -> None:
        """Go on with a directory; the fds are ours from now on."""
        level = _Level(layers, copy_fd, path, iter(()), (0, 0))
        self._levels.append(level)
        if len(self._levels) > _MAX_DEPTH:
            raise FailedPrecondition(f"the image's directories for a volume are nested more than {_MAX_DEPTH} deep")
        source_fd = _reopen(layers[0], os.O_RDONLY | os.O_DIRECTORY)
        try:
            level.times = attributes.copy(source_fd, copy_fd)
        finally:
            os.close(source_fd)
        level.names = iter(layer_view.names(layers))

    def _leave(self) -> None:
        level = self._levels.pop()
        layer_view.close_all(level.layers)
        os.close(level.copy_fd)

    def _take(self, level: _Level, name: str) -> None:
        """Copy one entry."""
        found = layer_view.lookup(level.layers, name)
        if not found:
            return  # a whiteout, or hidden by one
        try:
            status = os.fstat(found[0])
            path = f"{level.path}{name}"
            if stat.S_ISDIR(status.st_mode):
                os.mkdir(name, 0o700, dir_fd=level.copy_fd)
                copy_fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=level.copy_fd)
                layers, found = found, []
                self._enter(layers, copy_fd, f"{path}/")
                return
            if status.st_nlink > 1:
                first = self._linked.setdefault((status.st_dev, status.st_ino), path)
                if first != path:
                    os.link(first, name, src_dir_fd=self._target_fd, dst_dir_fd=level.copy_fd, follow_symlinks=False)
                    return
            if stat.S_ISREG(status.st_mode):
                _copy_file(found[0], name, level.copy_fd)
            else:
                _copy_special(found[0], status, name, level.copy_fd)
        finally:
            layer_view.close_all(found)


def copy_up(layers: Sequence[int], target_fd: int) -> None:
    """Copy what the directory that `layers` (O_PATH fds) make up holds, and what it is, to the empty `target_fd`.

    All fds are borrowed. Owners, modes, times, links, holes, devices and attributes stay as they are.
    Raises FailedPrecondition for what is nested too deeply, OSError.
    """
    _Copy(target_fd).run(layers)


def _reopen(fd: int, flags: int) -> int:
    """Open the inode of an O_PATH fd for use: it cannot be another by now."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)


def _copy_file(found_fd: int, name: str, copy_dir_fd: int) -> None:
    source_fd = _reopen(found_fd, os.O_RDONLY)
    try:
        copy_fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=copy_dir_fd)
        try:
            _copy_data(source_fd, copy_fd)
            times = attributes.copy(source_fd, copy_fd)
            os.utime(copy_fd, ns=times)
        finally:
            os.close(copy_fd)
    finally:
        os.close(source_fd)


def _copy_data(source_fd: int, copy_fd: int) -> None:
    """Copy a file's data and leave its holes holes: an image may claim a size that no disk has."""
    size, offset = os.fstat(source_fd).st_size, 0
    os.ftruncate(copy_fd, size)
    while offset < size:
        try:
            offset = os.lseek(source_fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # nothing but a hole is left
            raise
        end = os.lseek(source_fd, offset, os.SEEK_HOLE)
        os.lseek(copy_fd, offset, os.SEEK_SET)
        while offset < end:
            sent = os.sendfile(copy_fd, source_fd, offset, min(end - offset, _CHUNK))
            if not sent:
                return
            offset += sent


def _copy_special(found_fd: int, status: os.stat_result, name: str, copy_dir_fd: int) -> None:
    """Copy a symlink, a device, a FIFO or a socket."""
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink("", dir_fd=found_fd), name, dir_fd=copy_dir_fd)
    else:
        os.mknod(name, status.st_mode, status.st_rdev, dir_fd=copy_dir_fd)
    os.chown(name, status.st_uid, status.st_gid, dir_fd=copy_dir_fd, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=copy_dir_fd)
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=copy_dir_fd, follow_symlinks=False)
