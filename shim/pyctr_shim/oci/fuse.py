"""Mounts that a program serves: of type `fuse3.PROGRAM`, as snapshotters of containerd hand them out.

The program goes on in the background, and ends when what it serves is unmounted everywhere. It is started on the host,
never from a container's namespaces, which it would keep. Source: mount.fuse3(8).
"""

import os
import signal
from collections.abc import Sequence
from typing import Final

from pyctr_shim.oci.errors import OciError

_MOST: Final = 4096  # bytes of a program's complaint


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
    with open(read_fd, "rb") as errors:
        said = errors.read(_MOST).decode(errors="replace").strip()  # ends when it goes to the background
    _pid, status = os.waitpid(pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise OciError(f"rootfs: mount of type {kind}: {program} ended with {code}: {said}")
