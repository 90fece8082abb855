"""Running a plugin's program: with a deadline, bounded output, and nothing left of it if it fails.

Synchronous. The program is the leader of a session of its own, so that all that it starts can be ended with it.
"""

import os
import selectors
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import IO, Final, NamedTuple

from pyctr_sys.pidfd import pidfd_open

_CHUNK: Final = 1 << 16
_MAX_OUTPUT: Final = 1 << 20  # bytes of an answer
_MAX_ERRORS: Final = 1 << 14  # bytes that are kept of what it complains of


class ProgramError(Exception):
    """The program could not be run to its end; the text says why."""


class Ended(NamedTuple):
    """How a program ended: its exit status, negative for a signal, and what it wrote."""

    status: int
    output: bytes
    errors: bytes


def run(
    program: Path,
    environment: Mapping[str, str],
    data: bytes,
    seconds: float,
    *,
    arguments: Sequence[str] = (),
    most: int = _MAX_OUTPUT,
) -> Ended:
    """Run `program` with `data` as its standard input and nothing but `environment`.

    Raises ProgramError if it cannot be executed, is not done after `seconds`, or writes more than `most` bytes; all
    that it has started and has not left its process group is killed then, as it is if it fails.
    """
    try:
        process = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env=dict(environment),
            start_new_session=True,
        )
    except OSError as error:
        raise ProgramError(f"{program} cannot be executed: {error.strerror}") from error
    with process:
        try:
            output, errors = _Conversation(process, data, most).hold(monotonic() + seconds)
        except BaseException as error:
            _end(process)
            if isinstance(error, TimeoutError):
                raise ProgramError(f"{program} was not done after {seconds:g} s and was killed") from None
            raise
        # Not reaped yet, so its number still names its process group.
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        if ended is None or ended.si_code != os.CLD_EXITED or ended.si_status:
            _end(process)
        return Ended(process.wait(), output, errors)


def _end(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class _Conversation:
    """What is said to a program and by it, until it ends: not until its pipes do, which its children may hold."""

    def __init__(self, process: "subprocess.Popen[bytes]", data: bytes, most: int) -> None:
        self._process = process
        self._most = most
        self._left = memoryview(data)
        self._output, self._errors = bytearray(), bytearray()

    def hold(self, deadline: float) -> tuple[bytes, bytes]:
        """Return what it wrote. Raises TimeoutError at `deadline` (monotonic), ProgramError if it writes too much."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        pidfd = pidfd_open(process.pid)
        try:
            with selectors.DefaultSelector() as selector:
                for pipe in (process.stdin, process.stdout, process.stderr):
                    os.set_blocking(pipe.fileno(), False)
                selector.register(process.stdin, selectors.EVENT_WRITE, self._write)
                selector.register(process.stdout, selectors.EVENT_READ, self._read_output)
                selector.register(process.stderr, selectors.EVENT_READ, self._read_errors)
                selector.register(pidfd, selectors.EVENT_READ)
                self._exchange(selector, pidfd, deadline)
        finally:
            os.close(pidfd)
        while self._read_output(process.stdout):
            pass
        self._read_errors(process.stderr)
        return bytes(self._output), bytes(self._errors)

    def _exchange(self, selector: selectors.BaseSelector, pidfd: int, deadline: float) -> None:
        """Return when the program has ended."""
        while (left := deadline - monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.fd == pidfd:
                    return
                if key.data(key.fileobj) == b"":
                    selector.unregister(key.fileobj)
                    if key.fileobj is self._process.stdin:
                        self._process.stdin.close()
        raise TimeoutError

    def _write(self, pipe: IO[bytes]) -> memoryview:
        """Write some and return what is left to be written."""
        try:
            self._left = self._left[os.write(pipe.fileno(), self._left[:_CHUNK]) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:  # it does not want to know
            self._left = self._left[:0]
        return self._left

    def _read_output(self, pipe: IO[bytes]) -> bytes | None:
        data = _read(pipe)
        self._output += data or b""
        if len(self._output) > self._most:
            raise ProgramError(f"it wrote more than {self._most} bytes and was killed")
        return data

    def _read_errors(self, pipe: IO[bytes]) -> bytes | None:
        data = _read(pipe)
        self._errors += (data or b"")[: _MAX_ERRORS - len(self._errors)]
        return data


def _read(pipe: IO[bytes]) -> bytes | None:
    """Return what there is: None if nothing yet, no bytes at the end."""
    try:
        return os.read(pipe.fileno(), _CHUNK)
    except BlockingIOError:
        return None
