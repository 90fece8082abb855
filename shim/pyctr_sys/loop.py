"""Loop devices: a file as a block device, and what `mount -o loop` does. Source: loop(4), linux/loop.h.

A device frees itself when it is closed by the last who has it open or mounted. A file has one device at most: a file
system that is mounted through two would not know of itself.
"""

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, flock, ioctl
from time import monotonic, sleep
from typing import Final

from pyctr_sys.mount import MountFlag, mount

_CONTROL: Final = "/dev/loop-control"
_BOUND: Final = "/sys/block"  # a device with a file has <name>/loop/backing_file
_CONFIGURE, _GET_STATUS, _GET_FREE = 0x4C0A, 0x4C05, 0x4C82
_READ_ONLY, _AUTOCLEAR = 1, 4
# struct loop_info64: device and inode of the file come first; the flags are the last of four words after five.
_INFO: Final = struct.Struct("5Q4I64s64s32s2Q")
_CONFIG: Final = struct.Struct(f"2I{_INFO.size}s64x")  # struct loop_config: file, block size, loop_info64


@contextmanager
def attached(path: str, *, read_only: bool = False) -> Iterator[str]:
    """Yield the name of a device that is the file `path`; it stays for as long as it is mounted. Raises OSError."""
    file_fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    try:
        device_fd, name = _attach(path, file_fd, read_only)
    finally:
        os.close(file_fd)
    try:
        yield name
    finally:
        os.close(device_fd)


def mount_file(path: str, target: str, kind: str, flags: int, data: str | None) -> None:
    """Mount the file system in the file `path`; "loop" in `data` is no option of its own. Raises OSError."""
    options = ",".join(option for option in (data or "").split(",") if option != "loop")
    with attached(path, read_only=bool(flags & MountFlag.RDONLY)) as device:
        mount(device, target, kind, flags, options or None)


def is_attached(path: str) -> bool:
    """Return whether some device is the file `path`, which is so while it is mounted. Raises OSError."""
    found = _find(os.stat(path), os.O_RDONLY)
    if found is None:
        return False
    os.close(found[0])
    return True


def wait_until_free(path: str, timeout: float) -> bool:
    """Wait until no device is the file `path`, for `timeout` seconds at most; return whether none is.

    The kernel lets go of a mount that is nowhere, or of a namespace that has ended, only some time later.
    """
    deadline = monotonic() + timeout
    while is_attached(path):
        if monotonic() > deadline:
            return False
        sleep(0.005)
    return True


def _attach(path: str, file_fd: int, read_only: bool) -> tuple[int, str]:  # noqa: FBT001 - of this module alone
    mode = os.O_RDONLY if read_only else os.O_RDWR
    # Through a description of its own: the device keeps the other one, and a lock would stay with that.
    lock_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flock(lock_fd, LOCK_EX)
        return _find(os.fstat(file_fd), mode) or _configure(file_fd, mode)
    finally:
        os.close(lock_fd)


def _configure(file_fd: int, mode: int) -> tuple[int, str]:
    flags = _AUTOCLEAR | (_READ_ONLY if mode == os.O_RDONLY else 0)
    info = _INFO.pack(*[0] * 8, flags, b"", b"", b"", 0, 0)
    control_fd = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            name = f"/dev/loop{ioctl(control_fd, _GET_FREE)}"
            device_fd = os.open(name, mode | os.O_CLOEXEC)
            try:
                ioctl(device_fd, _CONFIGURE, _CONFIG.pack(file_fd, 0, info))
            except OSError as error:
                os.close(device_fd)
                if error.errno != errno.EBUSY:  # somebody else was faster
                    raise OSError(error.errno, f"LOOP_CONFIGURE: {error.strerror}", name) from None
            else:
                return device_fd, name
    finally:
        os.close(control_fd)


def _find(status: os.stat_result, mode: int) -> tuple[int, str] | None:
    """Return an open device that is the file of that status, and its name."""
    major, minor = os.major(status.st_dev), os.minor(status.st_dev)
    wanted = (minor & 0xFF | major << 8 | (minor & ~0xFF) << 12, status.st_ino)  # as the kernel writes a device
    for entry in os.listdir(_BOUND):
        if not entry.startswith("loop") or not os.path.exists(f"{_BOUND}/{entry}/loop/backing_file"):
            continue
        name = f"/dev/{entry}"
        with suppress(OSError):  # ENXIO: it has just been freed
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)  # udev looks at what was opened for writing
            try:
                buffer = bytearray(_INFO.size)
                ioctl(fd, _GET_STATUS, buffer)
                if _INFO.unpack(buffer)[:2] == wanted:  # and it stays that while we have it open
                    return os.open(name, mode | os.O_CLOEXEC), name
            finally:
                os.close(fd)
    return None
