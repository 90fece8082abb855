"""Becoming a program: found as a shell finds it, executed with nothing of the interpreter's left over."""

import errno
import os
import signal
import stat
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final

from pyctr_shim.oci.errors import OciError
from pyctr_sys.openat2 import open_in_root
from pyctr_sys.steps import StepFailed, Steps

_SIGSET_BYTES: Final = 8  # the kernel's; zeros in its struct sigaction, of 32 bytes or less, are the default
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


@cache
def handled_signals() -> tuple[int, ...]:
    """Return the signals that this process ignores or handles, as CPython does SIGPIPE, SIGXFSZ and SIGINT.

    Looked up once, before the first fork: what is ignored stays so, here and across exec.
    """
    return tuple(number for number in signal.valid_signals() if signal.getsignal(number) not in (signal.SIG_DFL, None))


def reset_signals() -> None:
    """Give signals the meaning and the mask that programs expect to start with."""
    steps = Steps()
    add_signals(steps)
    steps.run()


def add_signals(steps: Steps) -> None:
    """Make `reset_signals` steps."""
    default, nothing = steps.buffer("uint64_t[8]", []), steps.buffer("uint64_t *", 0)
    for number in handled_signals():
        steps.call("rt_sigaction", "rt_sigaction", number, default, 0, _SIGSET_BYTES)
    steps.call("rt_sigprocmask", "rt_sigprocmask", signal.SIG_SETMASK, nothing, 0, _SIGSET_BYTES)


def find_below(root_fd: int, name: str, env: Mapping[str, str]) -> str | None:
    """Return what `find` would in a container whose root is `root_fd`; None where only the container's user knows."""
    if "/" in name:
        return name
    for directory in env.get("PATH", _DEFAULT_PATH).split(":"):
        path = f"{directory}/{name}"
        if not directory.startswith("/"):
            return None
        try:
            fd = open_in_root(root_fd, path)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        try:
            mode = os.fstat(fd).st_mode
        finally:
            os.close(fd)
        return path if stat.S_ISREG(mode) and mode & 0o111 else None
    return None


def add_execute(steps: Steps, path: str, arguments: Sequence[str], env: Mapping[str, str]) -> None:
    """Make `execute` a step. Raises ValueError for a NUL in an argument or a variable."""
    variables = [f"{name}={value}" for name, value in env.items()]
    if any("\0" in text for text in (path, *arguments, *variables)):
        raise ValueError("NUL in arguments or environment")
    vectors = [steps.strings(arguments), steps.strings(variables)]
    steps.call(f"exec {path}", "execve", steps.buffer("char[]", os.fsencode(path)), *vectors)


def execute(path: str, arguments: Sequence[str], env: Mapping[str, str]) -> OciError:
    """Replace this process by a program; returns only the error if that fails. Signals have been reset before."""
    try:
        os.execve(path, list(arguments), dict(env))  # noqa: S606 - becoming it is the point
    except (OSError, ValueError) as error:
        return failure(error, path)


def failure(error: OSError | ValueError, path: str) -> OciError:
    """Return what is said when a program, or what comes right before it, has failed."""
    if isinstance(error, StepFailed) and not (error.strerror or "").startswith("exec "):
        return OciError(error.strerror or "", error.errno or 0)
    number = (error.errno or 0) if isinstance(error, OSError) else errno.EINVAL
    return OciError(f"exec {path}: {os.strerror(number).lower()}", number)
