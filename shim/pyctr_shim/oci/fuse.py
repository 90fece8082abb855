"""Mounts that a program serves: of type `fuse3.PROGRAM`, as snapshotters of containerd hand them out.

The program goes on in the background, and ends when what it serves is unmounted everywhere. It is started on the host,
never from a container's namespaces, which it would keep. Source: mount.fuse3(8).
"""

import os
import select
import signal
import time
from collections.abc import Sequence
from typing import Final

from pyctr_shim.oci.errors import OciError

_MOST: Final = 4096  # bytes of a program's complaint
_PATIENCE: Final = 10.0  # seconds


def mount_fuse(kind: str, source: str, target: str, options: Sequence[str]) -> None:
    """Have a file system mounted on `target`, and wait until it is. Raises OciError with what the program says."""
    program = kind.partition(".")[2]
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.posix_spawnp(
            program,
            [program, source, target, "-o", ",".join(options)],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, write_fd, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
    except OSError as error:
        os.close(read_fd)
        raise OciError(f"rootfs: mount of type {kind}: {program}: {error.strerror}", error.errno or 0) from None
    finally:
        os.close(write_fd)
    said = _said(read_fd, pid)
    _pid, status = os.waitpid(pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise OciError(f"rootfs: mount of type {kind}: {program} ended with {code}: {said}")


def _said(read_fd: int, pid: int) -> str:
    """Return what a program complains of until it goes to the background; one that does not in time is ended."""
    deadline, said = time.monotonic() + _PATIENCE, b""
    with open(read_fd, "rb", buffering=0) as errors, select.epoll() as epoll:
        epoll.register(errors, select.EPOLLIN)
        while len(said) < _MOST:
            if not epoll.poll(max(deadline - time.monotonic(), 0)):
                os.killpg(pid, signal.SIGKILL)
                return f"nothing was mounted within {_PATIENCE:g} s"
            if not (part := errors.read(_MOST)):
                break
            said += part
    return said.decode(errors="replace").strip()
