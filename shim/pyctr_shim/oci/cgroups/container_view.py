"""A container's own view of its cgroups: what a mount of type `cgroup` shows."""

import os
from typing import Final

from pyctr_shim.oci.cgroups.manager import Cgroup, Hierarchies
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
from pyctr_sys.openat2 import O_PATH, make_directories, open_in_root
from pyctr_sys.process import file_system_type

_CGROUP2_MAGIC: Final = 0x63677270  # source: linux/magic.h


def mount_view(
    root_fd: int, destination: str, flags: int, cgroup: Cgroup, hierarchies: Hierarchies, *, own_namespace: bool
) -> None:
    """Mount the container's cgroups at `destination`. Raises OSError.

    On version 1 a tmpfs with a directory per hierarchy. With a cgroup namespace of its own the container gets new
    mounts, whose root is its cgroup; without, a bind mount of its cgroup's directory only. Version 2 shows the whole
    tree then, as other runtimes do, unless the container's user namespace may not mount that: then its own too.
    """
    target_fd = make_directories(root_fd, destination)
    here = f"/proc/self/fd/{target_fd}"
    if hierarchies.is_v2:
        if file_system_type(target_fd) == _CGROUP2_MAGIC:
            # /sys is the host's, with its cgroups, and the kernel mounts no file system on itself.
            mount("tmpfs", here, "tmpfs", flags & ~MountFlag.RDONLY, "mode=755")
            os.close(target_fd)
            target_fd = open_in_root(root_fd, destination, O_PATH | os.O_DIRECTORY)
            here = f"/proc/self/fd/{target_fd}"
        try:
            mount("cgroup", here, "cgroup2", flags)
        except PermissionError:
            if own_namespace:
                raise
            _bind(hierarchies.unified + cgroup.path, target_fd, flags)
        os.close(target_fd)
        return
    mount("tmpfs", here, "tmpfs", flags & ~MountFlag.RDONLY, "mode=755")
    os.close(target_fd)
    for mount_point in dict.fromkeys(hierarchies.controllers.values()):
        controllers = [name for name, where in hierarchies.controllers.items() if where == mount_point]
        name = os.path.basename(mount_point)
        target_fd = make_directories(root_fd, f"{destination}/{name}")
        if own_namespace:
            options = ",".join(f"none,{item}" if item.startswith("name=") else item for item in controllers)
            mount("cgroup", f"/proc/self/fd/{target_fd}", "cgroup", flags, options)
        else:
            _bind(mount_point + cgroup.path, target_fd, flags)
        os.close(target_fd)
        _link_single_names(root_fd, destination, name, controllers)
    if flags & MountFlag.RDONLY:
        mounted_fd = open_in_root(root_fd, destination, O_PATH | os.O_DIRECTORY)
        mount_setattr(mounted_fd, attr_set=Attr.RDONLY)
        os.close(mounted_fd)


def _bind(directory: str, target_fd: int, flags: int) -> None:
    """Show one cgroup's directory, and what is below it, at a target (borrowed)."""
    tree_fd = open_tree(AT_FDCWD, directory, OPEN_TREE_CLONE)
    mount_setattr(
        tree_fd,
        attr_set=Attr.NOSUID | Attr.NODEV | Attr.NOEXEC | (Attr.RDONLY if flags & MountFlag.RDONLY else 0),
        propagation=MountFlag.SLAVE,
    )
    move_mount(tree_fd, target_fd)
    os.close(tree_fd)


def _link_single_names(root_fd: int, destination: str, name: str, controllers: list[str]) -> None:
    """Make `cpu` a link to `cpu,cpuacct`, as on the host."""
    if len(controllers) < 2:
        return
    parent_fd = open_in_root(root_fd, destination, O_PATH | os.O_DIRECTORY)
    for controller in controllers:
        if controller != name:
            os.symlink(name, controller, dir_fd=parent_fd)
    os.close(parent_fd)
