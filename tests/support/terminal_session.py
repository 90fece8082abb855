"""A program on a pseudo-terminal, as a person would use it."""

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from .patience import DEADLINE


class TerminalSession:
    """Types into a program and waits for what it writes."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], size: tuple[int, int] = (24, 80)
    ) -> None:
        """Start `command` on a new terminal of `size` (rows, columns)."""
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            _resize(0, size)
            os.execvpe(command[0], list(command), dict(environment))
        self._seen = b""
        self._ended = False

    def __enter__(self) -> Self:
        """Return this session."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hang up, and end a program that goes on nevertheless."""
        os.close(self._fd)
        if self._ended:
            return
        process_fd = os.pidfd_open(self._pid)
        if not select.select([process_fd], [], [], DEADLINE)[0]:
            os.kill(self._pid, signal.SIGKILL)
        os.close(process_fd)
        os.waitpid(self._pid, 0)

    def resize(self, size: tuple[int, int]) -> None:
        """Change the terminal's size (rows, columns)."""
        _resize(self._fd, size)

    def resize_until(self, size: tuple[int, int], text: str) -> None:
        """Change the terminal's size until `text` comes: a program may listen for that only a while after its start."""
        end = time.monotonic() + DEADLINE
        while text.encode() not in self._seen and time.monotonic() < end:
            self.resize((size[0], size[1] + 1))  # what does not change is not told
            self.resize(size)
            if select.select([self._fd], [], [], 0.2)[0]:
                self._seen += self._read()
        self.expect(text)

    def type(self, text: str) -> None:
        """Send keys."""
        os.write(self._fd, text.encode())

    def expect(self, text: str) -> str:
        """Return what came up to and with `text`; fail after a while."""
        wanted = text.encode()
        end = time.monotonic() + DEADLINE
        while wanted not in self._seen:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, end - time.monotonic()))
            data = self._read() if ready else b""
            assert data, f"{text!r} did not come; this did: {self._seen!r}"
            self._seen += data
        before, _, self._seen = self._seen.partition(wanted)
        return (before + wanted).decode(errors="replace")

    def wait(self) -> int:
        """Return the exit status, once the program has ended."""
        end = time.monotonic() + DEADLINE
        while True:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"it does not end; the last it wrote: {self._seen!r}"
            data = self._read()
            if not data:
                break
            self._seen += data
        self._ended = True
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    @property
    def rest(self) -> str:
        """What came after all that was expected."""
        return self._seen.decode(errors="replace")

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, 1 << 16)
        except OSError:  # EIO: the last one has closed the other side
            return b""


def _resize(fd: int, size: tuple[int, int]) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
