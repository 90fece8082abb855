"""The container's root: mounted, cloned, attached over `/`, pivoted to."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pyctr_shim.oci import mount_options
from pyctr_shim.oci.errors import OciError, describe
from pyctr_shim.oci.mount_options import MountOptions
from pyctr_sys.mount import (
    AT_FDCWD,
    AT_RECURSIVE,
    MNT_DETACH,
    OPEN_TREE_CLONE,
    Attr,
    MountFlag,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
    pivot_root,
    umount2,
)  # fmt: skip
from pyctr_sys.namespaces import Clone, setns
from pyctr_sys.openat2 import O_PATH, open_in_root

_PAGE: Final = 4096
_MAPS: Final = ("uidmap=", "gidmap=")  # a snapshotter's, for whoever mounts
_FUSE: Final = ("fuse3.", "fuse.")
_LOOP: Final = "loop"  # what mount(8) does: the source is a file
_BINDS: Final = frozenset({"bind", "rbind"})
_PROPAGATION: Final = {
    "": MountFlag.SLAVE, "private": MountFlag.PRIVATE, "slave": MountFlag.SLAVE, "shared": MountFlag.SHARED,
    "unbindable": MountFlag.UNBINDABLE, "rprivate": MountFlag.PRIVATE, "rslave": MountFlag.SLAVE,
    "rshared": MountFlag.SHARED, "runbindable": MountFlag.UNBINDABLE,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RootfsMount:
    """A mount that makes up the root, as a snapshotter hands it out; `target` is below the root."""

    type: str
    source: str
    target: str
    options: tuple[str, ...]


def is_of_directories(item: RootfsMount) -> bool:
    """Return whether a mount shows directories that are there: it needs no device, and no program that serves it."""
    return item.type in {"bind", "overlay"} or not _BINDS.isdisjoint(item.options)


def propagation_flag(name: str) -> int:
    """Return linux.rootfsPropagation as a flag; without one, a container sees the host's later mounts only."""
    return int(_PROPAGATION[name])


def is_shared(name: str) -> bool:
    """Whether what the container mounts in its root is to appear on the host."""
    return _PROPAGATION[name] == MountFlag.SHARED


def check_place(directory: str, bundle: str) -> None:
    """Raise OciError unless a root that is to be mounted has a directory of the bundle to itself.

    What is mounted there is unmounted in the end, and with it whatever else is.
    """
    if not directory.startswith(f"{os.path.normpath(bundle)}/"):
        raise OciError(f"root.path: {directory} is not in the bundle, and the root is to be mounted there")


def mount_rootfs(mounts: Sequence[RootfsMount], directory: str) -> None:
    """Mount a snapshot's mounts on `directory`, in order. Raises OciError.

    A target is looked up in what has been mounted before it, which is the image's: no symlink leads out of that.
    """
    for item in mounts:
        maps = dict(option.split("=", 1) for option in item.options if option.startswith(_MAPS))
        options = mount_options.parse(option for option in item.options if not option.startswith(_MAPS))
        if options.idmap:
            raise OciError(f"rootfs: mount option {options.idmap!r} is not supported")
        try:
            root_fd = os.open(directory, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            target_fd = open_in_root(root_fd, item.target or "/")
            os.close(root_fd)
            if maps:
                from pyctr_shim.oci import mapped_layers  # seldom needed

                mapped_layers.mount_mapped(item.type, item.source, target_fd, options, maps)
            else:
                _mount_on(target_fd, item, options)
            os.close(target_fd)
        except OSError as error:
            raise OciError(f"failed to mount rootfs component: {describe(error)}", error.errno or 0) from None


def _mount_on(target_fd: int, item: RootfsMount, options: MountOptions) -> None:
    target = f"/proc/self/fd/{target_fd}"
    if options.is_bind or item.type == "bind":
        if options.data:
            raise OciError(f"rootfs: bind mount option {options.data!r} is not supported")
        recursive = AT_RECURSIVE if options.flags & MountFlag.REC else 0
        tree_fd = open_tree(AT_FDCWD, item.source, OPEN_TREE_CLONE | recursive)
        if options.attributes:
            mount_setattr(tree_fd, attr_set=options.attributes)
        move_mount(tree_fd, target_fd)
        os.close(tree_fd)
    elif item.type == "overlay" and len(options.data) >= _PAGE - 1:
        _mount_long_overlay(target, options.flags, options.data)
    elif item.type.startswith(_FUSE):
        from pyctr_shim.oci import fuse  # seldom needed

        fuse.mount_fuse(item.type, item.source, os.readlink(target), item.options)
    elif _LOOP in options.data.split(","):
        from pyctr_sys import loop  # seldom needed

        loop.mount_file(item.source, target, item.type, options.flags, options.data)
    else:
        mount(item.source, target, item.type, options.flags, options.data or None)


def _mount_long_overlay(target: str, flags: int, data: str) -> None:
    """Mount an overlay whose options exceed the kernel's one page, by naming the layers relative to their parent."""
    fields = [field.split("=", 1) for field in data.split(",")]
    lower = dict(field for field in fields if len(field) == 2)["lowerdir"].split(":")
    parent = os.path.commonpath(lower)
    short = ":".join(os.path.relpath(layer, parent) for layer in lower)
    words = ["=".join(["lowerdir", short] if field[0] == "lowerdir" else field) for field in fields]
    before = os.open(".", O_PATH | os.O_CLOEXEC)
    try:
        os.chdir(parent)
        mount("overlay", target, "overlay", flags, ",".join(words))
    finally:
        os.fchdir(before)
        os.close(before)


def clone_tree(directory: str) -> int:
    """Return a detached copy of everything mounted at `directory`: the container's root to be."""
    try:
        return open_tree(AT_FDCWD, directory, OPEN_TREE_CLONE | AT_RECURSIVE)
    except OSError as error:
        raise OciError(f"root.path: {directory}: {error.strerror}", error.errno or 0) from None


def set_propagation(tree_fd: int, propagation: int) -> None:
    """Set how later mounts travel between the root, all of it, and where it was copied from."""
    mount_setattr(tree_fd, propagation=propagation, recursive=True)


def attach(tree_fd: int) -> None:
    """Attach the root over `/`, the one directory that can be reached from every user namespace.

    Must run in the container's mount namespace, whose mounts are no longer shared with the host's.
    """
    slash_fd = os.open("/", O_PATH | os.O_CLOEXEC)
    move_mount(tree_fd, slash_fd)
    os.close(slash_fd)


def pivot(tree_fd: int, propagation: int) -> None:
    """Make the tree this namespace's root and let go of the host's.

    pivot_root takes no root that is shared, so that one is a slave of its peers before it is shared again: the
    host's later mounts arrive in it still, its own reach the processes and containers that share it from here.
    """
    shared = propagation == MountFlag.SHARED
    if shared:
        mount_setattr(tree_fd, propagation=MountFlag.SLAVE)
    old_fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fchdir(tree_fd)
    pivot_root(".", ".")
    # The old root now lies over the new one. Slave first: unmounting must not travel to the host.
    os.fchdir(old_fd)
    mount(None, ".", None, MountFlag.SLAVE | MountFlag.REC)
    umount2(".", MNT_DETACH)
    os.close(old_fd)
    os.chdir("/")
    if shared:
        mount(None, "/", None, MountFlag.SHARED)


def move(tree_fd: int) -> None:
    """Change root, where pivot_root cannot be: the host's root is a ramfs, or others are to keep theirs."""
    os.fchdir(tree_fd)
    os.chroot(".")
    os.chdir("/")


def move_to(namespace_fd: int, tree_fd: int, place_fd: int) -> None:
    """Enter another mount namespace, attach a copy of the root there on an empty directory, and change root to it.

    Whoever is there sees all of the root at once, and keeps his own. A mount of its own below it, a private one, has
    the root's mounts stay as shared as they are. Raises OciError.
    """
    copy_fd = open_tree(tree_fd, "", OPEN_TREE_CLONE | AT_RECURSIVE)
    try:
        setns(namespace_fd, Clone.NEWNS)
        base_fd = open_tree(place_fd, "", OPEN_TREE_CLONE)
        move_mount(base_fd, place_fd)
        mount_setattr(base_fd, propagation=MountFlag.PRIVATE)
        move_mount(copy_fd, base_fd)
    except OSError as error:
        raise OciError(f"linux.namespaces: mount: {describe(error)}", error.errno or 0) from None
    os.close(place_fd)
    os.close(base_fd)
    move(copy_fd)
    os.close(copy_fd)


def make_readonly(tree_fd: int) -> None:
    """Make the root mount itself read-only; what is mounted in it keeps its own."""
    mount_setattr(tree_fd, attr_set=Attr.RDONLY)
