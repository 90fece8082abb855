"""What systemd gives a service whose program is the runtime, handed on to the container.

    $LISTEN_FDS       sockets, fds from 3 on: the container's first process has them under the same numbers
    $NOTIFY_SOCKET    /run/notify/notify.sock for the container, bound in <state directory>/notify by who starts it,
                      and passes on that it is ready and which process is to be watched

Source: sd_listen_fds(3), sd_notify(3), sd_notify_barrier(3).
"""

import array
import os
import select
import socket
from contextlib import suppress
from typing import Any, Final, NamedTuple, Self

from pyctr_shim.oci import detached

_FOLDER: Final = "notify"
_NAME: Final = "notify.sock"
_INSIDE: Final = f"/run/{_FOLDER}"
_DATAGRAM_BYTES: Final = 1 << 16
_READY: Final = b"READY="
_BARRIER_SECONDS: Final = 30.0
_DATAGRAMS: Final = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC


class Service(NamedTuple):
    """What is handed on: so many sockets, and what is added to the spec's environment and mounts."""

    sockets: int = 0
    env: tuple[str, ...] = ()
    mounts: tuple[dict[str, Any], ...] = ()


NOTHING: Final = Service()


def given(state_directory: str) -> Service:
    """Return what this process was given, and make the place for the container's socket, if it gets one."""
    number, env, mounts = sockets(), [], []
    if number:
        env += [f"LISTEN_FDS={number}", "LISTEN_PID=1"]
    if os.environ.get("NOTIFY_SOCKET"):
        folder = os.path.join(state_directory, _FOLDER)
        os.mkdir(folder, 0o755)
        env.append(f"NOTIFY_SOCKET={_INSIDE}/{_NAME}")
        options = ["bind", "private", "nosuid", "noexec", "nodev", "ro"]  # what the container mounts there stays inside
        mounts.append({"destination": _INSIDE, "type": "bind", "source": folder, "options": options})
    return Service(number, tuple(env), tuple(mounts))


def has_socket(state_directory: str) -> bool:
    """Whether the container has a socket for its word of readiness."""
    return os.path.isdir(os.path.join(state_directory, _FOLDER))


def remove(state_directory: str) -> None:
    """Remove the container's socket; nothing happens if there is none. Raises OSError if something is mounted there."""
    folder = os.path.join(state_directory, _FOLDER)
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, _NAME))
    with suppress(FileNotFoundError):
        os.rmdir(folder)


def sockets() -> int:
    """Return how many sockets are meant for this process, not for one whose environment it has inherited."""
    number = os.environ.get("LISTEN_FDS", "")
    return int(number) if number.isdigit() and os.environ.get("LISTEN_PID") == str(os.getpid()) else 0


class Readiness:
    """Hears from a container that is about to be started that it is ready, and tells the service manager.

    A context manager.
    """

    def __init__(self, state_directory: str) -> None:
        """Bind the container's socket, if it was made with one, waits for its start, and somebody is to be told."""
        self._server: socket.socket | None = None
        self._ready: list[bytes] = []
        awaited = os.environ.get("NOTIFY_SOCKET") and detached.is_waiting(state_directory)
        if not awaited or not has_socket(state_directory):
            return
        folder_fd = os.open(os.path.join(state_directory, _FOLDER), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._server = socket.socket(socket.AF_UNIX, _DATAGRAMS)
        try:
            with suppress(FileNotFoundError):
                os.unlink(_NAME, dir_fd=folder_fd)  # of a start that failed
            self._server.bind(f"/proc/self/fd/{folder_fd}/{_NAME}")  # short enough, whatever the directory's length
            os.chmod(_NAME, 0o777, dir_fd=folder_fd)  # noqa: S103 - the container's users are not root
        except BaseException:
            self._server.close()
            raise
        finally:
            os.close(folder_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()

    @property
    def is_awaited(self) -> bool:
        """Whether there is anything to relay."""
        return self._server is not None

    def relay(self, pidfd: int, main_pid: int) -> None:
        """Wait for the word of readiness and pass it on, and that `main_pid` is to be watched.

        Returns then, and when the process behind `pidfd` has ended. Raises OSError if the manager cannot be reached.
        """
        while self._hear(pidfd):
            if self._ready:
                _tell(b"\n".join([*self._ready, b"MAINPID=%d" % main_pid]), pidfd)
                return

    def drain(self, pidfd: int) -> None:
        """Take what the container says until its end, so that it need not wait: its barriers fall by being read."""
        while self._hear(pidfd):
            pass

    def _hear(self, pidfd: int) -> bool:
        """Take what the container says next, and keep what is about readiness; False if it has ended instead."""
        if self._server is None:
            return False
        server_fd = self._server.fileno()
        if server_fd not in select.select([server_fd, pidfd], [], [])[0]:
            return False
        words = os.read(server_fd, _DATAGRAM_BYTES).split(b"\n")
        self._ready = [word for word in words if word.startswith(_READY)]
        return True


def _tell(words: bytes, pidfd: int) -> None:
    """Tell the service manager, and wait until it has read it, for then this process may end, or until `pidfd` has."""
    address = os.environ["NOTIFY_SOCKET"]
    if address.startswith("@"):
        address = f"\0{address[1:]}"
    with socket.socket(socket.AF_UNIX, _DATAGRAMS) as client:
        client.connect(address)
        client.send(words)
        read_fd, write_fd = os.pipe()
        try:
            client.sendmsg([b"BARRIER=1"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [write_fd]))])
        finally:
            os.close(write_fd)
        select.select([read_fd, pidfd], [], [], _BARRIER_SECONDS)
        os.close(read_fd)
