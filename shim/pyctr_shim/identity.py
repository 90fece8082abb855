"""Who a shim is: what it was told when it was started, and what it inherits from the process that made it.

Paths are plain strings in whatever every shim runs: each Python object that is touched after the fork copies the
page that it lies on, and pathlib alone touches forty of them.
"""

import os
from collections.abc import Callable
from typing import Final, NamedTuple

from pyctr_sys.signalfd import take_over_signals


class Identity(NamedTuple):
    """A shim's parameters; `instance` tells two shims of one container id apart, empty under a foreign daemon."""

    namespace: str
    id: str
    bundle: str
    socket: str
    attach: str
    ttrpc_address: str
    grpc_address: str
    instance: str
    log_level: str


class Inheritance(NamedTuple):
    """What is made once before the fork.

    A signalfd that is inherited tells each process of its own signals. Source: signalfd(2).
    """

    boot_id: str
    signal_fd: int


def make_inheritance() -> Inheritance:
    """Read the boot id and take over all signals: they are blocked, and read from a descriptor, from now on."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot_id = file.read().strip()
    return Inheritance(boot_id, take_over_signals())


def write_file(path: str, data: bytes, settle: Callable[[int], None] | None = None) -> None:
    """Put a file in place whole or not at all, mode 0600. Raises OSError.

    `settle` gets its descriptor before the rename: os.fsync, which costs nothing on a tmpfs, for what must outlive
    a power cut.
    """
    directory, _, name = path.rpartition("/")
    temporary = f"{directory}/.{name}"
    fd = os.open(temporary, _NEW_FILE, 0o600)
    try:
        while data:  # the last blocks of a disk take a part
            data = data[os.write(fd, data) :]
        if settle is not None:
            settle(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)


_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
