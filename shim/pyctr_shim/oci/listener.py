"""Giving the agent of a spec the listener of a filter that asks it (SCMP_ACT_NOTIFY).

The process that loads the filter cannot send anything after that: the calls it would make may be those that the filter
asks about. So it says before which fd the listener will be, loads, and waits in a read. Whoever set it going takes
the fd out of it meanwhile, and lets it go on: the read may be asked about too, by then there is somebody to answer.
Source: OCI runtime specification, config-linux.md, "The Container Process State".
"""

import errno
import json
import os
import signal
import socket
import time
from contextlib import suppress
from typing import Final

from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.handshake import Channel, Message
from pyctr_shim.oci.state import OCI_VERSION, State, Status
from pyctr_sys.pidfd import pidfd_getfd, pidfd_send_signal, readable
from pyctr_sys.steps import Steps

_LOAD_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.001


def announce(channel: Channel) -> None:
    """Say which fd the next one opened in this process will be; the filter is to be loaded right after."""
    lowest = os.dup(channel.fileno())
    os.close(lowest)
    channel.send(Message.LISTENER, fd=lowest)


def add_wait(steps: Steps, socket_fd: int) -> None:
    """Wait until the listener has been taken over, and a message says so.

    Or until whoever takes it has died: then nobody answers, and calls that the filter asks about fail with ENOSYS.
    """
    buffer = steps.buffer("char[]", bytes(64))
    steps.call("linux.seccomp: waiting for the listener to be taken", "read", socket_fd, buffer, 64)


def hand_over(record: State, status: Status, pid: int, pidfd: int, fd: int) -> None:
    """Take the listener `fd` out of a process that is loading its filter, and give it to the agent.

    Then the process is to be told to go on. Raises OciError if the agent is not there; the process is killed then.
    """
    try:
        _hand_over(record, status, pid, pidfd, fd)
    except OciError:
        with suppress(ProcessLookupError):
            pidfd_send_signal(pidfd, signal.SIGKILL)
        raise


def _hand_over(record: State, status: Status, pid: int, pidfd: int, fd: int) -> None:
    target = record.linux["listener"]
    document = {
        "ociVersion": OCI_VERSION, "fds": ["seccompFd"], "pid": pid, "metadata": target["metadata"],
        "state": json.loads(record.document(status)),
    }  # fmt: skip
    listener_fd = _take(pidfd, fd)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
            agent.connect(target["path"])
            data = json.dumps(document).encode()
            sent = socket.send_fds(agent, [data], [listener_fd])
            agent.sendall(data[sent:])
    except OSError as error:
        raise OciError(f"linux.seccomp.listenerPath: {target['path']}: {error.strerror}", error.errno or 0) from None
    finally:
        os.close(listener_fd)


def _take(pidfd: int, fd: int) -> int:
    """Return the listener once it is there. Raises OciError if the process ends before."""
    deadline = time.monotonic() + _LOAD_SECONDS
    while time.monotonic() < deadline:
        try:
            return pidfd_getfd(pidfd, fd)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise OciError(f"linux.seccomp: taking the listener: {error.strerror}", error.errno or 0) from None
        if readable(pidfd, _POLL_SECONDS):
            break
    raise OciError("linux.seccomp: the filter was not loaded")
