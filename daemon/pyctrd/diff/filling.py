"""Small files get their content in a second process while the next ones are made.

Making a file and filling it cost the kernel about as much, and many a layer is thousands of small files. A thread
could not do it: for calls as short as these, two threads spend on handing the interpreter to each other what they
save. The second process is forked from a worker that has one thread yet, locks itself in like it, and is given open
files, so it takes no paths; whoever made a file has decided where it is. It ends with its worker.

    worker → filler   a batch: lengths, then a marshalled list of files and all of their content; with their fds
    filler → worker   for an empty batch, after all before it are done: the first error, marshalled
"""

import marshal
import os
import signal
import struct
from _socket import MSG_CMSG_CLOEXEC, MSG_WAITALL, SCM_RIGHTS, SOL_SOCKET, socket, socketpair
from array import array
from collections.abc import Callable
from typing import Never

from pyctr_sys.process import set_parent_death_signal
from pyctrd.diff import attributes
from pyctrd.diff.tar_stream import Entry

_HEAD = struct.Struct("=II")  # lengths of the list and of the content, in bytes
# Files in a batch: enough that a batch costs little, and few enough to be open at once.
_BATCH = 64
_NOTHING = marshal.dumps([])

# What is needed of an entry, and `untouched`.
_File = tuple[bytes, int, int, int, int, int, int, dict[bytes, bytes] | None, bool]


class Filler:
    """The worker's end."""

    def __init__(self, lock_in: Callable[[], None]) -> None:
        """Fork, with a single thread; the new process calls `lock_in` before all else. Raises OSError."""
        ours_fd, theirs_fd = (end.detach() for end in socketpair())
        worker = os.getpid()
        if os.fork() == 0:
            _main(theirs_fd, worker, lock_in)
        os.close(theirs_fd)
        self._socket = socket(fileno=ours_fd)
        self._fds = array("i")
        self._files: list[_File] = []
        self._content: list[bytes | memoryview] = []

    def add(self, fd: int, content: bytes | memoryview, entry: Entry, *, untouched: bool) -> None:
        """Write `content` to the new file `fd`, `finish` it and close it, soon.

        Raises OSError if the other process is gone.
        """
        self._fds.append(fd)
        self._content.append(content)
        self._files.append(
            (
                entry.name, len(content), entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.atime_ns,
                entry.xattrs, untouched,
            )
        )  # fmt: skip
        if len(self._fds) == _BATCH:
            self._pass_on()

    def wait(self) -> tuple[bytes, OSError] | None:
        """Return when all files are filled: the first error, if there was one, and the name of its entry."""
        self._pass_on()
        self._socket.sendall(_HEAD.pack(len(_NOTHING), 0) + _NOTHING)
        reply = self._socket.recv(1 << 16)
        if not reply:
            raise RuntimeError("the process that fills files has ended")
        failure = marshal.loads(reply)  # noqa: S302 - no less locked in than we are
        return failure and (failure[0], OSError(*failure[1:]))

    def _pass_on(self) -> None:
        """Send what there is; it waits in the socket for its turn."""
        if not self._fds:
            return
        files, content = marshal.dumps(self._files), b"".join(self._content)
        head = _HEAD.pack(len(files), len(content))
        self._socket.sendmsg([head], [(SOL_SOCKET, SCM_RIGHTS, self._fds)])
        self._socket.sendall(files)
        self._socket.sendall(content)
        for fd in self._fds:
            os.close(fd)
        self._fds, self._files, self._content = array("i"), [], []


def write(fd: int, piece: bytes | memoryview) -> None:
    """Write all of `piece`."""
    written = os.write(fd, piece)
    while written < len(piece):  # the disk is filling up; the next call says so
        written += os.write(fd, piece[written:])


def finish(fd: int, entry: Entry, *, untouched: bool) -> None:
    """Give the file `fd` (borrowed), which has its content, all else; see `attributes.dress` for `untouched`."""
    attributes.dress(fd, entry, untouched=untouched)
    os.utime(fd, ns=attributes.times(entry))


def _main(socket_fd: int, worker: int, lock_in: Callable[[], None]) -> Never:
    """Fill files until the worker is gone."""
    try:
        set_parent_death_signal(signal.SIGKILL)
        if os.getppid() == worker:
            os.closerange(0, socket_fd)
            os.closerange(socket_fd + 1, os.sysconf("SC_OPEN_MAX"))
            our_socket = socket(fileno=socket_fd)
            lock_in()
            _serve(our_socket)
    finally:
        os._exit(1)


def _serve(worker: socket) -> None:
    error: tuple[bytes, int, str] | None = None
    space = array("i").itemsize * (_BATCH + 2) + 64
    entry = Entry()
    while True:
        head, ancillary, _, _ = worker.recvmsg(_HEAD.size, space, MSG_CMSG_CLOEXEC)
        if not head:
            return
        list_size, content_size = _HEAD.unpack(head)
        files = marshal.loads(worker.recv(list_size, MSG_WAITALL))  # noqa: S302 - no less locked in than we are
        if not files:
            worker.sendall(marshal.dumps(error))
            continue
        content, at = bytearray(content_size), 0
        worker.recv_into(content, content_size, MSG_WAITALL)
        view = memoryview(content)
        fds = array("i", ancillary[0][2])
        for fd, (name, size, *values, untouched) in zip(fds, files, strict=True):
            entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.atime_ns, entry.xattrs = values
            try:
                write(fd, view[at : at + size])
                finish(fd, entry, untouched=untouched)
            except OSError as failure:
                error = error or (name, failure.errno or 0, failure.strerror or "")
            finally:
                os.close(fd)
            at += size
