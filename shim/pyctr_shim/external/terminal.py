"""The socket on which a runtime hands over a container's terminal: one descriptor, the pty's master.

Source: the console-socket of runc's documentation on terminals.
"""

import array
import os
import socket
from contextlib import suppress
from typing import Final

from pyctr_shim.loop import READ, Loop
from pyctr_shim.oci.errors import OciError

_NAME_BYTES: Final = 4096
_MAY_SEND: Final = 4


class ConsoleSocket:
    """Listens at a path for one runtime that sends one terminal."""

    def __init__(self, loop: Loop, path: str) -> None:
        """Listen. Raises OSError."""
        self.path = path
        self._loop = loop
        self._master_fd: int | None = None
        self._peer: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._listener.bind(path)
            os.chmod(path, 0o600)
            self._listener.listen(1)
        except OSError:
            self._listener.close()
            raise
        loop.watch(self._listener.fileno(), READ, self._accept)

    def take(self) -> int:
        """Return the terminal, the caller's from now on. Raises OciError if none was sent."""
        with suppress(BlockingIOError):  # sent before the runtime's end, whether or not the loop has seen it by now
            if self._peer is None:
                self._accept()
            if self._master_fd is None:
                self._receive()
        master_fd, self._master_fd = self._master_fd, None
        if master_fd is None:
            raise OciError("process.terminal: the runtime has handed over no terminal")
        return master_fd

    def close(self) -> None:
        """Listen no more, and close what nobody has taken."""
        for one in (self._listener, self._peer):
            if one is not None:
                self._loop.unwatch(one.fileno())
                one.close()
        if self._master_fd is not None:
            os.close(self._master_fd)
        with suppress(FileNotFoundError):
            os.unlink(self.path)

    def _accept(self, _events: int = 0) -> None:
        peer, _address = self._listener.accept()
        self._loop.unwatch(self._listener.fileno())
        peer.setblocking(False)
        self._peer = peer
        self._loop.watch(peer.fileno(), READ, self._receive)

    def _receive(self, _events: int = 0) -> None:
        if self._peer is None:
            return
        fds = array.array("i")
        # Not socket.recv_fds: in 3.11 it ignores its flags, and what is not close-on-exec leaks.
        space = socket.CMSG_SPACE(fds.itemsize * _MAY_SEND)
        _name, ancillary, _flags, _address = self._peer.recvmsg(_NAME_BYTES, space, socket.MSG_CMSG_CLOEXEC)
        self._loop.unwatch(self._peer.fileno())
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        for fd in fds:
            if self._master_fd is None and os.isatty(fd):
                self._master_fd = fd
            else:
                os.close(fd)
