"""Replacing the daemon by a newer program while it works: what the two say to each other.

    old                                   new
    spawns the program, with one end      imports, starts its zygote
    of a SOCK_SEQPACKET pair
                                     ◄──  ready: pid, version
    holds calls back, lets those
    under way end, closes its stores
    take: the locks' descriptors     ──►  claims the locks, opens the stores, adopts the shims,
                                          serves at a path of its own, shows it at the public one
                                     ◄──  serving
    passes late calls through             loads the rest of its program
                                     ◄──  closes its end
    tells who asked, and ends when
    its connections are gone

Every message is one JSON datagram. If the new one ends before `take`, nothing has happened; if the old one does, the
new one finds the locks free and starts as ever. Whoever is told that it is done may install another program at once.
"""

import array
import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Self

from pyctr_wire.errors import FailedPrecondition

HANDOVER_FD: Final = 3
PROTOCOL: Final = 1
READY_TIMEOUT: Final = 60.0  # seconds to import everything, on a loaded machine
SERVING_TIMEOUT: Final = 60.0  # seconds to recover

_MAX_DATAGRAM: Final = 64 << 10
_MAX_FDS: Final = 8


class Serving(NamedTuple):
    """Who serves now."""

    pid: int
    version: str


class Successor:
    """The new daemon, seen from the old one."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        """Made by `spawn`."""
        self.pid = pid
        self._connection = connection

    @classmethod
    async def spawn(cls, command: Sequence[str]) -> Self:
        """Start the program and return when it is ready to take over.

        Raises FailedPrecondition if it cannot be started, ends, or takes longer than a minute: it is killed then.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            with theirs:
                successor = cls(_start(command, theirs.fileno()), ours)
        except OSError as error:
            ours.close()
            raise FailedPrecondition(f"upgrade: {command[0]}: {error.strerror}") from error
        try:
            await _receive(ours, READY_TIMEOUT)
        except (FailedPrecondition, asyncio.CancelledError):
            successor.give_up()
            raise
        return successor

    def hand_over(self, fds: Sequence[int]) -> None:
        """Let it begin; the descriptors (borrowed) are those of the locks."""
        message = json.dumps({"step": "take", "protocol": PROTOCOL}).encode()
        socket.send_fds(self._connection, [message], list(fds))

    async def serving(self) -> Serving:
        """Return when it serves; raises FailedPrecondition if it ends first."""
        message = await _receive(self._connection, SERVING_TIMEOUT)
        return Serving(self.pid, str(message["version"]))

    async def loaded(self) -> None:
        """Return when it needs the files of its program no more, has ended, or takes longer than a minute for that."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(SERVING_TIMEOUT):
                await asyncio.get_running_loop().sock_recv(self._connection, _MAX_DATAGRAM)

    def give_up(self) -> None:
        """Kill it and reap it."""
        self._connection.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class Predecessor:
    """The old daemon, seen from the new one."""

    def __init__(self, fd: int) -> None:
        """Talk on `fd`, owned from now on."""
        self._connection = socket.socket(fileno=fd)
        self._connection.setblocking(False)
        os.set_inheritable(self._connection.fileno(), False)

    async def take(self, version: str) -> list[int]:
        """Say that we are ready; return the locks' descriptors when it is our turn, none if the old daemon ended."""
        self._send({"step": "ready", "version": version})
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._connection.fileno(), readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._connection.fileno())
        return _received_fds(self._connection)

    def serving(self, version: str) -> None:
        """Say that the public paths are ours."""
        self._send({"step": "serving", "version": version})

    def loaded(self) -> None:
        """Let it know that the files of our program may change from now on."""
        self._connection.close()

    def _send(self, message: dict[str, Any]) -> None:
        try:
            data = json.dumps({"protocol": PROTOCOL, **message}).encode()
            self._connection.send(data, socket.MSG_NOSIGNAL)
        except OSError:
            return  # it has ended, which the next step finds out


async def _receive(connection: socket.socket, seconds: float) -> dict[str, Any]:
    """Return the next message; raises FailedPrecondition if there is none within `seconds`, or the peer ended."""
    try:
        async with asyncio.timeout(seconds):
            datagram = await asyncio.get_running_loop().sock_recv(connection, _MAX_DATAGRAM)
    except TimeoutError:
        raise FailedPrecondition(f"upgrade: the new daemon took longer than {seconds:g} s") from None
    except OSError as error:
        raise FailedPrecondition(f"upgrade: the new daemon: {error.strerror}") from error
    if not datagram:
        raise FailedPrecondition("upgrade: the new daemon ended; its log says why")
    message: dict[str, Any] = json.loads(datagram)
    if message.get("protocol") != PROTOCOL:
        raise FailedPrecondition(f"upgrade: the new daemon speaks hand-over {message.get('protocol')}, not {PROTOCOL}")
    return message


def _start(command: Sequence[str], fd: int) -> int:
    """Start the program with `fd` as its descriptor 3 and return its pid."""
    return os.posix_spawn(command[0], list(command), os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, fd, HANDOVER_FD)])


def _received_fds(connection: socket.socket) -> list[int]:
    """Return the descriptors that come with the next datagram, none at the end; they are not inherited."""
    fds = array.array("i")
    space = socket.CMSG_SPACE(fds.itemsize * _MAX_FDS)
    _, ancillary, _, _ = connection.recvmsg(_MAX_DATAGRAM, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)
