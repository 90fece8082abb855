"""Paths that a container may not see, or may only read.

A masked file is covered by the null device, verified by number and bound by fd; a masked directory
by an empty read-only tmpfs, one for all of them. A read-only path becomes a mount of itself whose
attributes are set before it is attached.
"""

import errno
import os
from collections.abc import Iterable
from typing import Final

from pyctr_shim.oci.devices import open_null
from pyctr_shim.oci.errors import OciError, describe
from pyctr_sys.mount import AT_RECURSIVE, OPEN_TREE_CLONE, Attr, mount_setattr, move_mount, new_file_system, open_tree
from pyctr_sys.openat2 import is_directory, open_in_root

_ABSENT: Final = {errno.ENOENT, errno.ENOTDIR}
_TMPFS: Final = {"size": "0k", "nr_inodes": "2", "mode": "0755"}


def mask(root_fd: int, paths: Iterable[str]) -> None:
    """Cover each of `paths` that exists. Raises OciError if one cannot be covered."""
    null_fd = empty_fd = -1
    for path in paths:
        target_fd = _open(root_fd, path)
        if target_fd < 0:
            continue
        try:
            if is_directory(target_fd):
                if empty_fd < 0:
                    # Attached here and copied from here: before Linux 6.15 what is not attached has no copies.
                    empty_fd = new_file_system("tmpfs", {**_TMPFS, "ro": None}, Attr.RDONLY)
                    move_mount(empty_fd, target_fd)
                    continue
                cover_fd = open_tree(empty_fd, "", OPEN_TREE_CLONE)
            else:
                if null_fd < 0:
                    null_fd = open_null(root_fd)
                cover_fd = open_tree(null_fd, "", OPEN_TREE_CLONE)
            move_mount(cover_fd, target_fd)
            os.close(cover_fd)
        except OSError as error:
            raise OciError(f"linux.maskedPaths: {path}: {describe(error)}", error.errno or 0) from None
        finally:
            os.close(target_fd)
    for fd in (null_fd, empty_fd):
        if fd >= 0:
            os.close(fd)


def make_readonly(root_fd: int, paths: Iterable[str]) -> None:
    """Make each of `paths` that exists read-only. Raises OciError if that fails."""
    for path in paths:
        target_fd = _open(root_fd, path)
        if target_fd < 0:
            continue
        try:
            tree_fd = open_tree(target_fd, "", OPEN_TREE_CLONE | AT_RECURSIVE)
            mount_setattr(tree_fd, attr_set=Attr.RDONLY)
            move_mount(tree_fd, target_fd)
            os.close(tree_fd)
        except OSError as error:
            raise OciError(f"linux.readonlyPaths: {path}: {describe(error)}", error.errno or 0) from None
        finally:
            os.close(target_fd)


def _open(root_fd: int, path: str) -> int:
    """Return an O_PATH fd, -1 if the path is not there."""
    try:
        return open_in_root(root_fd, path)
    except OSError as error:
        if error.errno in _ABSENT:
            return -1
        raise OciError(f"masking {path}: {describe(error)}", error.errno or 0) from None
