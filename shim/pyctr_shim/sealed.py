"""Running from a copy of the interpreter that nobody can write to.

A container's first process is, until it executes its program, our interpreter; through /proc/PID/exe a hostile
program could keep that file open and write to it once nothing runs from it any more (CVE-2019-5736). A sealed
memfd can never be written. The libraries are found as ever, because argv[0] still names the file in the virtual
environment and the loader's search path in the binary is absolute; where it is not ($ORIGIN), a trial run fails
and we stay what we are. A shared libpython is not reachable from inside a container: /proc/PID/map_files takes
capabilities over the host, and the process is not dumpable while it is ours.
"""

import fcntl
import os
import sys
from typing import Final

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_COPY_SIZE: Final = 1 << 30


def is_sealed() -> bool:
    """Whether this process runs from a memfd."""
    return os.readlink("/proc/self/exe").startswith("/memfd:")


def run_from_sealed_copy() -> None:
    """Start this very command again from a sealed copy of the interpreter; return if it runs from one or cannot."""
    if is_sealed() or not sys.executable:
        return
    try:
        fd = sealed_copy("/proc/self/exe")
        if _works(fd):
            os.execve(fd, [sys.executable, *sys.orig_argv[1:]], os.environ)  # noqa: S606 - ourselves again
        os.close(fd)
    except OSError as error:
        os.write(2, f"pyctr-shim: not run from a sealed copy of {sys.executable}: {error}\n".encode())


def sealed_copy(path: str) -> int:
    """Return a memfd (close-on-exec, the caller's) that holds a copy of the file and can never be changed.

    Raises OSError. Source: memfd_create(2), fcntl(2) F_ADD_SEALS.
    """
    fd = os.memfd_create("pyctr-shim", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(path, "rb") as source:
            while os.sendfile(fd, source.fileno(), None, _COPY_SIZE):
                pass
        os.fchmod(fd, 0o700)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


def _works(fd: int) -> bool:
    """Whether the copy finds its library and its modules; ours are found by the name of the interpreter, not by it."""
    command = [sys.executable, "-I", "-S", "-c", ""]
    pid = os.posix_spawn(f"/proc/{os.getpid()}/fd/{fd}", command, os.environ)
    _pid, status = os.waitpid(pid, 0)
    return status == 0
