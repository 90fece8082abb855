"""Reads files of an image as its container will see them, without mounting anything.

A view is the stack of directories that overlayfs would stack, the uppermost first. Each name is looked
up in one directory at a time with openat2, no symlink followed by the kernel, so neither a layer nor a
running container that changes its upper directory can lead us out of it.
Source: kernel Documentation/filesystems/overlayfs.rst.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from pyctr_sys.openat2 import O_PATH, Resolve, openat2
from pyctr_wire.errors import FailedPrecondition
from pyctrd.core.mounts import FUSE_OVERLAY, Mount
from pyctrd.snapshots.block import opened

_RESOLVE: Final = int(Resolve.BENEATH | Resolve.NO_SYMLINKS | Resolve.NO_MAGICLINKS | Resolve.NO_XDEV)
_MAX_SYMLINKS: Final = 40  # as the kernel
_OPAQUE: Final = ("trusted.overlay.opaque", "user.overlay.opaque")


def directories(mounts: Sequence[Mount]) -> list[str]:
    """Return the directories that a snapshot's mounts stack, the uppermost first. Raises FailedPrecondition."""
    if len(mounts) == 1 and mounts[0].type == "bind":
        return [mounts[0].source]
    if len(mounts) == 1 and mounts[0].type in ("overlay", FUSE_OVERLAY):
        options = dict(option.partition("=")[::2] for option in mounts[0].options)
        upper = [options["upperdir"]] if "upperdir" in options else []
        return upper + options.get("lowerdir", "").split(":")
    raise FailedPrecondition("the snapshot is not a stack of directories")


@contextmanager
def shown(mounts: Sequence[Mount]) -> Iterator[list[str]]:
    """Yield the directories that a snapshot's mounts stack; of a block device, the root of its file system.

    Raises FailedPrecondition, OSError.
    """
    if len(mounts) == 1 and mounts[0].source.startswith("/") and mounts[0].type != "bind":
        with opened(mounts[0]) as root:
            yield [str(root)]
    else:
        yield directories(mounts)


class LayerView:
    """A read-only look into a stack of directories. Use it as a context."""

    def __init__(self, layers: Iterable[str]) -> None:
        """Open the directories `layers`, the uppermost first. Raises OSError."""
        self._stack = ExitStack()
        self._layers: list[int] = []
        with ExitStack() as opening:
            for path in layers:
                fd = os.open(path, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                opening.callback(os.close, fd)
                self._layers.append(fd)
            self._stack = opening.pop_all()

    def __enter__(self) -> "LayerView":
        """Return this view."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the directories."""
        self._stack.close()

    def read_file(self, path: str, limit: int) -> bytes | None:
        """Return the contents of the regular file at `path`; None if there is no such file.

        Raises FailedPrecondition for a file of another kind or of more than `limit` bytes, or for too
        many symlinks.
        """
        found = self._find(path)
        if not found:
            return None
        fd = found[0]
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise FailedPrecondition(f"{path} in the image is not a regular file")
            # Opened again through the fd that was checked: it cannot be another file by now.
            with open(f"/proc/self/fd/{fd}", "rb", buffering=0) as file:
                data = file.read(limit + 1)
        finally:
            close_all(found)
        if len(data) > limit:
            raise FailedPrecondition(f"{path} in the image is larger than {limit} bytes")
        return data

    def directory(self, path: str) -> list[int]:
        """Return O_PATH fds of the directories that are merged at `path`, as `names` and `lookup` take them.

        They are the caller's to close; there are none if nothing is at `path`. Raises FailedPrecondition for
        what is no directory, or for too many symlinks.
        """
        found = self._find(path)
        if found and not stat.S_ISDIR(os.fstat(found[0]).st_mode):
            close_all(found)
            raise FailedPrecondition(f"{path} in the image is not a directory")
        return found

    def _find(self, path: str) -> list[int]:
        """Return O_PATH fds of what `path` leads to, symlinks followed across layers; none if nothing."""
        waiting = deque(path.split("/"))
        # The directories that make up each component so far; the first are the roots.
        trail: list[list[int]] = [self._layers]
        links = 0
        with ExitStack() as opened:
            while waiting:
                name = waiting.popleft()
                if name in ("", "."):
                    continue
                if name == "..":
                    trail = trail[:-1] or trail  # above the root there is the root
                    continue
                found = lookup(trail[-1], name)
                for fd in found:
                    opened.callback(os.close, fd)
                if not found:
                    return []
                mode = os.fstat(found[0]).st_mode
                if stat.S_ISLNK(mode):
                    links += 1
                    if links > _MAX_SYMLINKS:
                        raise FailedPrecondition(f"{path} in the image leads through too many symlinks")
                    target = os.readlink("", dir_fd=found[0])
                    if target.startswith("/"):
                        trail = trail[:1]
                    waiting.extendleft(reversed(target.split("/")))
                elif stat.S_ISDIR(mode):
                    trail.append(found)
                else:
                    return _duplicates(found) if not any(part not in ("", ".") for part in waiting) else []
            return _duplicates(trail[-1])


def names(layers: Sequence[int]) -> list[str]:
    """Return what may be in the directory that `layers` (O_PATH fds, borrowed) make up; `lookup` says what is."""
    found: dict[str, None] = {}
    for layer in layers:
        # An O_PATH fd cannot be listed; the link of /proc leads to the same directory.
        found.update(dict.fromkeys(os.listdir(f"/proc/self/fd/{layer}")))
    return list(found)


def close_all(fds: Sequence[int]) -> None:
    """Close them."""
    for fd in fds:
        os.close(fd)


def _duplicates(fds: Sequence[int]) -> list[int]:
    copies: list[int] = []
    try:
        copies.extend(map(os.dup, fds))
    except BaseException:
        close_all(copies)
        raise
    return copies


def lookup(layers: Sequence[int], name: str) -> list[int]:
    """Return O_PATH fds of `name` in `layers` (borrowed): of the uppermost, and of those that a directory merges with.

    There are none if `name` is not there.
    """
    found: list[int] = []
    try:
        for layer in layers:
            try:
                fd = openat2(layer, name, O_PATH | os.O_NOFOLLOW, _RESOLVE)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR):
                    continue
                raise
            status = os.fstat(fd)
            is_directory = stat.S_ISDIR(status.st_mode)
            whiteout = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
            if whiteout or (found and not is_directory):
                os.close(fd)
                break
            found.append(fd)
            if not is_directory or _is_opaque(fd):
                break
    except BaseException:
        close_all(found)
        raise
    return found


def _is_opaque(fd: int) -> bool:
    """Tell whether a directory hides those below it."""
    for name in _OPAQUE:
        try:
            # getxattr refuses O_PATH fds; the link of /proc leads to the same inode.
            if os.getxattr(f"/proc/self/fd/{fd}", name) == b"y":
                return True
        except OSError:
            continue
    return False
