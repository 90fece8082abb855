"""Every message between the runtime's parent side and the process that becomes the container's.

    message    direction        when                                              answer
    RESTAGE    child → parent   the spec needs what the first fork did not give    the parent forks again
    INIT       child → parent   the container's init is another process: its pid   -
    STEPPED    child → parent   the same, but the child stays until that executes  -
    NETWORK    init → parent    the network namespace is there: give it devices   GO, or nothing if one cannot be had
    HOOKS      init → parent    namespaces and mounts are there, root is not yet   GO, or nothing if one failed
    CONSOLE    init → parent    with an fd: the terminal's master side             -
    CREATED    init → parent    ready to execute                                   START
    LISTENER   init → parent    the filter's listener will be that fd of its      GO once that is taken and handed over
    FAILED     child → parent   text and errno; the child has ended                -
    (its end)  child → parent   it executes the program (the socket is close-on-exec)

The socket is of type SOCK_SEQPACKET: a message is a packet, and the end of either side is seen by the other.
"""

import array
import fcntl
import json
import select
import socket
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Final

from pyctr_shim.oci.errors import OciError

_LARGEST: Final = 64 * 1024  # well below the default send buffer, so that a packet is never refused
_LONGEST_TEXT: Final = 8192
_MOST_FDS: Final = 4
_FD_SPACE: Final = socket.CMSG_SPACE(4 * _MOST_FDS)


class Message(StrEnum):
    """What a packet says."""

    RESTAGE = "restage"
    INIT = "init"
    STEPPED = "stepped"
    NETWORK = "network"
    HOOKS = "hooks"
    CONSOLE = "console"
    CREATED = "created"
    LISTENER = "listener"
    FAILED = "failed"
    GO = "go"
    START = "start"


class Channel:
    """One end of the socket; owns it."""

    def __init__(self, end: socket.socket) -> None:
        """Take over `end`."""
        self._socket = end

    @classmethod
    def pair(cls) -> tuple["Channel", "Channel"]:
        """Return two connected ends, close-on-exec."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(other)

    @classmethod
    def of(cls, fd: int) -> "Channel":
        """Return the end whose fd this is, which is owned from now on."""
        return cls(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd))

    def __reduce__(self) -> tuple[Callable[[int], "Channel"], tuple[int]]:
        """Pickle it for a process with the same descriptors, which waits on it as this one does."""
        return Channel.of, (self.fileno(),)

    def fileno(self) -> int:
        """Return the socket's fd, for selectors and for close_range's exceptions."""
        return self._socket.fileno()

    def move_above(self, lowest: int) -> None:
        """Give the socket an fd of at least `lowest`, which tells what to keep when all else is closed."""
        if self._socket.fileno() < lowest:
            raised = fcntl.fcntl(self._socket.fileno(), fcntl.F_DUPFD_CLOEXEC, lowest)
            self._socket.close()
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=raised)

    def accept_in_place(self, listening_fd: int) -> None:
        """Go on with whoever connects to a listening socket; closes both that and the old connection."""
        with socket.socket(fileno=listening_fd) as server:
            connection, _ = server.accept()
        self._socket.close()
        self._socket = connection

    def send(self, message: Message, fds: Sequence[int] = (), **fields: Any) -> None:
        """Send one message, with fds (borrowed) where it carries some. Raises BrokenPipeError."""
        packet = json.dumps({"message": message, **fields}).encode()
        if len(packet) > _LARGEST:
            raise OciError(f"handshake: {message.value} message of {len(packet)} bytes is too long")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._socket.sendmsg([packet], rights, socket.MSG_NOSIGNAL)

    def peer_has_ended(self) -> bool:
        """Whether the other end is closed, without waiting."""
        poll = select.poll()
        poll.register(self._socket.fileno(), 0)  # hang-ups are reported unasked
        return bool(poll.poll(0))

    def fail(self, text: str, number: int) -> None:
        """Say what went wrong, to whoever still listens."""
        try:
            self.send(Message.FAILED, text=text[:_LONGEST_TEXT], errno=number)
        except OSError:
            return  # the parent is gone, and with it the wish for this process

    def receive(self) -> tuple[Message, dict[str, Any], list[int]] | None:
        """Wait for a message: what it is, its fields and its fds. None when the other side has ended."""
        try:
            packet, ancillary, _, _ = self._socket.recvmsg(_LARGEST, _FD_SPACE, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return None
        fds = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data)
        if not packet:
            return None
        fields = json.loads(packet)
        return Message(fields.pop("message")), fields, list(fds)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
