"""Network namespaces that outlive every process in them, each held by a mount on a file.

    <directory>/cni-<uuid>          a network namespace
    <directory>/cni-<uuid>.user     the user namespace that owns it, where that is not the host's

Source: network_namespaces(7), user_namespaces(7), ioctl_nsfs(2); netdevice(7) for `lo`.
"""

import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Final, NamedTuple, TypeVar

from pyctr_sys.mount import MNT_DETACH, MountFlag, mount, umount2
from pyctr_sys.namespaces import Clone, setns, unshare
from pyctr_sys.process import file_system_type
from pyctrd.log import Logger

_T = TypeVar("_T")

_PREFIX: Final = "cni-"
_USER_SUFFIX: Final = ".user"
_NSFS_MAGIC: Final = 0x6E736673
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_IFREQ: Final = struct.Struct("16sh22x")
# Makes namespaces, says so and waits for its standard input to end.
_OWNER: Final = (
    "import sys; sys.path[:] = sys.argv[1:]\n"
    "from pyctr_sys.namespaces import Clone, unshare\n"
    "unshare(Clone.NEWUSER | Clone.NEWNET); print('made', flush=True); sys.stdin.read()"
)
_OWNER_SECONDS: Final = 30

_log = Logger("pyctrd.network")


class IdMap(NamedTuple):
    """A range of ids in a user namespace, and where it begins outside."""

    container: int
    host: int
    size: int


class NetworkNamespaces:
    """The namespaces of a directory, which is this object's own. All calls block."""

    def __init__(self, directory: Path) -> None:
        """Keep them in `directory`, which is made when it is needed. It should not outlive a reboot."""
        self._directory = directory

    def create(self) -> Path:
        """Return the path of a new namespace, in which `lo` is up. Raises OSError; nothing is left then."""
        return self._pinned(lambda path: in_thread(lambda: _make(path)))

    def create_owned(self, uids: Collection[IdMap], gids: Collection[IdMap]) -> Path:
        """Return the path of a new namespace that belongs to a new user namespace with these mappings.

        The user namespace is at `user_namespace(path)`. Raises OSError; nothing is left then.
        """
        return self._pinned(lambda path: _make_owned(path, self.user_namespace(path), uids, gids))

    @staticmethod
    def user_namespace(path: Path) -> Path:
        """Return where the user namespace is that `create_owned` made with the network namespace at `path`."""
        return path.with_name(path.name + _USER_SUFFIX)

    def remove(self, path: Path) -> None:
        """Let go of a namespace, which may be gone. Its interfaces go with it when no process is in it any more."""
        for one in (path, self.user_namespace(path)):
            _unpin(one)

    def sweep(self, wanted: Collection[Path]) -> list[Path]:
        """Remove all but the `wanted`: what a crash left. Return what was removed."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        kept = {path.name for path in wanted}
        found = [self._directory / name for name in names if name.startswith(_PREFIX)]
        strays = [path for path in found if path.name.removesuffix(_USER_SUFFIX) not in kept]
        for path in strays:
            _log.info("netns.swept", path=str(path))
            _unpin(path)
        return strays

    def _pinned(self, make: Callable[[Path], None]) -> Path:
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        path = self._directory / f"{_PREFIX}{uuid.uuid4()}"
        try:
            make(path)
        except BaseException:
            self.remove(path)
            raise
        return path


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


def _make(path: Path) -> None:
    """Move the calling thread into a new network namespace that `path` holds."""
    unshare(Clone.NEWNET)
    set_loopback_up()
    _pin("/proc/thread-self/ns/net", path)


def _make_owned(path: Path, user_path: Path, uids: Collection[IdMap], gids: Collection[IdMap]) -> None:
    # A thread cannot enter a user namespace, as its process has others.
    with subprocess.Popen(
        (sys.executable, "-I", "-S", "-c", _OWNER, *filter(None, sys.path)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
        env={},
    ) as owner:
        try:
            assert owner.stdout is not None
            if not owner.stdout.readline():
                raise OSError(f"no user namespace could be made: status {owner.wait(_OWNER_SECONDS)}")
            for name, maps in (("uid_map", uids), ("gid_map", gids)):
                lines = "".join(f"{one.container} {one.host} {one.size}\n" for one in maps)
                Path(f"/proc/{owner.pid}/{name}").write_text(lines)
            _pin(f"/proc/{owner.pid}/ns/user", user_path)
            _pin(f"/proc/{owner.pid}/ns/net", path)
        finally:
            owner.send_signal(signal.SIGKILL)
    inside(path, set_loopback_up)


def set_loopback_up() -> None:
    """Set `lo` up, in the calling thread's network namespace; the kernel gives it its addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        _, flags = _IFREQ.unpack(fcntl.ioctl(control, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))
        fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))


def _pin(namespace: str, path: Path) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    mount(namespace, str(path), None, MountFlag.BIND)


def _unpin(path: Path) -> None:
    # Twice, if somebody else has mounted it again. EINVAL: it is mounted no more.
    with suppress(OSError):
        while True:
            umount2(str(path), MNT_DETACH)
    path.unlink(missing_ok=True)
