"""Moves bytes between this process and an attach socket until the container's process ends."""

import contextlib
import errno
import json
import os
import select
import selectors
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from pyctr import terminal
from pyctr.attach import AttachSocket, Frame

_CHUNK: Final = 1 << 16
_MAX_PENDING: Final = 1 << 18  # bytes of input in memory before reading stdin pauses
_MAX_HELD: Final = 64 << 20  # bytes of output in memory before reading the container's pauses
_STDIN: Final = 0
# Everything a process may be sent that is not about this process itself.
PROXIED: Final = frozenset({
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
})  # fmt: skip


class End(Enum):
    """Why a relay stopped."""

    EXITED = "exited"
    DETACHED = "detached"
    LOST = "lost"  # the connection ended without an exit: the shim is gone or cut us off


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended; `exit_status` counts only for EXITED, `message` is the shim's reason for LOST."""

    end: End
    exit_status: int = 0
    message: str = ""


class Output:
    """Our stdout or stderr. Whoever reads it may pause: what is written meanwhile waits in memory."""

    def __init__(self, fd: int) -> None:
        """`fd` is borrowed, and left as blocking as it is."""
        self.fd = fd
        self._waiting: deque[memoryview] = deque()
        self.pending = 0  # bytes that wait
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def write(self, data: bytes) -> None:
        """Write `data` now as far as that does not block. Raises BrokenPipeError when nobody reads any more."""
        self._waiting.append(memoryview(data))
        self.pending += len(data)
        self.flush(0)

    def flush(self, timeout: float | None) -> None:
        """Write what waits, waiting up to `timeout` seconds for room each time (None: as long as it takes)."""
        while self._waiting and self._poll.poll(None if timeout is None else timeout * 1000):
            # A pipe with room takes this much without blocking.
            try:
                written = os.write(self.fd, self._waiting[0][: select.PIPE_BUF])
            except BlockingIOError:
                continue
            self.pending -= written
            self._waiting[0] = self._waiting[0][written:]
            if not self._waiting[0]:
                self._waiting.popleft()


@contextlib.contextmanager
def signal_pipe(signals: Iterable[signal.Signals]) -> Iterator[socket.socket]:
    """Yield a socket that delivers the numbers of `signals` as bytes instead of letting them act."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in signals}
    old_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(old_fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()


class Relay:
    """One session on an attach socket."""

    def __init__(
        self, attach: AttachSocket, *, stdin: bool, detach_keys: bytes, on_signal: Callable[[int], None] | None
    ) -> None:
        """`on_signal` gets the signals that are meant for the container; None leaves them to act on us."""
        self._attach = attach
        self._stdin = stdin
        self._keys = terminal.DetachKeys(detach_keys if attach.terminal and stdin else b"")
        self._on_signal = on_signal
        self._selector = selectors.PollSelector()  # epoll refuses regular files, which stdin may be
        self._message = ""
        self._outputs = {Frame.STDOUT: Output(1), Frame.STDERR: Output(2)}

    def run(self) -> Outcome:
        """Relay until the end; the terminal, if it is one, is raw meanwhile."""
        on_tty = self._attach.terminal and self._stdin and os.isatty(_STDIN)
        signals = {signal.SIGWINCH} | (PROXIED if self._on_signal is not None and not self._attach.terminal else set())
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(self._selector))
            pipe = stack.enter_context(signal_pipe(signals))
            if on_tty:
                stack.enter_context(terminal.raw(_STDIN))
            self._selector.register(pipe, selectors.EVENT_READ)
            if self._attach.terminal:
                self._attach.resize(*terminal.size())
            outcome = self._take_frames()  # what came with the greeting
            while outcome is None:
                self._watch()
                outcome = self._act(self._selector.select(), pipe)
            for output in self._outputs.values():
                output.flush(None)
            return outcome

    def _watch(self) -> None:
        """Ask only for what can be used: input while the shim takes it, frames while there is room for them."""
        held = sum(output.pending for output in self._outputs.values())
        self._want(self._attach, selectors.EVENT_READ, wanted=held < _MAX_HELD, also=self._attach.pending > 0)
        self._want(_STDIN, selectors.EVENT_READ, wanted=self._stdin and self._attach.pending < _MAX_PENDING)
        for output in self._outputs.values():
            self._want(output.fd, selectors.EVENT_WRITE, wanted=output.pending > 0)

    def _want(self, source: AttachSocket | int, events: int, *, wanted: bool, also: bool = False) -> None:
        """Register `source` for `events` if `wanted`, and for writing if `also`; forget it if neither."""
        events = (events if wanted else 0) | (selectors.EVENT_WRITE if also else 0)
        key = self._selector.get_map().get(source)
        if key is None and events:
            self._selector.register(source, events)
        elif key is not None and not events:
            self._selector.unregister(source)
        elif key is not None and key.events != events:
            self._selector.modify(source, events)

    def _act(self, ready: list[tuple[selectors.SelectorKey, int]], pipe: socket.socket) -> Outcome | None:
        outcome = None
        for key, _ in ready:
            if key.fileobj is pipe:
                self._take_signals(pipe)
            elif key.fileobj is self._attach:
                outcome = outcome or self._take_frames()
            elif key.fileobj == _STDIN:
                outcome = outcome or self._take_input()
            else:
                next(output for output in self._outputs.values() if output.fd == key.fileobj).flush(0)
        return outcome

    def _take_signals(self, pipe: socket.socket) -> None:
        for number in pipe.recv(64):
            if number == signal.SIGWINCH:
                if self._attach.terminal:
                    self._attach.resize(*terminal.size())
            elif self._on_signal is not None:
                self._on_signal(number)

    def _take_input(self) -> Outcome | None:
        try:
            data = os.read(_STDIN, _CHUNK)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EAGAIN):
                raise
            if error.errno == errno.EAGAIN:
                return None
            data = b""  # our terminal is gone
        if not data:
            self._attach.send(Frame.STDIN)
            self._stdin = False
            return None
        passed, detach = self._keys.feed(data)
        if passed:
            self._attach.send(Frame.STDIN, passed)
        return Outcome(End.DETACHED) if detach else None

    def _take_frames(self) -> Outcome | None:
        self._attach.flush()
        frames = self._attach.receive()
        if frames is None:
            return Outcome(End.LOST, message=self._message)
        for kind, payload in frames:
            if kind in (Frame.STDOUT, Frame.STDERR):
                self._outputs[Frame(kind)].write(payload)
            elif kind == Frame.EXIT:
                return Outcome(End.EXITED, int(json.loads(payload)["exit_status"]))
            elif kind == Frame.MESSAGE:
                self._message = payload.decode(errors="replace")
        return None
