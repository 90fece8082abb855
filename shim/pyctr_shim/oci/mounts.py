"""The mounts of a spec, below the container's root.

A target is opened with openat2 and mounted on by its fd, so nothing that a container's files or a
racing neighbour do to names can redirect it. What is bind-mounted is opened as a detached copy in
the runtime's own mount namespace, gets its attributes while nobody can reach it, and is never
writable in between.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pyctr_shim.oci import lsm, mount_options, namespaces
from pyctr_shim.oci.errors import OciError, describe
from pyctr_shim.oci.mount_options import MountOptions
from pyctr_sys.mount import (
    AT_FDCWD,
    AT_RECURSIVE,
    OPEN_TREE_CLONE,
    Attr,
    MountFlag,
    mount,
    mount_setattr,
    move_mount,
    new_file_system,
    open_tree,
)
from pyctr_sys.openat2 import O_PATH, Resolve, is_directory, make_directories, make_file, open_in_root, openat2
from pyctr_sys.process import PROC_SUPER_MAGIC, file_system_type

# Files of /proc that may be replaced, as lxcfs does. Source: runc's list.
_PROC_REPLACEABLE: Final = {
    "/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime", "/proc/loadavg",
    "/proc/slabinfo", "/proc/net/dev", "/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled",
}  # fmt: skip
# These take no context= option, or are not the container's alone.
_UNLABELLED: Final = {"proc", "sysfs", "mqueue", "cgroup", "cgroup2"}
# Source: statvfs(3); those of one mount, which a user namespace may find locked.
_STATVFS_FLAGS: Final = (
    (0x1, MountFlag.RDONLY), (0x2, MountFlag.NOSUID), (0x4, MountFlag.NODEV), (0x8, MountFlag.NOEXEC),
    (0x400, MountFlag.NOATIME), (0x800, MountFlag.NODIRATIME), (0x1000, MountFlag.RELATIME),
)  # fmt: skip
# Flags of mount(2) that are the file system's, not the mount's, as fsconfig(2) has them.
_SUPERBLOCK_FLAGS: Final = (
    (MountFlag.RDONLY, "ro"), (MountFlag.SYNCHRONOUS, "sync"), (MountFlag.DIRSYNC, "dirsync"),
    (MountFlag.LAZYTIME, "lazytime"),
)  # fmt: skip
# File systems that belong to a namespace: who shares the host's and is no root of its owner may not mount them.
_HOSTS: Final = {"sysfs": "/sys", "mqueue": "/dev/mqueue"}
_SHOWN: Final = 200
DEFAULT_DEV: Final[Mapping[str, Any]] = {
    "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
    "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlannedMount:
    """A mount of the spec with its options parsed and, for a bind mount, its source open."""

    destination: str
    kind: str
    source: str
    options: MountOptions
    tree_fd: int  # what is to be mounted, if it is there already: of a bind mount, of a proc where a stub has made it
    label: str = ""  # SELinux's, for a new file system

    @property
    def context(self) -> str:
        """The label, if it is one of a new file system's options."""
        return "" if self.kind in _UNLABELLED else self.label


def plan(
    mounts: Iterable[Mapping[str, Any]], bundle: str, label: str, user_namespace: Callable[[], int]
) -> list[PlannedMount]:
    """Parse the mounts and open what they bind, in the runtime's mount namespace and with its privileges.

    A container without a mount on /dev gets a fresh one: the image's own is never used. New file systems get the
    SELinux `label`, if there is one. `user_namespace` returns an fd, the caller's, of one with the container's maps.
    """
    mounts = list(mounts)
    if not any(clean(item["destination"]) == "/dev" for item in mounts):
        mounts.insert(0, DEFAULT_DEV)
    planned = []
    for item in mounts:
        options = mount_options.parse(item.get("options") or ())
        kind = item.get("type") or ("bind" if options.is_bind else "")
        if kind == "bind" and not options.is_bind:
            options = mount_options.parse([*(item.get("options") or ()), "bind"])
        source = item.get("source") or kind
        tree_fd = -1
        mapped = bool(options.idmap or item.get("uidMappings"))
        if options.is_bind and not options.flags & MountFlag.REMOUNT:
            tree_fd = _open_source(os.path.join(bundle, source), options)
            if mapped:
                _map_ids(tree_fd, item, options, user_namespace)
        elif mapped:
            raise OciError(f"mounts: {item['destination']}: only a bind mount can be id-mapped")
        planned.append(PlannedMount(clean(item["destination"]), kind, source, options, tree_fd, label))
    return planned


def without_effect(planned: Iterable[PlannedMount]) -> list[str]:
    """Return a note for each bind mount with options of a file system, which is mounted already; mount(8) says so."""
    return [
        f"mounts: {item.destination}: {item.options.data[:_SHOWN]!r} has no effect on a bind mount"
        for item in planned
        if item.tree_fd >= 0 and item.options.data
    ]


def _map_ids(tree_fd: int, item: Mapping[str, Any], options: MountOptions, user_namespace: Callable[[], int]) -> None:
    """Show the files of a detached copy with other owners. Raises OciError where its file system cannot."""
    uids, gids = item.get("uidMappings"), item.get("gidMappings")
    namespace_fd = namespaces.with_maps(uids, gids) if uids and gids else user_namespace()
    try:
        mount_setattr(tree_fd, attr_set=Attr.IDMAP, recursive=options.idmap == "ridmap", idmap_fd=namespace_fd)
    except OSError as error:
        where = f"mounts: {item['destination']}: id-mapping {item.get('source')}"
        if error.errno == errno.EINVAL:
            kind = file_system_type(tree_fd)
            raise OciError(f"{where}: its file system (type {kind:#x}) cannot be id-mapped", errno.EINVAL) from None
        raise OciError(f"{where}: {error.strerror}", error.errno or 0) from None
    finally:
        os.close(namespace_fd)


def clean(path: str) -> str:
    """Return a path of the spec with one slash in front and nothing superfluous; normpath keeps a double slash."""
    return "/" + os.path.normpath("/" + path).lstrip("/")


def _open_source(source: str, options: MountOptions) -> int:
    recursive = AT_RECURSIVE if options.flags & MountFlag.REC else 0
    try:
        return open_tree(AT_FDCWD, source, OPEN_TREE_CLONE | recursive)
    except OSError as error:
        raise OciError(f"mounts: bind source {source}: {error.strerror}", error.errno or 0) from None


def mount_all(
    root_fd: int, planned: Sequence[PlannedMount], default_propagation: int, mount_cgroup: Callable[[str, int], None]
) -> None:
    """Mount everything below `root_fd` in the spec's order. Raises OciError naming the mount.

    `mount_cgroup` (destination, flags) shows the container its cgroups.
    """
    for item in planned:
        try:
            if item.tree_fd >= 0 and item.options.is_bind:
                _bind(root_fd, item, default_propagation)
            elif item.kind in {"cgroup", "cgroup2"}:
                mount_cgroup(item.destination, item.options.flags)
            elif item.options.flags & MountFlag.REMOUNT:
                _remount(root_fd, item)
            else:
                _mount_new(root_fd, item)
        except OSError as error:
            raise OciError(
                f'error mounting "{item.source}" to rootfs at "{item.destination}": {describe(error)}',
                error.errno or 0,
            ) from None


def _bind(root_fd: int, item: PlannedMount, default_propagation: int) -> None:
    if is_directory(item.tree_fd):
        target_fd = make_directories(root_fd, item.destination)
    else:
        target_fd = make_file(root_fd, item.destination)
        if is_directory(target_fd):
            raise NotADirectoryError(errno.ENOTDIR, "a file cannot be mounted onto a directory")
    _guard(root_fd, target_fd, item)
    set_attributes(item, default_propagation)
    move_mount(item.tree_fd, target_fd)
    os.close(target_fd)
    os.close(item.tree_fd)


def set_attributes(item: PlannedMount, default_propagation: int) -> None:
    """Give what a bind mount shows its attributes and propagation, before it is attached. Raises OSError."""
    options = item.options
    # The copy is still a peer of the host's mount: what the container unmounts must not reach the
    # host, unless it is to be shared with it.
    shared = any(kind & MountFlag.SHARED for kind in options.propagation)
    propagation = 0 if shared or default_propagation == MountFlag.SHARED else default_propagation
    if options.attributes or options.cleared_attributes:
        mount_setattr(item.tree_fd, attr_set=options.attributes, attr_clr=options.cleared_attributes)
    if propagation or options.recursive_set or options.recursive_clear:
        mount_setattr(
            item.tree_fd,
            attr_set=options.recursive_set,
            attr_clr=options.recursive_clear,
            propagation=propagation,
            recursive=True,
        )
    for kind in options.propagation:
        _set_propagation(item.tree_fd, kind)


def _mount_new(root_fd: int, item: PlannedMount) -> None:
    options = item.options
    data = options.data
    if item.kind in {"proc", "sysfs"}:
        target_fd = _ordinary_directory(root_fd, item)
    else:
        try:
            target_fd = open_in_root(root_fd, item.destination, O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            target_fd = make_directories(root_fd, item.destination)
        else:
            if item.kind == "tmpfs" and "mode=" not in data:  # it keeps what it covers, as in runc
                mode = f"mode={stat.S_IMODE(os.fstat(target_fd).st_mode):o}"
                data = f"{data},{mode}" if data else mode
        _guard(root_fd, target_fd, item)
    try:
        _mount_fresh(target_fd, item, data)
    except PermissionError:
        if item.kind not in _HOSTS:
            raise
        _show_hosts(target_fd, item)
    os.close(target_fd)


def _mount_fresh(target_fd: int, item: PlannedMount, data: str) -> None:
    options = item.options
    labelled = item.label and item.kind == "mqueue"  # it takes no context=
    changed = options.propagation or options.recursive_set or options.recursive_clear or options.copy_up or labelled
    if changed or item.tree_fd >= 0:
        # Known by its fd from the start: once it is mounted, its name may lead to something else.
        tree_fd = item.tree_fd
        if tree_fd < 0:
            tree_fd = new_file_system(item.kind, options_of(item, data), options.attributes)
        move_mount(tree_fd, target_fd)
        if options.recursive_set or options.recursive_clear:
            mount_setattr(tree_fd, attr_set=options.recursive_set, attr_clr=options.recursive_clear, recursive=True)
        for propagation in options.propagation:
            _set_propagation(tree_fd, propagation)
        if options.copy_up:
            copy_tree(target_fd, tree_fd)
        if labelled:
            os.setxattr(f"/proc/self/fd/{tree_fd}", lsm.SELINUX_ATTRIBUTE, item.label.encode())
        os.close(tree_fd)
    else:
        if item.context:
            data = lsm.with_context(data, item.context)
        mount(item.source, f"/proc/self/fd/{target_fd}", item.kind, options.flags, data or None)


def options_of(item: PlannedMount, data: str) -> dict[str, str | None]:
    """Return what mount(2) takes as source, flags and data in the form that fsconfig(2) takes."""
    words: dict[str, str | None] = {"source": item.source}
    words |= {name: None for flag, name in _SUPERBLOCK_FLAGS if item.options.flags & flag}
    for word in filter(None, data.split(",")):
        name, separator, value = word.partition("=")
        words[name] = value if separator else None
    if item.context:
        words["context"] = item.context
    return words


def _show_hosts(target_fd: int, item: PlannedMount) -> None:
    """Show what the host has mounted: with its namespace, root of a user namespace cannot mount it anew.

    We are on the host's root still, below what covers it.
    """
    tree_fd = open_tree(AT_FDCWD, _HOSTS[item.kind], OPEN_TREE_CLONE | AT_RECURSIVE)
    attributes = Attr.NOSUID | Attr.NODEV | Attr.NOEXEC | (Attr.RDONLY if item.options.flags & MountFlag.RDONLY else 0)
    mount_setattr(tree_fd, attr_set=attributes, propagation=MountFlag.SLAVE, recursive=True)
    move_mount(tree_fd, target_fd)
    os.close(tree_fd)


def _remount(root_fd: int, item: PlannedMount) -> None:
    """Change a mount's flags to those given; what its user namespace has locked stays."""
    fd = open_in_root(root_fd, item.destination)
    here, flags = f"/proc/self/fd/{fd}", item.options.flags
    try:
        mount(None, here, None, flags, item.options.data or None)
    except PermissionError:
        kept = _flags_of(fd) & ~item.options.cleared
        if kept & ~flags == 0:
            raise
        mount(None, here, None, flags | kept, item.options.data or None)
    os.close(fd)


def _flags_of(fd: int) -> int:
    """Return the flags of the mount behind `fd`, as mount(2) has them."""
    found = os.fstatvfs(fd).f_flag
    return sum(flag for seen, flag in _STATVFS_FLAGS if found & seen)


def _set_propagation(tree_fd: int, propagation: int) -> None:
    recursive = bool(propagation & MountFlag.REC)
    mount_setattr(tree_fd, propagation=propagation & ~MountFlag.REC, recursive=recursive)


def _ordinary_directory(root_fd: int, item: PlannedMount) -> int:
    """Return the target of a proc or sysfs: with a symlink in its path, later checks would look elsewhere."""
    strict = int(Resolve.IN_ROOT | Resolve.NO_SYMLINKS)
    try:
        return openat2(root_fd, item.destination, O_PATH | os.O_DIRECTORY, strict)
    except FileNotFoundError:
        os.close(make_directories(root_fd, item.destination))
        return openat2(root_fd, item.destination, O_PATH | os.O_DIRECTORY, strict)
    except OSError:
        raise OciError(f'filesystem "{item.kind}" must be mounted on ordinary directory: {item.destination}') from None


def _guard(root_fd: int, target_fd: int, item: PlannedMount) -> None:
    """Refuse to cover /proc or what is in it, where labels and sysctls are written later, and /dev by another name.

    A link of the image's that leads to /dev would have nodes and links be made in whatever is mounted on it.
    """
    if item.destination == "/proc":
        if item.tree_fd >= 0 and file_system_type(item.tree_fd) == PROC_SUPER_MAGIC:
            return
        raise OciError(f'"{item.source}" cannot be mounted at "/proc": it is not of type proc')
    if file_system_type(target_fd) == PROC_SUPER_MAGIC and item.destination not in _PROC_REPLACEABLE:
        raise OciError(f'"{item.destination}" cannot be mounted because it is inside /proc')
    if item.destination != "/dev" and _is_dev(root_fd, target_fd):
        raise OciError(f'"{item.destination}" cannot be mounted because it is a link to /dev')


def _is_dev(root_fd: int, target_fd: int) -> bool:
    try:
        dev_fd = open_in_root(root_fd, "/dev")
    except OSError:
        return False  # not there yet, or not to be used: see devices.open_dev
    try:
        return os.path.samestat(os.fstat(dev_fd), os.fstat(target_fd))
    finally:
        os.close(dev_fd)


def copy_tree(source_fd: int, target_fd: int) -> None:
    """Copy a directory's content with owners, modes, times and xattrs, by fds only."""
    readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=source_fd)
    try:
        for name in os.listdir(readable):
            _copy_entry(source_fd, target_fd, name)
    finally:
        os.close(readable)
    _copy_metadata(source_fd, target_fd)


def _copy_entry(source_fd: int, target_fd: int, name: str) -> None:
    status = os.stat(name, dir_fd=source_fd, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(name, dir_fd=source_fd), name, dir_fd=target_fd)
        os.chown(name, status.st_uid, status.st_gid, dir_fd=target_fd, follow_symlinks=False)
        return
    if stat.S_ISDIR(status.st_mode):
        os.mkdir(name, dir_fd=target_fd)
    elif stat.S_ISREG(status.st_mode):
        _copy_data(source_fd, target_fd, name)
        return
    else:
        os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target_fd)
    inner_source = os.open(name, O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source_fd)
    inner_target = os.open(name, O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=target_fd)
    try:
        if stat.S_ISDIR(status.st_mode):
            copy_tree(inner_source, inner_target)
        else:
            _copy_metadata(inner_source, inner_target)
    finally:
        os.close(inner_source)
        os.close(inner_target)


def _copy_data(source_fd: int, target_fd: int, name: str) -> None:
    reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source_fd)
    writer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target_fd)
    try:
        while os.sendfile(writer, reader, None, 1 << 20):
            pass
        _copy_metadata(reader, writer)
    finally:
        os.close(reader)
        os.close(writer)


def _copy_metadata(source_fd: int, target_fd: int) -> None:
    status = os.fstat(source_fd)
    source, target = f"/proc/self/fd/{source_fd}", f"/proc/self/fd/{target_fd}"  # both may be O_PATH
    os.chown(target, status.st_uid, status.st_gid)
    os.chmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        if name.startswith(("security.", "user.")):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
