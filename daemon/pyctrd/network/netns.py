"""Being in a network namespace, and what its loopback device needs.

Source: network_namespaces(7), ioctl_nsfs(2); netdevice(7) for `lo`.
"""

import fcntl
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Final, TypeVar

from pyctr_sys.namespaces import Clone, setns
from pyctr_sys.process import file_system_type

_T = TypeVar("_T")

_NSFS_MAGIC: Final = 0x6E736673
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_IFREQ: Final = struct.Struct("16sh22x")


def is_open(path: Path) -> bool:
    """Return whether there is a namespace at `path`, and not only the file that it was mounted on."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return file_system_type(fd) == _NSFS_MAGIC
    finally:
        os.close(fd)


def inside(path: Path, function: Callable[[], _T]) -> _T:
    """Return `function()`, called in a thread of its own in the network namespace at `path`.

    A socket that it makes belongs to that namespace for good. Raises OSError if the namespace cannot be entered,
    and what `function` raises.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def enter() -> _T:
        setns(fd, Clone.NEWNET)
        return function()

    try:
        return in_thread(enter)
    finally:
        os.close(fd)


def in_thread(function: Callable[[], _T]) -> _T:
    """Return what `function` does, in a thread that ends with it: it may change the thread's namespaces."""
    outcome: list[_T] = []
    failure: list[BaseException] = []

    def call() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            failure.append(error)

    thread = Thread(target=call, name="netns", daemon=True)
    thread.start()
    thread.join()
    if failure:
        try:
            raise failure[0]
        finally:
            failure.clear()  # its traceback knows this frame
    return outcome[0]


def set_loopback_up() -> None:
    """Set `lo` up, in the calling thread's network namespace; the kernel gives it its addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        _, flags = _IFREQ.unpack(fcntl.ioctl(control, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))
        fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))
