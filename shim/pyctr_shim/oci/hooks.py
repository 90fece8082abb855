"""Hooks: programs that run at the turning points of a container's life, fed its state.

They run with exactly the environment that the spec gives them, in `/`, in a session of their own,
and with no fd but the three of stdio; never with anything of the container's. A hook that
outlives its timeout is killed with its process group.
"""

import os
import signal
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pyctr_shim.oci import program
from pyctr_shim.oci.errors import OciError
from pyctr_sys.pidfd import pidfd_open, readable, wait
from pyctr_sys.process import close_range

KINDS: Final = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_OUTPUT_BYTES: Final = 4096
_NO_TIMEOUT_SECONDS: Final = 600.0


def run(kind: str, hooks: Iterable[Mapping[str, Any]], state: bytes) -> None:
    """Run hooks in order, each with `state` (JSON) on its stdin. Raises OciError at the first that fails."""
    for number, hook in enumerate(hooks):
        _run_one(f"hooks.{kind}[{number}] {hook['path']}", hook, state)


def run_all(kind: str, hooks: Iterable[Mapping[str, Any]], state: bytes) -> None:
    """Run hooks in order, also after one that fails. Raises OciError for the first that did."""
    first: OciError | None = None
    for number, hook in enumerate(hooks):
        try:
            _run_one(f"hooks.{kind}[{number}] {hook['path']}", hook, state)
        except OciError as error:
            first = first or error
    if first is not None:
        raise first


def _run_one(name: str, hook: Mapping[str, Any], state: bytes) -> None:
    stdin_fd, output_fd = _anonymous_file(state), _anonymous_file(b"")
    pid = os.fork()  # banned in the daemon only; the runtime is single-threaded
    if pid == 0:
        _become(hook, stdin_fd, output_fd)
    pidfd = pidfd_open(pid)
    try:
        timeout = float(hook.get("timeout") or _NO_TIMEOUT_SECONDS)
        deadline = time.monotonic() + timeout
        ended = readable(pidfd, deadline - time.monotonic())
        if not ended:
            os.killpg(pid, signal.SIGKILL)
        result = wait(pidfd)
        output = os.pread(output_fd, _OUTPUT_BYTES, 0).decode(errors="replace").strip()
    finally:
        for fd in (pidfd, stdin_fd, output_fd):
            os.close(fd)
    if not ended:
        raise OciError(f"error running {name}: not done after {timeout:g} s")
    if result is not None and (result.si_code != os.CLD_EXITED or result.si_status != 0):
        how = "exit status" if result.si_code == os.CLD_EXITED else "signal"
        raise OciError(f"error running {name}: {how} {result.si_status}, output: {output}")


def _anonymous_file(data: bytes) -> int:
    """Return an unnamed file: unlike a pipe it cannot fill up or lack a reader."""
    fd = os.memfd_create("hook", os.MFD_CLOEXEC)
    if data:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _become(hook: Mapping[str, Any], stdin_fd: int, output_fd: int) -> None:
    try:
        os.setsid()
        os.dup2(stdin_fd, 0, inheritable=True)
        os.dup2(output_fd, 1, inheritable=True)
        os.dup2(output_fd, 2, inheritable=True)
        close_range(3)
        os.chdir("/")
        program.reset_signals()
        env = dict(entry.partition("=")[::2] for entry in hook.get("env") or ())
        error = program.execute(hook["path"], hook.get("args") or [hook["path"]], env)
        os.write(2, str(error).encode())
    finally:
        os._exit(127)
