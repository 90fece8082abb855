"""What is in /dev: the nodes and links that every container has, and those of the spec."""

import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

from pyctr_shim.oci.errors import OciError
from pyctr_sys.mount import AT_FDCWD, OPEN_TREE_CLONE, move_mount, open_tree
from pyctr_sys.openat2 import O_PATH, Resolve, make_directories, make_file, open_in_root, openat2

_NODES: Final = (
    ("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0),
)  # fmt: skip
_LINKS: Final = (
    ("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"), ("ptmx", "pts/ptmx"),
)  # fmt: skip
_KINDS: Final = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
_STRICT: Final = int(Resolve.IN_ROOT | Resolve.NO_SYMLINKS)


def open_dev(root_fd: int) -> int:
    """Return an O_PATH fd of the container's /dev, which is no symlink."""
    return openat2(root_fd, "dev", O_PATH | os.O_DIRECTORY, _STRICT)


def open_host_nodes(devices: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return copies of the host's nodes by path in the container, for one that may not make its own.

    A user namespace cannot: its nodes are bind mounts. Runs in the runtime's mount namespace.
    """
    paths = {f"/dev/{name}": f"/dev/{name}" for name, _, _ in _NODES}
    for device in devices:
        if device["type"] == "p" or os.path.normpath(device["path"]) == "/dev/ptmx":
            continue  # anybody may make the one, which is no device; the other is a link to the container's own
        # The host's node of that kind and number, wherever the container wants it.
        folder = "block" if device["type"] == "b" else "char"
        paths[device["path"]] = f"/dev/{folder}/{device.get('major', 0)}:{device.get('minor', 0)}"
        if not os.path.exists(paths[device["path"]]):
            paths[device["path"]] = _node_of(device) or device["path"]
    nodes = {}
    for path, source in paths.items():
        try:
            nodes[path] = open_tree(AT_FDCWD, source, OPEN_TREE_CLONE)
        except OSError as error:
            raise OciError(f"linux.devices: {path}: {source}: {error.strerror}", error.errno or 0) from None
    return nodes


def _node_of(device: Mapping[str, Any]) -> str:
    """Return the host's node of a device where udev has made no links by number; "" if there is none."""
    number = os.makedev(device.get("major", 0), device.get("minor", 0))
    for folder, _, names in os.walk("/dev"):
        for name in names:
            status = os.lstat(path := os.path.join(folder, name))
            if stat.S_IFMT(status.st_mode) == _KINDS[device["type"]] and status.st_rdev == number:
                return path
    return ""


def populate(root_fd: int, devices: Iterable[Mapping[str, Any]], host_nodes: Mapping[str, int]) -> None:
    """Fill the container's fresh /dev. `host_nodes` is empty where nodes can be made."""
    dev_fd = open_dev(root_fd)
    try:
        if host_nodes:
            for path, tree_fd in host_nodes.items():
                _bind_node(root_fd, path, tree_fd)
        else:
            for name, major, minor in _NODES:
                os.close(_make_node(dev_fd, name, stat.S_IFCHR | 0o666, os.makedev(major, minor)))
        for device in devices:
            if not host_nodes or device["type"] == "p":
                _make_device(root_fd, device)
        _make_links(dev_fd)
    finally:
        os.close(dev_fd)


def _make_node(parent_fd: int, name: str, mode: int, device: int) -> int:
    """Make a node and return an O_PATH fd of it; one of the same kind and number may be there.

    It is in a devtmpfs, or if a spec lists /dev/null. What somebody has put in its place is none.
    """
    with suppress(FileExistsError):
        os.mknod(name, mode, device, dir_fd=parent_fd)
    fd = os.open(name, O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
    status = os.fstat(fd)
    if stat.S_IFMT(status.st_mode) != stat.S_IFMT(mode) or status.st_rdev != device:
        os.close(fd)
        raise OciError(f"linux.devices: {name} exists and is another kind of file")
    return fd


def _make_device(root_fd: int, device: Mapping[str, Any]) -> None:
    parent, _, name = os.path.normpath(device["path"]).rpartition("/")
    mode = device.get("fileMode")
    mode = 0o666 if mode is None else stat.S_IMODE(mode)
    number = os.makedev(device.get("major", 0), device.get("minor", 0)) if device["type"] != "p" else 0
    try:
        parent_fd = make_directories(root_fd, parent or "/")
        try:
            node_fd = _make_node(parent_fd, name, _KINDS[device["type"]] | mode, number)
        finally:
            os.close(parent_fd)
        node = f"/proc/self/fd/{node_fd}"
        os.chmod(node, mode)
        os.chown(node, device.get("uid") or 0, device.get("gid") or 0)
        os.close(node_fd)
    except OSError as error:
        raise OciError(f"linux.devices: {device['path']}: {error.strerror}", error.errno or 0) from None


def _bind_node(root_fd: int, path: str, tree_fd: int) -> None:
    target_fd = make_file(root_fd, path)
    move_mount(tree_fd, target_fd)
    os.close(target_fd)
    os.close(tree_fd)


def _make_links(dev_fd: int) -> None:
    for name, target in (*_LINKS, *((("core", "/proc/kcore"),) if os.path.exists("/proc/kcore") else ())):
        try:
            os.symlink(target, name, dir_fd=dev_fd)
        except FileExistsError:
            if name == "ptmx":  # a devtmpfs has a node here that belongs to the host's ptys
                os.unlink(name, dir_fd=dev_fd)
                os.symlink(target, name, dir_fd=dev_fd)


def open_null(root_fd: int) -> int:
    """Return an O_PATH fd of the container's /dev/null. Raises OciError if that is anything but the null device."""
    fd = open_in_root(root_fd, "/dev/null", O_PATH | os.O_NOFOLLOW)
    status = os.fstat(fd)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(1, 3):
        os.close(fd)
        raise OciError("/dev/null of the container is not the null device: nothing is masked with it")
    return fd
