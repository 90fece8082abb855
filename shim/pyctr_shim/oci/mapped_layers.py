"""A root whose layers are shown with other owners than they have on disk, for a container with a user namespace.

A snapshotter asks for it by the options `uidmap=` and `gidmap=` (CONTAINER:HOST:SIZE, several joined by commas). What
is read-only, a bind mount or an overlay's lower directories, is mounted id-mapped; the directory that is written to
has the container's owners on disk. Source: mount_setattr(2), kernel Documentation/filesystems/overlayfs.rst.
"""

import errno
import os

from pyctr_shim.oci import namespaces
from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.mount_options import MountOptions
from pyctr_sys.mount import AT_FDCWD, OPEN_TREE_CLONE, Attr, MountFlag, mount, mount_setattr, move_mount, open_tree
from pyctr_sys.openat2 import O_PATH
from pyctr_sys.process import file_system_type


def mount_mapped(kind: str, source: str, target_fd: int, options: MountOptions, maps: dict[str, str]) -> None:
    """Mount a bind mount or an overlay on a directory (borrowed), its layers mapped. Raises OciError, OSError."""
    namespace_fd = namespaces.with_maps(_parse("uidmap", maps), _parse("gidmap", maps))
    try:
        if options.is_bind or kind == "bind":
            attributes = Attr.RDONLY if options.flags & MountFlag.RDONLY else 0
            os.close(_attach(source, target_fd, namespace_fd, attributes))
        elif kind == "overlay":
            _mount_overlay(target_fd, options, namespace_fd)
        else:
            raise OciError(f"rootfs: a mount of type {kind!r} cannot be id-mapped")
    finally:
        os.close(namespace_fd)


def _mount_overlay(target_fd: int, options: MountOptions, namespace_fd: int) -> None:
    """Mount the lower directories, one over the other, where the overlay will cover them, and name them by fd."""
    before = os.open(".", O_PATH | os.O_CLOEXEC)
    layers: list[int] = []
    try:
        words = []
        for field in options.data.split(","):
            name, _, value = field.partition("=")
            if name == "lowerdir":
                layers = [_attach(path, target_fd, namespace_fd, 0) for path in value.split(":")]
                field = "lowerdir=" + ":".join(map(str, layers))
            words.append(field)
        os.chdir("/proc/self/fd")
        mount("overlay", f"/proc/self/fd/{target_fd}", "overlay", options.flags, ",".join(words))
    finally:
        os.fchdir(before)
        for fd in (before, *layers):
            os.close(fd)


def _attach(source: str, target_fd: int, namespace_fd: int, attributes: int) -> int:
    """Mount a directory id-mapped and return an fd of it. Raises OciError where its file system cannot."""
    tree_fd = open_tree(AT_FDCWD, source, OPEN_TREE_CLONE)
    try:
        mount_setattr(tree_fd, attr_set=Attr.IDMAP | attributes, idmap_fd=namespace_fd)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EPERM}:
            raise
        text = (
            f"rootfs: {source}: its file system (type {file_system_type(tree_fd):#x}) cannot be id-mapped;"
            " the snapshotter native changes the owners of a copy instead"
        )
        raise OciError(text, error.errno) from None
    move_mount(tree_fd, target_fd)  # on top of what is mounted there already
    return tree_fd


def _parse(name: str, texts: dict[str, str]) -> list[dict[str, int]]:
    """Return a map as the spec has it; without one, every id is its own."""
    if name not in texts:
        return [{"containerID": 0, "hostID": 0, "size": 0xFFFFFFFF}]
    maps = []
    for item in texts[name].split(","):
        parts = item.split(":")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise OciError(f"rootfs: mount option {name}: {item!r} is not CONTAINER:HOST:SIZE")
        maps.append(dict(zip(("containerID", "hostID", "size"), map(int, parts), strict=True)))
    return maps
