"""A terminal for the container's process: a pty of the container's own devpts."""

import fcntl
import os
import stat
import struct
import termios
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from pyctr_shim.oci.devices import open_dev
from pyctr_shim.oci.errors import OciError
from pyctr_sys.mount import OPEN_TREE_CLONE, move_mount, open_tree
from pyctr_sys.openat2 import O_PATH, open_in_root

_TIOCSPTLCK: Final = 0x40045431
_TIOCGPTPEER: Final = 0x5441
_PTMX_DEVICE: Final = os.makedev(5, 2)


def size_of(process: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return process.consoleSize as (columns, rows), None if the spec has none."""
    box = process.get("consoleSize")
    return (box.get("width") or 0, box.get("height") or 0) if box else None


def open_pair(root_fd: int, size: tuple[int, int] | None) -> tuple[int, int]:
    """Return the master and the other side of a new pty, `size` in (columns, rows).

    The other side comes from the master itself (TIOCGPTPEER): no name is looked up that the image
    could have put elsewhere. Raises OciError if /dev/pts/ptmx is not the kernel's.
    """
    try:
        master_fd = open_in_root(root_fd, "/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW)
    except OSError as error:
        raise OciError(f"process.terminal: /dev/pts/ptmx: {error.strerror}", error.errno or 0) from None
    status = os.fstat(master_fd)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _PTMX_DEVICE:
        os.close(master_fd)
        raise OciError("process.terminal: /dev/pts/ptmx is not the pty multiplexer")
    fcntl.ioctl(master_fd, _TIOCSPTLCK, struct.pack("i", 0))
    peer_fd = fcntl.ioctl(master_fd, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    if size:
        columns, rows = size
        fcntl.ioctl(master_fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    return master_fd, peer_fd


def bind_console(root_fd: int, peer_fd: int) -> None:
    """Show the pty as /dev/console, which may be there but is no link: it would be another file that is covered."""
    dev_fd = open_dev(root_fd)
    with suppress(FileExistsError):
        os.close(os.open("console", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=dev_fd))
    target_fd = os.open("console", O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dev_fd)
    os.close(dev_fd)
    if not _is_plain(target_fd):
        os.close(target_fd)
        raise OciError("process.terminal: /dev/console of the container is neither a file nor a device")
    tree_fd = open_tree(peer_fd, "", OPEN_TREE_CLONE)
    move_mount(tree_fd, target_fd)
    os.close(tree_fd)
    os.close(target_fd)


def take(peer_fd: int, uid: int) -> None:
    """Make the pty the controlling terminal and fds 0 to 2, owned by `uid`; the session is new."""
    try:
        os.fchown(peer_fd, uid, -1)
    except OSError as error:
        raise OciError(f"process.terminal: giving it to uid {uid}: {error.strerror}", error.errno or 0) from None
    for fd in (0, 1, 2):
        os.dup2(peer_fd, fd, inheritable=True)
    os.close(peer_fd)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _is_plain(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISREG(mode) or stat.S_ISCHR(mode)
