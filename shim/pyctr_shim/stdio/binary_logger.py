"""A program of the client's that takes a container's output: `binary:///PATH?KEY=VALUE`.

It is given the read ends of stdout and stderr as descriptors 3 and 4 and writes to descriptor 5 when it is
ready; its environment has CONTAINER_ID and CONTAINER_NAMESPACE and nothing else. Source: containerd's logging
package.
"""

import fcntl
import os
import signal
from typing import Final, NamedTuple
from urllib.parse import SplitResult, parse_qsl

from pyctr_shim.loop import READ, Future, Loop
from pyctr_wire.errors import InvalidArgument, UnknownError

READY_TIMEOUT: Final = 10.0
_FIRST_FREE: Final = 10


class BinaryLogger(NamedTuple):
    """A running logger: its process, the write ends of its two inputs, and its end."""

    pid: int
    pidfd: int
    stdout_fd: int
    stderr_fd: int
    ended: Future[None]


async def start(loop: Loop, uri: SplitResult, container_id: str, namespace: str) -> BinaryLogger:
    """Start the program and wait until it says that it is ready.

    The caller owns the two write ends and the pidfd. Raises InvalidArgument for a relative path, UnknownError if
    the program cannot be started, does not get ready in time, or (`binary-v2`) ends before it says so.
    """
    if not os.path.isabs(uri.path):
        raise InvalidArgument(f"logging binary {uri.path!r}: the path must be absolute")
    arguments = [uri.path]
    for key, value in parse_qsl(uri.query, keep_blank_values=True):
        arguments += [key, value]
    environment = {"CONTAINER_ID": container_id, "CONTAINER_NAMESPACE": namespace}
    read_ends, write_ends = zip(os.pipe(), os.pipe(), strict=True)
    ready_fd, ready_write_fd = os.pipe()
    try:
        pid = _spawn(arguments, environment, (*read_ends, ready_write_fd))
    except OSError as error:
        _close(*write_ends, ready_fd)
        raise UnknownError(f"logging binary {uri.path}: {error.strerror}") from error
    finally:
        _close(*read_ends, ready_write_fd)
    logger = BinaryLogger(pid, os.pidfd_open(pid), *write_ends, Future())
    loop.watch(logger.pidfd, READ, lambda _events: _reap(loop, logger))
    try:
        await _ready(loop, ready_fd, uri)
    except BaseException:
        _close(*write_ends)
        signal.pidfd_send_signal(logger.pidfd, signal.SIGKILL)
        logger.ended.when_done(lambda: os.close(logger.pidfd))
        raise
    finally:
        os.close(ready_fd)
    return logger


def _reap(loop: Loop, logger: BinaryLogger) -> None:
    loop.unwatch(logger.pidfd)
    os.waitpid(logger.pid, 0)  # it has ended
    logger.ended.set(None)


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
