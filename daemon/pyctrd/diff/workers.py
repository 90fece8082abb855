"""The daemon's side of a worker process: start it, talk to it, see it end."""

import asyncio
import signal
import socket
import subprocess
import sys
from array import array
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from pyctr_wire.errors import ApiError, Internal, InvalidArgument, ResourceExhausted, UnknownError
from pyctrd.diff import messages
from pyctrd.offload import Offload

# Isolated from the environment and without `site`: a .pth file is no business of a worker, and takes time.
_PROGRAM: Final = "import sys; sys.path[:] = sys.argv[1:]; from pyctrd.diff.worker import main; main()"
_ARGUMENTS: Final = ("-I", "-S", "-X", "utf8", "-c", _PROGRAM)

_ERRORS: Final[dict[bytes, type[ApiError]]] = {
    messages.INVALID: InvalidArgument,
    messages.EXHAUSTED: ResourceExhausted,
    messages.SYSTEM: UnknownError,
}


class Worker:
    """One process for one request, as a context: at its end the process has ended too, whatever happened."""

    def __init__(self, offload: Offload) -> None:
        """Use `offload` for what blocks."""
        self._offload = offload
        self._socket, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        """Start it."""
        try:
            await self._offload.run(self._start)
        except BaseException:
            self._socket.close()  # a worker that is started nevertheless finds nobody, and ends
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it if it has not ended. Cancelled a second time, the process is on its way out all the same."""
        self._socket.close()
        await self._offload.run(self._reap)

    def send(self, request: messages.Request, fd: int) -> None:
        """Hand over a request with its fd, which is borrowed. At once: nothing is in the socket yet."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))]
        self._socket.sendmsg([messages.encode_request(request)], rights)

    async def result(self, stage: str, mark_opaque: Callable[[Sequence[int]], None] | None = None) -> tuple[str, int]:
        """Wait for the result, digest and size in bytes of the uncompressed archive; errors begin with `stage`.

        `mark_opaque` is called in a thread, with fds to close. Raises InvalidArgument for what the archive says,
        ResourceExhausted for limits and a full disk, UnknownError for other errors of the system, Internal for ours.
        """
        while True:
            await _readable(self._socket)
            data, fds = self._receive()
            if data == messages.OPAQUE and mark_opaque is not None:
                await self._offload.run(mark_opaque, fds)
                self._socket.send(messages.DONE)
                continue
            kind, *fields = data.split(b"\0")
            texts = [field.decode(errors="replace") for field in fields]
            if kind == messages.RESULT and len(texts) == 2:
                return texts[0], int(texts[1])
            if kind == messages.FAILED and len(texts) == 2:
                raise _ERRORS.get(fields[0], Internal)(f"{stage}: {texts[1]}")
            raise Internal(f"{stage}: the worker process {await self._offload.run(self._last_words)}")

    def _start(self) -> None:
        """Spawn the process; in a thread, since it takes a while."""
        with self._theirs:
            self._process = subprocess.Popen(
                (sys.executable, *_ARGUMENTS, *filter(None, sys.path)),
                stdin=self._theirs.fileno(),
                stdout=subprocess.DEVNULL,
                cwd="/",
                env={},
            )

    def _receive(self) -> tuple[bytes, list[int]]:
        """Return a message and its fds; b"" if the process has ended."""
        space = socket.CMSG_SPACE(messages.MAX_FDS * array("i").itemsize)
        try:
            data, ancillary, _, _ = self._socket.recvmsg(messages.MAX_REPLY, space, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return b"", []
        fds = array("i")
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        return data, list(fds)

    def _last_words(self) -> str:
        """Say how the process ended, which it has or is about to."""
        status = self._reap()
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def _reap(self) -> int:
        """Return the exit status of the process, which is killed if it is still at work."""
        assert self._process is not None
        try:
            # It ends by itself right after its answer; killed then, it would be taken for a failure.
            return self._process.wait(0.5 if self._socket.fileno() >= 0 else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


async def _readable(sock: socket.socket) -> None:
    """Wait until there is something to receive."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
