"""Snapshots shown read-only on this machine, for containers to bind, with the owners of a pod's user namespace.

An overlay cannot be id-mapped, its lower directories can: each is mounted so, in a mount namespace that lasts as long
as that takes, and named by its descriptor, which also keeps many layers within the page that mount(2) takes.
Source: mount_setattr(2); kernel Documentation/filesystems/overlayfs.rst.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from pyctr_sys.mount import (
    AT_FDCWD,
    OPEN_TREE_CLONE,
    Attr,
    MountFlag,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
)
from pyctr_sys.namespaces import Clone, unshare
from pyctr_sys.openat2 import O_PATH
from pyctrd.core.idmaps import IdMap, Maps
from pyctrd.core.mounts import Mount
from pyctrd.network.netns import in_thread
from pyctrd.runtime.layer_view import directories
from pyctrd.sandbox.files import unmount
from pyctrd.sandbox.owner import owner

_NOBODYS: Final = (IdMap(0, 0x7FFF0000, 1),)


class CannotMap(OSError):
    """The kernel or the file system of the layers cannot show them with other owners."""


def attach(mounts: Sequence[Mount], target: Path, user_namespace: Path | None = None) -> None:
    """Mount a view on the directory `target`, its owners those of a user namespace; blocks.

    Raises OSError, CannotMap where that cannot be.
    """
    with ExitStack() as opened:
        namespace_fd = _open(opened, user_namespace, os.O_RDONLY) if user_namespace is not None else -1
        layers = directories(mounts)
        if len(layers) == 1:
            tree_fd = _copy(layers[0], namespace_fd)
        else:
            own = [option for option in mounts[0].options if not option.startswith("lowerdir=") and option != "ro"]
            tree_fd = in_thread(lambda: _overlay(layers, own, target, namespace_fd))
        opened.callback(os.close, tree_fd)
        mount_setattr(tree_fd, attr_set=Attr.RDONLY | Attr.NOSUID | Attr.NODEV, propagation=MountFlag.PRIVATE)
        move_mount(tree_fd, _open(opened, target, O_PATH | os.O_DIRECTORY))


def why_not_mapped(directory: Path) -> str:
    """Return why layers below `directory` cannot have a user namespace's owners, "" if they can; blocks."""
    scratch = Path(tempfile.mkdtemp(prefix=".mapped-", dir=directory))
    names = [scratch / name for name in ("upper", "lower", "shown")]
    try:
        for name in names:
            name.mkdir()
        lower = f"lowerdir={names[0]}:{names[1]}"
        with owner(0, Maps(_NOBODYS, _NOBODYS), {}) as (pid, _):
            attach([Mount("overlay", "overlay", options=(lower,))], names[2], Path(f"/proc/{pid}/ns/user"))
    except OSError as error:
        return str(error)
    finally:
        unmount(names[2])
        shutil.rmtree(scratch, ignore_errors=True)
    return ""


def _overlay(layers: Sequence[str], options: Sequence[str], target: Path, namespace_fd: int) -> int:
    """Return an fd of a detached mount; in a thread that ends afterwards, and its mounts with it."""
    unshare(Clone.NEWNS)  # and the working directory is this thread's own
    mount(None, "/", None, MountFlag.REC | MountFlag.PRIVATE)
    with ExitStack() as opened:
        target_fd = _open(opened, target, O_PATH | os.O_DIRECTORY)
        names = []
        for layer in layers:
            fd = _copy(layer, namespace_fd)
            opened.callback(os.close, fd)
            move_mount(fd, target_fd)  # an overlay takes only what is mounted somewhere
            names.append(str(fd))
        os.chdir("/proc/self/fd")
        data = ",".join((*options, "lowerdir=" + ":".join(names)))
        mount("overlay", str(target), "overlay", MountFlag.RDONLY, data)
        return open_tree(AT_FDCWD, str(target), OPEN_TREE_CLONE)


def _copy(layer: str, namespace_fd: int) -> int:
    """Return an fd of a detached mount of a directory, id-mapped if there is a namespace. Raises OSError, CannotMap."""
    tree_fd = open_tree(AT_FDCWD, layer, OPEN_TREE_CLONE)
    if namespace_fd >= 0:
        try:
            mount_setattr(tree_fd, attr_set=Attr.IDMAP, idmap_fd=namespace_fd)
        except OSError as error:
            os.close(tree_fd)
            if error.errno not in {errno.EINVAL, errno.EPERM, errno.ENOSYS}:
                raise
            raise CannotMap(error.errno, f"{layer}: its file system cannot be id-mapped") from None
    return tree_fd


def _open(opened: ExitStack, path: Path, flags: int) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC)
    opened.callback(os.close, fd)
    return fd
