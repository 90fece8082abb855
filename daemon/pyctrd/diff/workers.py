"""The daemon's side of worker processes: start them, talk to them, see them end."""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from pyctr_wire.errors import ApiError, Internal, InvalidArgument, ResourceExhausted, UnknownError
from pyctrd.diff import messages
from pyctrd.log import Logger
from pyctrd.offload import Offload

# Isolated from the environment and without `site`: a .pth file is no business of a worker, and takes time.
_PYTHON: Final = (sys.executable, "-I", "-S", "-X", "utf8", "-c")
_COLD: Final = "import sys; sys.path[:] = sys.argv[1:]; from pyctrd.diff.worker import main; main()"
# One that has time imports both codecs.
_WARM: Final = _COLD.replace("main()", "import isal.igzip_lib, zstandard; main()")
# How long a worker that has answered may take to be gone, in seconds.
_LEAVING: Final = 1.0

_ERRORS: Final[dict[bytes, type[ApiError]]] = {
    messages.INVALID: InvalidArgument,
    messages.EXHAUSTED: ResourceExhausted,
    messages.SYSTEM: UnknownError,
}

_log = Logger("pyctrd.diff")


class Worker:
    """One process for one request."""

    def __init__(self, offload: Offload) -> None:
        """Get ready to start it; what blocks runs in `offload`."""
        self._offload = offload
        self._socket, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False

    def start(self, program: str) -> None:
        """Spawn the process, unless it has been ended meanwhile; blocks a little. Raises OSError."""
        with self._lock, self._theirs:
            if not self._ended:
                self._process = subprocess.Popen(
                    (*_PYTHON, program, *filter(None, sys.path)),
                    stdin=self._theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    cwd="/",
                    env={},
                )

    def is_alive(self) -> bool:
        """Return whether it can be talked to: it may be about to start, but has not ended."""
        return self._process is None or self._process.poll() is None

    def end(self, patience: float = 0) -> int:
        """Return the exit status of the process, killed if it is still there after `patience` seconds; blocks.

        Called twice, it returns the same; called before `start`, there will be no process.
        """
        with self._lock:
            self._ended = True
            self._theirs.close()
            self._socket.close()
            if self._process is None:
                return 0
            if self._process.returncode is None and not _exits(self._process.pid, patience):
                self._process.kill()
            return self._process.wait()

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
            data, fds = await self._receive()
            if data == messages.OPAQUE and mark_opaque is not None:
                await self._offload.run(mark_opaque, fds)
                self._socket.send(messages.DONE)
                continue
            kind, *fields = data.split(b"\0", 2)  # the last one may be a text that quotes a NUL
            texts = [field.decode(errors="replace") for field in fields]
            if kind == messages.RESULT and len(texts) == 2:
                return texts[0], int(texts[1])
            if kind == messages.FAILED and len(texts) == 2:
                raise _ERRORS.get(fields[0], Internal)(f"{stage}: {texts[1]}")
            status = await self._offload.run(self.end, _LEAVING)
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            raise Internal(f"{stage}: the worker process {how}")

    async def _receive(self) -> tuple[bytes, list[int]]:
        """Return the next message and its fds, the caller's to close; b"" if the process has ended."""
        await _readable(self._socket)
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


class Workers:
    """Hands out workers, a limited number at once, and keeps one warm for a while: most images have several layers."""

    def __init__(self, offload: Offload, count: int, keep_warm: float) -> None:
        """Run up to `count` workers, and for `keep_warm` seconds after the last one a spare one."""
        self._offload = offload
        self._turns = asyncio.Semaphore(count)
        self._keep_warm = keep_warm
        self._spare: Worker | None = None
        self._expiry: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Worker]:
        """A worker for one request. At the end its process has ended too: by itself, or killed after an error.

        Cancelled a second time meanwhile, it is on its way out all the same.
        """
        async with self._turns:
            worker, patience = self._take_spare(), 0.0
            try:
                if worker is None:
                    worker = Worker(self._offload)
                    await self._offload.run(worker.start, _COLD)
                yield worker
                patience = _LEAVING
            finally:
                if worker is not None:
                    await self._offload.run(worker.end, patience)
        await self.warm()

    async def warm(self) -> None:
        """Have a worker ready, for whoever knows that a layer is on its way."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = asyncio.get_running_loop().call_later(self._keep_warm, self.close)
        if self._spare is not None:
            return
        # Whoever takes it while it starts can talk to it already.
        self._spare = spare = Worker(self._offload)
        try:
            await self._offload.run(spare.start, _WARM)
        except OSError as error:
            # Nobody has asked for it yet; whoever asks next starts one, and reports what goes wrong then.
            _log.warning("worker.not_warm", error=str(error))
            self.close()

    def close(self) -> None:
        """End the spare one; blocks a little."""
        if (spare := self._take_spare()) is not None:
            spare.end()

    def _take_spare(self) -> Worker | None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        spare, self._spare = self._spare, None
        if spare is not None and not spare.is_alive():
            spare.end()
            return None
        return spare


def _exits(pid: int, patience: float) -> bool:
    """Wait up to `patience` seconds for a child to end, and return whether it has."""
    pidfd = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        return bool(poller.poll(patience * 1000))
    finally:
        os.close(pidfd)


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
