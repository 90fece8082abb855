"""One direction of one stream, moved without ever blocking the loop.

    OutputRelay   container's pipe or terminal → sink (FIFO, log, nothing) and attached clients
    InputRelay    client's FIFO and attached clients → container's pipe or terminal

Bytes are spliced where a FIFO is the only taker, read and written otherwise. Every descriptor is O_NONBLOCK
itself: SPLICE_F_NONBLOCK alone waits on an empty terminal. A taker that is full stops the reading, so the
pipe fills and the container waits, as it would with any pipe.
"""

import errno
import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from pyctr_shim import journal
from pyctr_shim.loop import READ, WRITE, Future, Loop

CHUNK: Final = 32 << 10
_SPLICE_SIZE: Final = 1 << 20
_MAX_INPUT: Final = 64 << 10
_CATCH_UP_STEPS: Final = 64
_LINGER: Final = 10.0
_LINGER_STEP: Final = 0.05
_SPLICE_FLAGS: Final = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE


class Sink(Protocol):
    """Where a container's output goes."""

    fd: int | None
    """What to poll when the sink is full and to splice into; None if it takes everything."""

    def write(self, data: bytes) -> int:
        """Take `data` and return how much was taken. Raises BlockingIOError if full, BrokenPipeError if gone."""
        ...

    def end(self) -> None:
        """The stream has ended: flush and close."""
        ...


class Taps(Protocol):
    """Attached clients of one process."""

    def listening(self, kind: int) -> bool:
        """Whether anybody takes this stream."""
        ...

    def write(self, kind: int, data: bytes) -> Future[None] | None:
        """Pass on `data`; a future means: wait for it before passing more."""
        ...


class NullSink:
    """Takes everything, keeps nothing."""

    fd: int | None = None

    def write(self, data: bytes) -> int:
        """Take all of it."""
        return len(data)

    def end(self) -> None:
        """Nothing to close."""


class PipeSink:
    """A pipe or FIFO; of a client's FIFO it holds the read end too, which keeps the writer safe."""

    def __init__(self, loop: Loop, write_fd: int, read_fd: int | None = None) -> None:
        """Own both descriptors."""
        self.fd: int | None = write_fd
        self._loop = loop
        self._read_fd = read_fd

    def write(self, data: bytes) -> int:
        """Write what fits."""
        assert self.fd is not None
        return os.write(self.fd, data)

    def release_reader(self) -> None:
        """Hold no read end any more: a FIFO that no client reads now breaks instead of filling."""
        if self._read_fd is not None:
            os.close(self._read_fd)
            self._read_fd = None

    def end(self) -> None:
        """Close both ends; the client sees the end of the stream once it has read what is there.

        A client may still be about to open its end when a short process has ended already. A FIFO loses its bytes with
        its last descriptor, and whoever opens one that nobody writes to any more waits for ever, also for an end that
        comes at once. So the write end stays for a while if there is no reader.
        """
        if self.fd is None:
            return
        write_fd, self.fd = self.fd, None
        if self._read_fd is None:
            os.close(write_fd)
            return
        self.release_reader()
        _close_when_read(self._loop, write_fd, time.monotonic() + _LINGER)


def _close_when_read(loop: Loop, write_fd: int, give_up: float) -> None:
    """Close the write end of a FIFO as soon as it has a reader, or at `give_up` (monotonic seconds)."""
    poll = select.poll()
    poll.register(write_fd, 0)
    lonely = any(events & select.POLLERR for _fd, events in poll.poll(0))
    if lonely and time.monotonic() < give_up:
        loop.call_later(_LINGER_STEP, lambda: _close_when_read(loop, write_fd, give_up))
    else:
        os.close(write_fd)


class OutputRelay:
    """Moves one output stream until its end."""

    def __init__(self, loop: Loop, source_fd: int, sink: Sink, taps: Taps, kind: int) -> None:
        """Own `source_fd` and `sink`; `kind` names the stream to attached clients."""
        os.set_blocking(source_fd, False)
        self.ended: Future[None] = Future()
        self._loop = loop
        self._source_fd = source_fd
        self._sink = sink
        self._taps = taps
        self._kind = kind
        self._unwritten = b""
        self._sink_full = False
        self._taps_full = False
        self._reading = False
        self._read_on()

    def close(self) -> None:
        """Give up what has not been moved yet; harmless when the stream has ended."""
        if self.ended.done:
            return
        self._stop_reading()
        os.close(self._source_fd)
        self._unwatch_sink()
        self._sink.end()
        self.ended.set(None)

    def catch_up(self) -> None:
        """Move what the process has written so far, as far as the takers take it."""
        for _ in range(_CATCH_UP_STEPS):
            if self.ended.done or not self._reading or not _ready_for(self._source_fd, select.POLLIN):
                return
            self._source_ready(READ)

    def _source_ready(self, _events: int) -> None:
        try:
            self._move()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:  # that one says that nobody has the terminal open any more
                journal.log("output relay failed", error=str(error))
            self.close()

    def _move(self) -> None:
        sink_fd = self._sink.fd
        if sink_fd is not None and not self._taps.listening(self._kind) and self._splice(sink_fd):
            return
        data = os.read(self._source_fd, CHUNK)
        if not data:
            self.close()
            return
        hold = self._taps.write(self._kind, data)
        if hold is not None:
            self._taps_full = True
            self._stop_reading()
            hold.when_done(self._taps_ready)
        self._write(data)

    def _splice(self, sink_fd: int) -> bool:
        """Splice what is there; False if it has to be read and written instead."""
        try:
            moved = os.splice(self._source_fd, sink_fd, _SPLICE_SIZE, flags=_SPLICE_FLAGS)
        except BlockingIOError:  # either side: look which
            if _ready_for(sink_fd, select.POLLOUT):
                return False
            self._wait_for_sink(sink_fd)
            return True
        except BrokenPipeError:
            self._discard_from_now()
            return False
        except OSError as error:
            if error.errno == errno.EINVAL:  # a terminal driver or file system that cannot splice
                return False
            raise
        if moved == 0:
            self.close()
        return True

    def _write(self, data: bytes) -> None:
        try:
            taken = self._sink.write(data)
        except BlockingIOError:
            taken = 0
        except BrokenPipeError:
            self._discard_from_now()
            return
        self._unwritten = data[taken:]
        if self._unwritten and self._sink.fd is not None:
            self._wait_for_sink(self._sink.fd)

    def _wait_for_sink(self, sink_fd: int) -> None:
        self._sink_full = True
        self._stop_reading()
        self._loop.watch(sink_fd, WRITE, self._sink_ready)

    def _sink_ready(self, _events: int) -> None:
        self._unwatch_sink()
        if self._unwritten:
            self._write(self._unwritten)
        self._read_on()

    def _taps_ready(self) -> None:
        self._taps_full = False
        self._read_on()

    def _read_on(self) -> None:
        """Read again, unless a taker is full or the stream has ended."""
        if not (self._reading or self._sink_full or self._taps_full or self.ended.done):
            self._reading = True
            self._loop.watch(self._source_fd, READ, self._source_ready)

    def _stop_reading(self) -> None:
        self._reading = False
        self._loop.unwatch(self._source_fd)

    def _discard_from_now(self) -> None:
        """The taker is gone for good: keep reading for the container's sake, keep nothing."""
        self._unwatch_sink()
        self._sink.end()
        self._sink = NullSink()
        self._unwritten = b""

    def _unwatch_sink(self) -> None:
        self._sink_full = False
        if self._sink.fd is not None:
            self._loop.unwatch(self._sink.fd)


class InputRelay:
    """Moves input from a FIFO and from attached clients to the process."""

    def __init__(self, loop: Loop, target_fd: int, when_closed: Callable[[], None] | None = None) -> None:
        """Own `target_fd`: the write end of the process's stdin, or its terminal; `when_closed` is called after it."""
        os.set_blocking(target_fd, False)
        self._loop = loop
        self._target_fd: int | None = target_fd
        self._source_fd: int | None = None
        self._keeper_fd: int | None = None
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._waiting: list[Callable[[], None]] = []
        self._end_when_written = False
        self._when_closed = when_closed

    def follow(self, source_fd: int, keeper_fd: int) -> None:
        """Move what arrives at a FIFO; `keeper_fd` is our own write end of it. Both are owned from now on."""
        self._source_fd = source_fd
        self._keeper_fd = keeper_fd
        self._loop.watch(source_fd, READ, self._readable)

    @property
    def open(self) -> bool:
        """Whether the process's input has not been closed."""
        return self._target_fd is not None

    @property
    def full(self) -> bool:
        """Whether attached clients should wait before they send more."""
        return self._queued >= _MAX_INPUT

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call once when attached clients may send again, or the input was closed."""
        self._waiting.append(callback)

    def write(self, data: bytes) -> None:
        """Queue bytes of an attached client; dropped if the input is closed."""
        if self._target_fd is not None and not self._end_when_written:
            self._queue.append(data)
            self._queued += len(data)
            self._flush()

    def close_io(self) -> None:
        """End the input when the client has closed its end of the FIFO as well; at once where there is no FIFO."""
        self._release_keeper()
        if self._source_fd is None:
            self.end()

    def end(self) -> None:
        """Close the process's input once all that is queued has been written."""
        self._end_when_written = True
        self._flush()

    def close(self) -> None:
        """Close everything now."""
        self._stop_following()
        self._release_keeper()
        if self._target_fd is not None:
            self._loop.unwatch(self._target_fd)
            os.close(self._target_fd)
            self._target_fd = None
            if self._when_closed is not None:
                self._when_closed()
        self._queue.clear()
        self._queued = 0
        self._call_waiting()

    def _readable(self, _events: int) -> None:
        assert self._source_fd is not None
        if self._target_fd is None:
            self._stop_following()
            return
        try:
            moved = os.splice(self._source_fd, self._target_fd, _SPLICE_SIZE, flags=_SPLICE_FLAGS)
        except BlockingIOError:
            self._splice_blocked(self._source_fd, self._target_fd)
            return
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # the process closed its input, or its terminal is gone
                journal.log("input relay failed", error=str(error))
            self.close()
            return
        if moved == 0:
            self._stop_following()
            self.end()

    def _splice_blocked(self, source_fd: int, target_fd: int) -> None:
        """Wait for room in the target; where there is some, the target cannot be spliced into: copy once."""
        if not _ready_for(target_fd, select.POLLOUT):
            self._loop.unwatch(source_fd)
            self._loop.watch(target_fd, WRITE, self._target_ready)
            return
        try:
            data = os.read(source_fd, CHUNK)
        except BlockingIOError:
            return
        self.write(data)

    def _target_ready(self, _events: int) -> None:
        if self._target_fd is not None:
            self._loop.unwatch(self._target_fd)
        self._flush()
        if self._source_fd is not None and not self._queue:
            self._loop.unwatch(self._source_fd)
            self._loop.watch(self._source_fd, READ, self._readable)

    def _flush(self) -> None:
        target_fd = self._target_fd
        if target_fd is None:
            return
        while self._queue:
            data = self._queue[0]
            try:
                written = os.write(target_fd, data)
            except BlockingIOError:
                written = 0
            except OSError:
                self.close()
                return
            self._queued -= written
            if written < len(data):
                self._queue[0] = data[written:]
                self._loop.unwatch(target_fd)
                self._loop.watch(target_fd, WRITE, self._target_ready)
                return
            self._queue.popleft()
        if self._end_when_written:
            self.close()
        else:
            self._call_waiting()

    def _stop_following(self) -> None:
        if self._source_fd is not None:
            self._loop.unwatch(self._source_fd)
            os.close(self._source_fd)
            self._source_fd = None

    def _release_keeper(self) -> None:
        if self._keeper_fd is not None:
            os.close(self._keeper_fd)
            self._keeper_fd = None

    def _call_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()


def _ready_for(fd: int, event: int) -> bool:
    """Whether `fd` has that event now, or an error or end that a read or write would tell of."""
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(0))
