"""The program of a worker process: one layer, taken apart or put together, and then it ends.

It is started with its socket as standard input and the daemon's import path as arguments, isolated and without
`site`. It is warm once it has imported what is below; then it waits for its request. Order matters:

    mount what the request names    with all privileges, nothing of the archive read
    import the codec                from the host's files, which are gone afterwards
    leave the host's files          `stage`
    fork what fills small files     `filling`
    drop privileges, filter calls   `cage`, in both processes
    start threads, read the blob
"""

import errno
import os
from _socket import SCM_RIGHTS, SOL_SOCKET, socket
from array import array
from select import POLLHUP, poll
from threading import Thread

from pyctr_sys.namespaces import in_user_namespace
from pyctr_sys.sync import syncfs
from pyctrd.diff import cage, messages
from pyctrd.diff.apply import DEVICES, apply
from pyctrd.diff.compare import Comparison
from pyctrd.diff.compression import Compression, compressor, decompressor
from pyctrd.diff.errors import ArchiveError, TooLarge
from pyctrd.diff.filling import Filler
from pyctrd.diff.pipeline import Pipeline, Sink
from pyctrd.diff.stage import Stage
from pyctrd.diff.tar_stream import ByteStream, TarReader
from pyctrd.diff.tar_writer import TarWriter
from pyctrd.diff.tree import Tree

_SOCKET_FD = 0
# What is smaller, in bytes, has no files that would make up for the start of a second process.
_LARGE_BLOB = 1 << 20
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM))


class OpaqueDirectories:
    """Hands directories to the daemon, which marks them as opaque."""

    def __init__(self, daemon: socket) -> None:
        """Send through `daemon`."""
        self._daemon = daemon
        self._fds = array("i")

    def add(self, fd: int) -> None:
        """Hand over `fd` (borrowed), soon."""
        self._fds.append(os.dup(fd))
        if len(self._fds) == messages.MAX_FDS:
            self.flush()

    def flush(self) -> None:
        """Hand over what was added, and wait until it is marked."""
        if self._fds:
            self._daemon.sendmsg([messages.OPAQUE], [(SOL_SOCKET, SCM_RIGHTS, self._fds)])
            for fd in self._fds:
                os.close(fd)
            self._fds = array("i")
            self._daemon.recv(len(messages.DONE))


def main() -> None:
    """Answer one request and exit."""
    daemon = socket(fileno=os.dup(_SOCKET_FD))
    data, ancillary, _, _ = daemon.recvmsg(messages.MAX_REQUEST, 64)
    if not data:
        os._exit(0)  # not needed, or the daemon has gone
    (fd,) = array("i", ancillary[0][2])
    request = messages.decode_request(data)
    os.umask(0)
    try:
        if isinstance(request, messages.ApplyRequest):
            reply = _apply(request, fd, daemon)
        else:
            reply = _compare(request, fd, daemon)
    except ArchiveError as error:
        reply = _failed(messages.INVALID, str(error))
    except TooLarge as error:
        reply = _failed(messages.EXHAUSTED, str(error))
    except MemoryError:
        reply = _failed(messages.EXHAUSTED, "the worker's memory limit was reached")
    except OSError as error:
        text = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
        reply = _failed(messages.EXHAUSTED if error.errno in _FULL else messages.SYSTEM, text)
    except Exception as error:
        # Also a bug is the daemon's to report: it knows which layer this was.
        reply = _failed(messages.BUG, f"{type(error).__name__}: {error}{_where(error)}")
    daemon.send(reply)
    os._exit(0)  # at once: nothing here is worth tidying up


def _apply(request: messages.ApplyRequest, blob_fd: int, daemon: socket) -> bytes:
    """Unpack; return the reply with digest and size of the uncompressed archive."""
    chunks = decompressor(Compression(request.compression), blob_fd, request.budget)
    # Root of a user namespace can make none, and the runtime makes those that a container has.
    left_out = DEVICES if in_user_namespace() else frozenset()
    with Stage() as stage:
        target_fd, style = stage.target(request.mounts)
        lower_fd = stage.lower(request.mounts)
    many = os.fstat(blob_fd).st_size >= _LARGE_BLOB
    filler = Filler(lambda: _lock_in(cage.MAKING_FILES, request.max_file_size)) if many else None
    _lock_in(cage.MAKING_FILES, request.max_file_size)
    _end_with(daemon)
    pipeline = Pipeline(chunks)
    stream = ByteStream(iter(pipeline))
    opaque = OpaqueDirectories(daemon)
    apply(TarReader(stream), Tree(target_fd, lower_fd, style, opaque.add), request.max_file_size, filler, left_out)
    opaque.flush()
    stream.drain()
    if request.sync_fs:
        syncfs(target_fd)
    return _succeeded(*pipeline.digest())


def _compare(request: messages.CompareRequest, out_fd: int, daemon: socket) -> bytes:
    """Write a layer to `out_fd`; return the reply with digest and size of the uncompressed archive."""
    codec = compressor(Compression(request.compression))
    with Stage() as stage:
        left_fd = stage.show(request.left, "left")
        right_fd = stage.show(request.right, "right")
        upper_fd = stage.added(request.left, request.right)
    _lock_in(cage.READING_FILES, 0)
    _end_with(daemon)
    sink = Sink(codec, out_fd)
    epoch = request.epoch if request.epoch >= 0 else None
    Comparison(left_fd, right_fd, TarWriter(sink.write), epoch=epoch, upper_fd=upper_fd).write()
    return _succeeded(*sink.finish())


def _lock_in(kept: tuple[str, ...], max_file_size: int) -> None:
    """Give up everything that the work to come does not take."""
    cage.drop_privileges(kept)
    cage.limit_resources(max_file_size)
    cage.filter_system_calls()


def _end_with(daemon: socket) -> None:
    """Live no longer than the daemon: whoever starts next must not find files still changing."""
    Thread(target=_wait_for_end, args=(daemon,), daemon=True).start()


def _wait_for_end(daemon: socket) -> None:
    poller = poll()
    poller.register(daemon.fileno(), 0)  # POLLHUP comes unasked
    while not any(event & POLLHUP for _, event in poller.poll()):
        pass
    os._exit(1)


def _succeeded(digest: str, size: int) -> bytes:
    return b"\0".join((messages.RESULT, digest.encode(), str(size).encode()))


def _where(error: Exception) -> str:
    """Return the lines of code that led to `error`; importing traceback would make every worker start later."""
    lines, trace = "", error.__traceback__
    while trace is not None:
        lines += f", {os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return lines


def _failed(kind: bytes, text: str) -> bytes:
    return b"\0".join((messages.FAILED, kind, text.encode(errors="replace")[-4096:]))


if __name__ == "__main__":
    main()
