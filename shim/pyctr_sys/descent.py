"""Going through a tree of directories that a container has made, or is still at work in.

It may be deeper than there are descriptors, its paths longer than a path may be, and what was a directory may be a link
a moment later. So one directory is open at a time, each is opened from the one above it, and no link is followed.
"""

import errno
import os
from collections.abc import Iterator

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CHANGED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


def descend(top: str) -> Iterator[tuple[int, list[str]]]:
    """Yield a descriptor of each directory from `top` down, good until the next one, and the names in it.

    What is a directory no more when its turn comes is passed over. Raises OSError, EBUSY if one was moved meanwhile.
    """
    fd = os.open(top, _DIRECTORY)
    try:
        names, below = _listed(fd)
        levels = [(os.fstat(fd), below)]
        yield fd, names
        while True:
            if levels[-1][1]:
                name = levels[-1][1].pop()
                try:
                    inner_fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                except OSError as error:
                    if error.errno not in _CHANGED:
                        raise
                    continue
                os.close(fd)
                fd = inner_fd
                names, below = _listed(fd)
                levels.append((os.fstat(fd), below))
                yield fd, names
                continue
            levels.pop()
            if not levels:
                return
            above_fd = os.open("..", _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = above_fd
            if not os.path.samestat(os.fstat(fd), levels[-1][0]):
                raise OSError(errno.EBUSY, "a directory was moved meanwhile", top)
    finally:
        os.close(fd)


def _listed(fd: int) -> tuple[list[str], list[str]]:
    """Return the names in a directory, and those of directories among them."""
    with os.scandir(fd) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    return [name for name, _ in found], [name for name, is_directory in found if is_directory]
