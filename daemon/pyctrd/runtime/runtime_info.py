"""What our runtime says of itself: the shim's program knows, so it is asked."""

import subprocess
import sys
from typing import Final

from pyctr_wire.errors import UnknownError

_PROGRAM: Final = (sys.executable, "-m", "pyctr_shim", "-info")
_TIMEOUT: Final = 30.0  # seconds
_MAX_ERROR_TEXT: Final = 4096  # bytes of its stderr that go into an error


def runtime_info(options: bytes) -> bytes:
    """Return a marshalled containerd.types.RuntimeInfo; blocks.

    `options` is a marshalled google.protobuf.Any, or nothing. Raises UnknownError with what the program said.
    """
    try:
        done = subprocess.run(_PROGRAM, input=options, capture_output=True, timeout=_TIMEOUT, cwd="/", check=False)
    except subprocess.TimeoutExpired as error:
        raise UnknownError(f"runtime info: no end after {_TIMEOUT:g} s") from error
    if done.returncode != 0:
        text = done.stderr[-_MAX_ERROR_TEXT:].decode(errors="replace").strip()
        raise UnknownError(f"runtime info: exit status {done.returncode}: {text}")
    return done.stdout
