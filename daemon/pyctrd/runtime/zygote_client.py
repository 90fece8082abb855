"""The zygote, seen from the daemon: a child that forks shims on request, started before gRPC is imported.

A request is one datagram on a SOCK_SEQPACKET pair: JSON, and one end of a stream socket pair as a file descriptor.
The shim serves ttrpc on that end as its first connection, so the caller writes its first call at once and waits for
the answer to that, not for the zygote's. The zygote ends when the daemon's end of the pair closes.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, Final

from pyctr_sys.pidfd import readable
from pyctr_wire.errors import Unavailable
from pyctrd.core.values import dataclass
from pyctrd.log import Logger

COMMAND: Final = (sys.executable, "-m", "pyctr_shim.zygote")

_ZYGOTE_FD: Final = 3
_MAX_REPLY: Final = 64 << 10  # bytes
_RESPAWN_PAUSE: Final = 0.5  # seconds between two starts of a zygote that does not stay alive
_log = Logger(__name__)


@dataclass(frozen=True, slots=True)
class ShimRequest:
    """What a new shim must know."""

    namespace: str
    id: str
    bundle: str
    socket: str
    attach: str
    ttrpc_address: str
    grpc_address: str
    log_level: str
    instance: str

    def encode(self) -> bytes:
        """Return the datagram's text."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({"op": "shim", **fields}).encode()


class Zygote:
    """The child and its socket; `spawn` before importing grpc, then `serve` on the event loop."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        """Remember the program; nothing is started yet."""
        self._command = tuple(command)
        self._socket: socket.socket | None = None
        self._pid = 0
        self._replies: dict[str, asyncio.Future[int]] = {}

    @property
    def pid(self) -> int:
        """The child's pid, 0 if there is none."""
        return self._pid

    @property
    def unanswered(self) -> bool:
        """Whether a request is under way: some spare is about to become a shim, or has just done so."""
        return bool(self._replies)

    def spawn(self) -> None:
        """Start the child; raises OSError if that fails. It is never forked off: the parent may have threads."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # dup2 in the child clears close-on-exec, also when both numbers are the same.
            self._pid = os.posix_spawn(
                self._command[0],
                self._command,
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), _ZYGOTE_FD),
                ],
                # Out of the terminal's process group: Ctrl-C is for the daemon.
                setpgroup=0,
                # The child reads its signals from a descriptor; until it has come so far, none shall end it.
                setsigmask=signal.valid_signals(),
            )
        ours.setblocking(False)
        self._socket = ours

    async def serve(self) -> None:
        """Read replies and start the child again whenever it ends; runs until cancelled."""
        while True:
            if self._socket is None:
                try:
                    self.spawn()
                except OSError as error:
                    # Shims start cold meanwhile: slower, but they start.
                    _log.error("zygote cannot be started", error=str(error))
            if self._socket is not None:
                await self._until_ended(self._socket)
                _log.warning("zygote ended", pid=self._pid)
                self.close()
            await asyncio.sleep(_RESPAWN_PAUSE)

    async def _until_ended(self, connection: socket.socket) -> None:
        """Take in replies until the child has ended; spares of a dead zygote may keep the socket open for long."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        pidfd = os.pidfd_open(self._pid)
        loop.add_reader(pidfd, ended.set)
        loop.add_reader(connection.fileno(), self._read, ended)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(connection.fileno())
            loop.remove_reader(pidfd)
            os.close(pidfd)

    def request(self, request: ShimRequest, connection: socket.socket) -> "asyncio.Future[int]":
        """Ask for a shim that serves on `connection` (borrowed) and return the future of its pid.

        The future fails with Unavailable if the zygote ends first or could not fork. Raises Unavailable if there
        is no zygote to ask.
        """
        if self._socket is None:
            raise Unavailable("no zygote")
        try:
            socket.send_fds(self._socket, [request.encode()], [connection.fileno()])
        except OSError as error:
            raise Unavailable(f"zygote {self._pid} takes no request: {error}") from error
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._replies[request.instance] = future
        future.add_done_callback(lambda _: self._replies.pop(request.instance, None))
        return future

    def close(self) -> None:
        """Close the socket, which ends the child, and reap it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        for future in list(self._replies.values()):
            if not future.done() and not future.get_loop().is_closed():
                future.set_exception(Unavailable("the zygote ended"))
                future.exception()  # whoever started the shim may not care
        if self._pid:
            _reap(self._pid)
            self._pid = 0

    def _read(self, ended: asyncio.Event) -> None:
        assert self._socket is not None
        try:
            datagram = self._socket.recv(_MAX_REPLY)
        except BlockingIOError:
            return
        except OSError:
            datagram = b""
        if not datagram:
            ended.set()
            return
        reply: dict[str, Any] = json.loads(datagram)
        future = self._replies.get(str(reply.get("instance")))
        if future is None or future.done():
            return
        if "pid" in reply:
            future.set_result(int(reply["pid"]))
        else:
            future.set_exception(Unavailable(f"zygote: {reply.get('error', 'no reason given')}"))
            future.exception()


def _reap(pid: int) -> None:
    """Wait for a child that is ending; one that does not within 2 s is killed."""
    pidfd = os.pidfd_open(pid)
    try:
        if not readable(pidfd, 2.0):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
