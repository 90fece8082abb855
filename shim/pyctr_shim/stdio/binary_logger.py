"""A program of the client's that takes a container's output: `binary:///PATH?KEY=VALUE`.

It is given the read ends of stdout and stderr as descriptors 3 and 4 and writes to descriptor 5 when it is
ready; its environment has CONTAINER_ID and CONTAINER_NAMESPACE and nothing else. Source: containerd's logging
package.

A logger that ends before what it logs is started again: nerdctl's ends when the daemon does. Meanwhile output waits in
the pipes, of which we keep both ends: without a reader, the container's next line would end it.
"""

import fcntl
import os
import select
import signal
import time
from typing import Final
from urllib.parse import SplitResult, parse_qsl

from pyctr_shim import journal
from pyctr_shim.loop import READ, Future, Loop, Timer
from pyctr_wire.errors import InvalidArgument, UnknownError

READY_TIMEOUT: Final = 10.0
_PATIENCE: Final = ((2.0, signal.SIGTERM), (10.0, signal.SIGKILL))
_FIRST_FREE: Final = 10
_FIRST_DELAY: Final = 0.5  # seconds; doubled for a logger that has not lived long
_LONGEST_DELAY: Final = 30.0


class BinaryLogger:
    """A logger: its program, and the write ends of its two inputs, which the caller owns."""

    def __init__(self, loop: Loop, arguments: list[str], environment: dict[str, str]) -> None:
        """Make the pipes."""
        self._loop = loop
        self._arguments = arguments
        self._environment = environment
        self._read_fds, (self.stdout_fd, self.stderr_fd) = zip(os.pipe(), os.pipe(), strict=True)
        self._ended = Future[None]()
        self._ended.set(None)
        self._pidfd = -1
        self._finished = False
        self._delay = _FIRST_DELAY
        self._started = 0.0
        self._timer: Timer | None = None

    def run(self, ready_fd: int) -> None:
        """Start the program; it is to write to `ready_fd`, which is borrowed. Raises OSError."""
        pid = _spawn(self._arguments, self._environment, (*self._read_fds, ready_fd))
        self._pidfd = os.pidfd_open(pid)
        self._started = time.monotonic()
        self._ended = Future[None]()
        self._loop.watch(self._pidfd, READ, lambda _events: self._reap(pid))

    def kill(self) -> None:
        """End the program, and be no logger any more."""
        self._finished = True
        if self._timer is not None:
            self._timer.cancel()
        if not self._ended.done:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._ended.when_done(self.close)

    async def finish(self) -> None:
        """What it logs has ended: let it finish by itself, then ask it to, then make it."""
        self._finished = True
        if self._timer is not None and self._timer.pending:
            self._timer.cancel()
            self._run_again()
        for seconds, number in _PATIENCE:
            if await self._loop.wait(self._ended, seconds):
                break
            signal.pidfd_send_signal(self._pidfd, number)
        self._ended.when_done(self.close)

    def close(self) -> None:
        """Close our copies of the read ends."""
        _close(*self._read_fds)

    def _reap(self, pid: int) -> None:
        self._loop.unwatch(self._pidfd)
        os.waitpid(pid, 0)  # it has ended
        os.close(self._pidfd)
        self._pidfd = -1
        if not self._finished:
            lived = time.monotonic() - self._started
            self._delay = _FIRST_DELAY if lived > 2 * _LONGEST_DELAY else min(2 * self._delay, _LONGEST_DELAY)
            self._timer = self._loop.call_later(self._delay, self._run_again)
        self._ended.set(None)

    def _run_again(self) -> None:
        """Start it again if there is, or may yet be, anything for it to log."""
        if not any(map(_is_open, self._read_fds)):
            return
        journal.log("logger started again", program=self._arguments[0])
        null_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)  # nobody waits until it is ready
        try:
            self.run(null_fd)
        except OSError as error:
            journal.log("logger not started", program=self._arguments[0], error=str(error))
            if not self._finished:
                self._timer = self._loop.call_later(_LONGEST_DELAY, self._run_again)
        finally:
            os.close(null_fd)


async def start(loop: Loop, uri: SplitResult, container_id: str, namespace: str) -> BinaryLogger:
    """Start the program and wait until it says that it is ready.

    The caller owns the two write ends. Raises InvalidArgument for a relative path, UnknownError if the program cannot
    be started, does not get ready in time, or (`binary-v2`) ends before it says so.
    """
    if not os.path.isabs(uri.path):
        raise InvalidArgument(f"logging binary {uri.path!r}: the path must be absolute")
    arguments = [uri.path]
    for key, value in parse_qsl(uri.query, keep_blank_values=True):
        arguments += [key, value]
    if any("\0" in argument for argument in arguments):
        raise InvalidArgument(f"logging binary {uri.path!r}: an argument contains a NUL byte")
    environment = {"CONTAINER_ID": container_id, "CONTAINER_NAMESPACE": namespace}
    logger = BinaryLogger(loop, arguments, environment)
    ready_fd, ready_write_fd = os.pipe()
    try:
        logger.run(ready_write_fd)
    except OSError as error:
        _close(logger.stdout_fd, logger.stderr_fd, ready_fd)
        logger.close()
        raise UnknownError(f"logging binary {uri.path}: {error.strerror}") from error
    finally:
        os.close(ready_write_fd)
    try:
        await _ready(loop, ready_fd, uri)
    except BaseException:
        _close(logger.stdout_fd, logger.stderr_fd)
        logger.kill()
        raise
    finally:
        os.close(ready_fd)
    return logger


def _is_open(read_fd: int) -> bool:
    """Return whether there is anything in a pipe, or somebody who may write to it."""
    poll = select.poll()
    poll.register(read_fd, select.POLLIN)
    [events] = [found for _, found in poll.poll(0)] or [0]
    return not events & select.POLLHUP or bool(events & select.POLLIN)


async def _ready(loop: Loop, ready_fd: int, uri: SplitResult) -> None:
    if not await loop.readable(ready_fd, READY_TIMEOUT):
        raise UnknownError(f"logging binary {uri.path} did not call ready in {READY_TIMEOUT:.0f} s")
    if not os.read(ready_fd, 1) and uri.scheme == "binary-v2":
        raise UnknownError("logging binary did not call ready (it may have crashed or exited prematurely)")


def _spawn(arguments: list[str], environment: dict[str, str], passed: tuple[int, ...]) -> int:
    """Start the program with `passed` as its descriptors 3, 4 and 5, in a session of its own."""
    # Copied above the targets first: a dup2 must not overwrite what the next one still needs.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE) for fd in passed]
    try:
        return os.posix_spawn(
            arguments[0],
            arguments,
            environment,
            file_actions=[
                *((os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)),
                *((os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(high, 3)),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
    finally:
        _close(*high)


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)
