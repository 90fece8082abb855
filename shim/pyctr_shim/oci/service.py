"""What systemd gives a service whose program is the runtime, handed on to the container.

    $LISTEN_FDS       sockets, fds from 3 on: the container's first process has them under the same numbers
    $NOTIFY_SOCKET    /run/notify/notify.sock for the container, bound in <state directory>/notify by who starts it,
                      and passes on that it is ready and which process is to be watched

Source: sd_listen_fds(3), sd_notify(3), sd_notify_barrier(3).
"""

import array
import errno
import os
import select
import socket
from typing import Any, Final, NamedTuple, Self

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
        options = ["bind", "nosuid", "noexec", "nodev", "ro"]
        mounts.append({"destination": _INSIDE, "type": "bind", "source": folder, "options": options})
    return Service(number, tuple(env), tuple(mounts))


def sockets() -> int:
    """Return how many sockets are meant for this process, not for one whose environment it has inherited."""
    number = os.environ.get("LISTEN_FDS", "")
    return int(number) if number.isdigit() and os.environ.get("LISTEN_PID") == str(os.getpid()) else 0


class Readiness:
    """Hears from the container that it is ready, and tells the service manager; a context manager."""

    def __init__(self, state_directory: str) -> None:
        """Bind the container's socket, if it was made with one and somebody is to be told."""
        self._server: socket.socket | None = None
        folder = os.path.join(state_directory, _FOLDER)
        if not os.environ.get("NOTIFY_SOCKET") or not os.path.isdir(folder):
            return
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._server = socket.socket(socket.AF_UNIX, _DATAGRAMS)
        try:
            self._server.bind(f"/proc/self/fd/{folder_fd}/{_NAME}")  # short enough, whatever the directory's length
            os.chmod(_NAME, 0o777, dir_fd=folder_fd)  # noqa: S103 - the container's users are not root
        except OSError as error:
            self._server.close()
            self._server = None
            if error.errno != errno.EADDRINUSE:  # it has been started before, which who starts it will find out
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
        if self._server is None:
            return
        server_fd = self._server.fileno()
        while server_fd in select.select([server_fd, pidfd], [], [])[0]:
            words = os.read(server_fd, _DATAGRAM_BYTES).split(b"\n")
            if ready := [word for word in words if word.startswith(_READY)]:
                _tell(b"\n".join([*ready, b"MAINPID=%d" % main_pid]))
                return


def _tell(words: bytes) -> None:
    """Tell the service manager, and wait until it has read it: then this process may end."""
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
        select.select([read_fd], [], [], _BARRIER_SECONDS)
        os.close(read_fd)
