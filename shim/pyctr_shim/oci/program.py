"""Becoming a program: found as a shell finds it, executed with nothing of the interpreter's left over."""

import errno
import os
import signal
import stat
from collections.abc import Mapping, Sequence
from typing import Final

from pyctr_shim.oci.errors import OciError

_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find(name: str, env: Mapping[str, str]) -> str:
    """Return the path to execute for `name`. The texts are those that clients look for.

    Raises OciError: ENOENT, EACCES, EISDIR.
    """
    if "/" in name:
        if number := _why_not(name):
            text = os.strerror(number).lower()
            raise OciError(f'exec: "{name}": {f"stat {name}: {text}" if number == errno.ENOENT else text}', number)
        return name
    denied = False
    for directory in env.get("PATH", _DEFAULT_PATH).split(":"):
        path = os.path.join(directory or ".", name)
        number = _why_not(path)
        if not number:
            return path
        denied = denied or number == errno.EACCES
    if denied:
        raise OciError(f'exec: "{name}": permission denied', errno.EACCES)
    raise OciError(f'exec: "{name}": executable file not found in $PATH', errno.ENOENT)


def _why_not(path: str) -> int:
    """Return 0 if `path` can be executed, else the errno that says why not."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return error.errno or errno.ENOENT
    if stat.S_ISDIR(mode):
        return errno.EISDIR
    return 0 if os.access(path, os.X_OK, effective_ids=True) else errno.EACCES


def execute(path: str, arguments: Sequence[str], env: Mapping[str, str]) -> OciError:
    """Replace this process by a program; returns only the error if that fails.

    CPython ignores SIGPIPE and SIGXFSZ, and what is ignored stays so across exec; so does the mask.
    """
    for ignored in signal.valid_signals():
        if signal.getsignal(ignored) == signal.SIG_IGN:
            signal.signal(ignored, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.execve(path, list(arguments), dict(env))  # noqa: S606 - becoming it is the point
    except (OSError, ValueError) as error:
        number = (error.errno or 0) if isinstance(error, OSError) else errno.EINVAL
        return OciError(f"exec {path}: {os.strerror(number).lower()}", number)
