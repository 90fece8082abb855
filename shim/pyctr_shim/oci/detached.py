"""A start that comes from another process than the one that created the container.

    <state directory>/start.sock    init listens here from `create` on; removed by the start

Whoever connects speaks the handshake of `handshake.py` from START on. The directory is 0700: only its
owner gets that far.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pyctr_shim.oci import listener
from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.handshake import Channel, Message
from pyctr_shim.oci.state import State, Status, read
from pyctr_sys.openat2 import O_PATH
from pyctr_sys.pidfd import pidfd_open

NAME: Final = "start.sock"


def listen(state_directory: str) -> socket.socket:
    """Return a listening socket; its fd is for init."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with _short_path(state_directory) as path:
        server.bind(path)
    server.listen(1)
    return server


def start(state_directory: str) -> None:
    """Let init execute its program. Raises OciError with the program's ENOENT or EACCES."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(client)
    try:
        with _short_path(state_directory) as path:
            client.connect(path)
        os.unlink(os.path.join(state_directory, NAME))
        channel.send(Message.START)
        answer = channel.receive()
        if answer is not None and answer[0] is Message.LISTENER:
            record = read(state_directory)
            pidfd = pidfd_open(record.pid)
            try:
                listener.hand_over(record, Status.CREATED, record.pid, pidfd, answer[1]["fd"])
                channel.send(Message.GO)
            finally:
                os.close(pidfd)
            answer = channel.receive()
    except (FileNotFoundError, ConnectionRefusedError):
        raise OciError("cannot start a container that is not in the created state") from None
    except BrokenPipeError:
        raise OciError("container init has ended before it was started") from None
    finally:
        channel.close()
    if answer is not None:
        raise OciError(answer[1]["text"], answer[1]["errno"])


def status(state_directory: str, record: State, *, paused: bool) -> Status:
    """Return the status that init's process, the socket and the freezer show together."""
    if not record.pid:
        return Status.CREATING
    if not record.is_alive():
        return Status.STOPPED
    if is_waiting(state_directory):
        return Status.CREATED
    return Status.PAUSED if paused else Status.RUNNING


def is_waiting(state_directory: str) -> bool:
    """Whether init waits for its start, or has ended before."""
    return os.path.exists(os.path.join(state_directory, NAME))


@contextmanager
def _short_path(state_directory: str) -> Iterator[str]:
    """Yield a path of the socket that fits into its 108 bytes, whatever the directory's length."""
    fd = os.open(state_directory, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{NAME}"
    finally:
        os.close(fd)
