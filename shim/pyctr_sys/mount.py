"""Mounting: mount(2), umount2(2), pivot_root(2) and the file-descriptor calls of Linux 5.2 and 5.12."""

import os
from enum import IntEnum

from pyctr_sys.calls import address, check, ffi, libc, named, syscall

AT_FDCWD = -100


class MountFlag(IntEnum):
    """Flags of mount(2); several are a plain number. Source: sys/mount.h."""

    RDONLY = 1 << 0
    NOSUID = 1 << 1
    NODEV = 1 << 2
    NOEXEC = 1 << 3
    SYNCHRONOUS = 1 << 4
    REMOUNT = 1 << 5
    MANDLOCK = 1 << 6
    DIRSYNC = 1 << 7
    NOSYMFOLLOW = 1 << 8
    NOATIME = 1 << 10
    NODIRATIME = 1 << 11
    BIND = 1 << 12
    MOVE = 1 << 13
    REC = 1 << 14
    SILENT = 1 << 15
    UNBINDABLE = 1 << 17
    PRIVATE = 1 << 18
    SLAVE = 1 << 19
    SHARED = 1 << 20
    RELATIME = 1 << 21
    I_VERSION = 1 << 23
    STRICTATIME = 1 << 24
    LAZYTIME = 1 << 25


class Attr(IntEnum):
    """Attributes of one mount, for mount_setattr and fsmount; several are a plain number. Source: linux/mount.h."""

    RDONLY = 0x01
    NOSUID = 0x02
    NODEV = 0x04
    NOEXEC = 0x08
    NOATIME = 0x10
    STRICTATIME = 0x20
    ATIME = 0x70
    NODIRATIME = 0x80
    IDMAP = 0x100000
    NOSYMFOLLOW = 0x200000


MNT_DETACH = 2
OPEN_TREE_CLONE = 1
AT_RECURSIVE = 0x8000
AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_MOVE_MOUNT_SET_GROUP = 0x100
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CREATE = 0, 1, 6
_EMPTY_TEXT = ffi.new("char[]", b"")
_EMPTY = address(_EMPTY_TEXT)


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mount a file system, or change a mount. Raises OSError. Source: mount(2)."""
    words = [ffi.NULL if word is None else os.fsencode(word) for word in (source, target, kind, data)]
    if libc.mount(words[0], words[1], words[2], flags, words[3]) < 0:
        check(-1, f"mount {kind or source or ''} ({named(MountFlag, flags)}, {data or ''!r})", target)


def umount2(target: str, flags: int = 0) -> None:
    """Detach what is mounted last on `target`. Raises OSError: EINVAL if nothing is. Source: umount(2)."""
    check(libc.umount2(os.fsencode(target), flags), "umount2", target)


def pivot_root(new_root: str, put_old: str) -> None:
    """Make `new_root` the root of this mount namespace. Raises OSError. Source: pivot_root(2)."""
    new, old = ffi.new("char[]", os.fsencode(new_root)), ffi.new("char[]", os.fsencode(put_old))
    check(syscall("pivot_root", address(new), address(old)), "pivot_root", new_root)


def open_tree(dir_fd: int, path: str, flags: int) -> int:
    """Return an fd for the mount at `path`, or with OPEN_TREE_CLONE for a detached copy of it.

    A copy disappears with its fd unless move_mount attaches it. Close-on-exec. Source: open_tree(2).
    """
    text = ffi.new("char[]", os.fsencode(path))
    empty = 0 if path else AT_EMPTY_PATH
    return check(syscall("open_tree", dir_fd, address(text), flags | empty | _OPEN_TREE_CLOEXEC), "open_tree", path)


def move_mount(tree_fd: int, target_fd: int) -> None:
    """Attach the mount behind `tree_fd` on the file or directory behind `target_fd`.

    `tree_fd` then stands for the attached mount. Raises OSError. Source: move_mount(2).
    """
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    if syscall("move_mount", tree_fd, _EMPTY, target_fd, _EMPTY, flags) < 0:
        check(-1, "move_mount")


def set_group(source_fd: int, target_fd: int) -> None:
    """Have the private mount behind `target_fd` share mounts with whomever the one behind `source_fd` shares them.

    Both are roots of mounts of one file system, in any mount namespaces. Raises OSError: EINVAL for a source that is
    private itself, or shows less than the target; also before Linux 5.15. Source: move_mount(2), MOVE_MOUNT_SET_GROUP.
    """
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH | _MOVE_MOUNT_SET_GROUP
    if syscall("move_mount", source_fd, _EMPTY, target_fd, _EMPTY, flags) < 0:
        check(-1, "move_mount (MOVE_MOUNT_SET_GROUP)")


def mount_setattr(
    tree_fd: int,
    *,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    recursive: bool = False,
    idmap_fd: int = 0,
) -> None:
    """Change attributes and propagation of the mount behind `tree_fd` in one step.

    Setting an access-time attribute clears the others first, as the kernel demands. `idmap_fd`
    (borrowed) is a user namespace for Attr.IDMAP. Raises OSError. Source: mount_setattr(2).
    """
    if (attr_set | attr_clr) & Attr.ATIME:
        attr_clr |= Attr.ATIME
    attributes = ffi.new("struct mount_attr *", (attr_set, attr_clr, propagation, idmap_fd))
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    size = ffi.sizeof("struct mount_attr")
    check(syscall("mount_setattr", tree_fd, _EMPTY, flags, address(attributes), size), "mount_setattr")


def new_file_system(kind: str, options: dict[str, str | None], attributes: int = 0) -> int:
    """Return an fd for a new, detached mount of file system type `kind`.

    Option values are limited to 255 bytes; None sets a flag. Raises OSError. Source: fsopen(2).
    """
    name = ffi.new("char[]", kind.encode())
    context = check(syscall("fsopen", address(name), _FSOPEN_CLOEXEC), "fsopen", kind)
    try:
        for key, value in options.items():
            key_text = ffi.new("char[]", key.encode())
            value_text = ffi.NULL if value is None else ffi.new("char[]", value.encode())
            command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            check(syscall("fsconfig", context, command, address(key_text), address(value_text), 0), f"fsconfig {key}")
        check(syscall("fsconfig", context, _FSCONFIG_CREATE, 0, 0, 0), "fsconfig create", kind)
        return check(syscall("fsmount", context, _FSMOUNT_CLOEXEC, attributes), "fsmount", kind)
    finally:
        os.close(context)
