"""One command of a runtime: a child with a deadline, of whose words a bounded part is kept.

A program that hangs is killed with its process group; one that says more than a person wants to read is listened to
and cut. It dies with the shim's worker, so that nothing is made behind the back of who buries that.
"""

import json
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from pyctr_shim.loop import READ, Future, Loop
from pyctr_shim.oci import program
from pyctr_shim.oci.errors import OciError
from pyctr_sys.namespaces import clone3
from pyctr_sys.process import LAST_FD, PR_SET_PDEATHSIG
from pyctr_sys.steps import StepFailed, Steps

KEPT: Final = 4096
"""Bytes of a runtime's words that go into an error."""
_LOG_TAIL: Final = 64 << 10
_CHUNK: Final = 64 << 10
_KILL_LIMIT: Final = 5.0
_CANNOT_EXECUTE: Final = 127
# What systemd and socket activation say to us is not for it.
_NOT_PASSED: Final = frozenset({"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"})


class Result(NamedTuple):
    """How a command ended: its exit status, negative for a signal, None if it was killed at its deadline; its words."""

    code: int | None
    words: str


class _Words:
    """The last bytes of what comes through a pipe."""

    def __init__(self, loop: Loop) -> None:
        """Make the pipe; `write_fd` is the caller's to close."""
        self._loop = loop
        self._fd, self.write_fd = os.pipe()
        os.set_blocking(self._fd, False)
        self._kept = b""
        loop.watch(self._fd, READ, self._read)

    def _read(self, _events: int = 0) -> None:
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return
        if data:
            self._kept = (self._kept + data)[-KEPT:]
        else:
            self._loop.unwatch(self._fd)

    def close(self) -> str:
        """Return them. A descendant that lives on, and keeps the pipe open, is not waited for."""
        self._loop.unwatch(self._fd)
        with suppress(BlockingIOError):
            for _ in range(_LOG_TAIL // 1024):  # what was written before the end, which a pipe bounds
                data = os.read(self._fd, _CHUNK)
                if not data:
                    break
                self._kept = (self._kept + data)[-KEPT:]
        os.close(self._fd)
        return self._kept.decode(errors="replace").strip()


def start(
    loop: Loop, path: str, arguments: Sequence[str], seconds: float, stdio: tuple[int, int, int] | None = None
) -> "Child":
    """Run a program; without `stdio` (borrowed), what it writes is kept. Raises OciError if it cannot be executed."""
    words = _Words(loop) if stdio is None else None
    null_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fds = stdio if words is None else (null_fd, words.write_fd, words.write_fd)
        assert fds is not None
        pid, pidfd = _fork(path, arguments, fds)
    except OSError as error:
        if words is not None:
            words.close()
        raise OciError(f"{path}: {error.strerror or error}", error.errno or 0) from None
    finally:
        os.close(null_fd)
        if words is not None:
            os.close(words.write_fd)
    return Child(loop, pid, pidfd, seconds, words)


class Child:
    """A running command. The loop keeps it, ends it in time and reaps it, whether or not somebody waits for `ended`."""

    def __init__(self, loop: Loop, pid: int, pidfd: int, seconds: float, words: _Words | None) -> None:
        """Made by `start`."""
        self.ended: Future[Result] = Future()
        self._loop = loop
        self._pid = pid
        self._pidfd = pidfd
        self._words = words
        self._late = False
        self._timer = loop.call_later(seconds, self._kill)
        loop.watch(pidfd, READ, self._reap)

    def _kill(self) -> None:
        self._late = True
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)  # not reaped, so this is still its group
        # One that outlives SIGKILL waits in the kernel: it is reaped when it comes back, and not waited for.
        self._timer = self._loop.call_later(_KILL_LIMIT, lambda: self._tell(Result(None, "")))

    def _reap(self, _events: int) -> None:
        self._loop.unwatch(self._pidfd)
        self._timer.cancel()
        _pid, status = os.waitpid(self._pid, 0)
        os.close(self._pidfd)
        words = self._words.close() if self._words is not None else ""
        self._tell(Result(None if self._late else os.waitstatus_to_exitcode(status), words))

    def _tell(self, result: Result) -> None:
        self.ended.set(result)


def _fork(path: str, arguments: Sequence[str], stdio: tuple[int, int, int]) -> tuple[int, int]:
    """Make a child that executes the program in a session of its own; return its pid and a pidfd.

    Returns when the program runs. Raises OSError if it cannot be executed.
    """
    told_fd, tell_fd = os.pipe()
    steps = _steps(path, arguments, stdio, tell_fd)
    try:
        pid, pidfd = clone3(0, signal.SIGCHLD)
    except BaseException:
        os.close(told_fd)
        os.close(tell_fd)
        raise
    if pid == 0:
        try:
            steps.run()
        except StepFailed as error:
            os.write(tell_fd, str(error.errno).encode())
        finally:
            os._exit(_CANNOT_EXECUTE)
    os.close(tell_fd)
    with os.fdopen(told_fd, "rb") as told:
        number = told.read()
    if number:
        os.waitpid(pid, 0)
        os.close(pidfd)
        raise OSError(int(number), os.strerror(int(number)))
    return pid, pidfd


def _steps(path: str, arguments: Sequence[str], stdio: tuple[int, int, int], tell_fd: int) -> Steps:
    """Return what the child does. Descriptors 0 to 2 of a shim are never a container's, so none is overwritten."""
    steps = Steps()
    steps.call("prctl", "prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
    steps.call("setsid", "setsid")
    for number, fd in enumerate(stdio):
        steps.call("dup3", "dup3", fd, number)
    steps.call("close_range", "close_range", 3, tell_fd - 1)
    steps.call("close_range", "close_range", tell_fd + 1, LAST_FD)
    program.add_signals(steps)
    env = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED}
    program.add_execute(steps, path, [path, *arguments], env)
    return steps


def explain(name: str, command: str, result: Result, seconds: float, logged: str) -> str:
    """Return one line on why a command failed: its log's last error if there is one, else what is known."""
    if result.code is None:
        return f"{name} {command}: no end after {seconds:g} s: killed"
    if logged:
        return logged
    how = f"exit status {result.code}" if result.code >= 0 else f"killed by signal {-result.code}"
    return f"{name} {command}: {how}{f': {result.words}' if result.words else ''}"


def last_error(log: str) -> str:
    """Return the message of the last error in a runtime's JSON log, "" if there is none; of a long log, its end."""
    try:
        fd = os.open(log, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        data = os.pread(fd, _LOG_TAIL, max(0, os.fstat(fd).st_size - _LOG_TAIL))
    finally:
        os.close(fd)
    for line in reversed(data.splitlines()):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("level") in ("error", "fatal"):
            return str(record.get("msg") or "").strip()[:KEPT]
    return ""
