"""Streams of containers whose shim is of another make, named as only ours understands them: logs, attached clients.

The other shim gets FIFOs of the bundle instead, and a process of ours beside it (`pyctr_shim.beside`) has their other
ends: it writes the log and serves the attach socket, as our shim does, and needs the daemon as little.
"""

import asyncio
import fcntl
import hashlib
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from pyctrd.log import Logger
from pyctrd.runtime.bundle import Bundle, StdioNames
from pyctrd.runtime.programs import Programs

_OURS: Final = ("attach:", "cri:", "journald:", "json-file:")
_PROGRAM: Final = (sys.executable, "-m", "pyctr_shim")
_STREAMS: Final = ("stdin", "stdout", "stderr")
_END_TIMEOUT: Final = 15.0  # seconds; it moves what is there for ten of them
_MOVE_TIMEOUT: Final = 2.0  # seconds from a process's end to that of its output, unless others have it
_PAUSE: Final = 0.01  # seconds between two looks
_log = Logger("pyctrd.runtime")


def are_ours(names: StdioNames) -> bool:
    """Whether these are streams that only our own shim would understand."""
    return any(name.startswith(_OURS) for name in (names.stdin, names.stdout, names.stderr))


def make_fifos(bundle: Bundle, exec_id: str, names: StdioNames) -> StdioNames:
    """Make FIFOs for a process, and return what another shim is to be told instead of `names`."""
    folder = bundle.path / "streams"
    folder.mkdir(mode=0o700, exist_ok=True)

    def make(stream: str) -> str:
        path = f"{folder}/{_prefix(exec_id)}.{stream}"
        os.mkfifo(path, 0o600)
        return path

    return StdioNames(
        stdin=make("stdin") if names.stdin else "",
        stdout=make("stdout") if names.stdout else "",
        stderr=make("stderr") if names.stderr and not names.terminal else "",
        terminal=names.terminal,
    )


def remove_fifos(bundle: Bundle, exec_id: str) -> None:
    """Remove those of an exec; the first process's go with the bundle."""
    for stream in _STREAMS:
        with suppress(FileNotFoundError):
            os.unlink(bundle.path / "streams" / f"{_prefix(exec_id)}.{stream}")


async def moved(bundle: Bundle) -> None:
    """Return once the first process's output, after its end, is in its log; or after two seconds."""
    if not (bundle.path / "streams").exists():
        return
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _MOVE_TIMEOUT
    while True:
        if (bundle.path / "streams" / "drained").exists() or loop.time() > deadline:
            return
        await asyncio.sleep(_PAUSE)


class OtherStreams:
    """Starts the processes that have such streams, and ends them."""

    def __init__(self, programs: Programs, sockets: Path) -> None:
        """Let clients attach at sockets in the directory `sockets`."""
        self._programs = programs
        self._sockets = sockets

    async def keep(self, bundle: Bundle) -> None:
        """See to it that a process has the bundle's streams, if they are ours. Raises UnknownError."""
        if not (bundle.path / "streams").exists() or not _is_free(bundle.path):
            return
        name = hashlib.sha256(str(bundle.path).encode() + bundle.manifest.instance.encode()).hexdigest()[:32]
        attach = self._sockets / f"{name}.attach"
        await self._programs.run(bundle, _PROGRAM, "streams", "-bundle", str(bundle.path), "-socket", str(attach))

    async def end(self, bundle: Bundle) -> None:
        """End the process that has them, once it has moved all output; before that, after ten seconds."""
        address = bundle.attachment()
        if address is None or _is_free(bundle.path):
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _END_TIMEOUT
        _signal(address.pid, signal.SIGTERM)
        while not _is_free(bundle.path):
            if loop.time() > deadline:
                _log.warning("streams.not_ended", container=bundle.manifest.id, pid=address.pid)
                _signal(address.pid, signal.SIGKILL)
                return
            await asyncio.sleep(_PAUSE)


def _is_free(path: Path) -> bool:
    """Whether nobody has a bundle's streams."""
    try:
        lock_fd = os.open(path / "streams.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock_fd)
    return True


def _signal(pid: int, number: int) -> None:
    """Signal it. The lock was held a moment ago by the process that wrote this pid."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _prefix(exec_id: str) -> str:
    return f"exec-{exec_id}" if exec_id else "init"
