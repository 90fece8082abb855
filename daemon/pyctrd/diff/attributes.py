"""Owner, mode, extended attributes and times of what a layer brings."""

import errno
import os
import stat

from pyctrd.diff.tar_stream import Entry

_SPECIAL_BITS = stat.S_ISUID | stat.S_ISGID
# Later times do not fit into 64 bits of nanoseconds; containerd takes those for 1970 too.
_MAX_TIME_NS = (1 << 63) - 1
# Attributes that steer overlayfs are never an image's business. The others of trusted and security take
# privileges that an unpacker should not have and mean something to one machine only: capabilities excepted.
_IGNORED = (b"trusted.", b"user.overlay.", b"security.")
_CAPABILITY = b"security.capability"


def dress(fd: int, entry: Entry, *, untouched: bool) -> None:
    """Give the file or directory `fd` (borrowed) the owner, mode and attributes of `entry`.

    `untouched` says that the call that made it had the last word on owner (ours, 0:0) and mode.
    """
    chown = entry.uid or entry.gid or not untouched
    if chown:
        os.fchown(fd, entry.uid, entry.gid)
    if entry.xattrs:
        for name, value in entry.xattrs.items():
            set_xattr(fd, name, value)
    # After the owner, whose change takes away these bits.
    if chown or entry.mode & _SPECIAL_BITS:
        os.fchmod(fd, entry.mode)


def dress_by_name(name: bytes, dir_fd: int, entry: Entry) -> None:
    """Give the entry `name` of `dir_fd` (borrowed) what `entry` says, times too, without opening it.

    Opening a device or a FIFO would have consequences; a symlink has no mode.
    """
    os.chown(name, entry.uid, entry.gid, dir_fd=dir_fd, follow_symlinks=False)
    if entry.xattrs:
        os.fchdir(dir_fd)  # there is no call that takes a directory and a name
        for key, value in entry.xattrs.items():
            set_xattr(name, key, value)
    if not stat.S_ISLNK(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
        os.chmod(name, entry.mode, dir_fd=dir_fd)
    os.utime(name, ns=times(entry), dir_fd=dir_fd, follow_symlinks=False)


def copy(from_fd: int, to_fd: int) -> tuple[int, int]:
    """Give the directory `to_fd` owner, mode and attributes of `from_fd` (both borrowed); return its times in ns."""
    status = os.fstat(from_fd)
    os.fchown(to_fd, status.st_uid, status.st_gid)
    for name in os.listxattr(from_fd):
        set_xattr(to_fd, os.fsencode(name), os.getxattr(from_fd, name))
    os.fchmod(to_fd, stat.S_IMODE(status.st_mode))
    return status.st_atime_ns, status.st_mtime_ns


def set_xattr(target: int | bytes, name: bytes, value: bytes) -> None:
    """Set an extended attribute on an fd (borrowed) or a name in the current directory; skip what cannot be.

    Not every file system has them, and special files and symlinks have no user attributes.
    """
    if name.startswith(_IGNORED) and name != _CAPABILITY:
        return
    try:
        if isinstance(target, int):
            os.setxattr(target, name, value)
        else:
            os.setxattr(target, name, value, follow_symlinks=False)
    except OSError as error:
        special = isinstance(target, bytes) and name.startswith(b"user.") and error.errno == errno.EPERM
        if error.errno != errno.EOPNOTSUPP and not special:
            raise


def times(entry: Entry) -> tuple[int, int]:
    """Return access and modification time in ns for utime; what is before 1970 or absurdly late becomes 1970."""
    mtime, atime = entry.mtime_ns, entry.atime_ns
    mtime = mtime if 0 <= mtime <= _MAX_TIME_NS else 0
    atime = atime if 0 <= atime <= _MAX_TIME_NS else 0
    return max(atime, mtime), mtime
