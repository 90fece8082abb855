"""What a dead shim left behind, ended and removed: the command `delete`, which prints a marshalled DeleteResponse.

Run by the daemon when a shim's connection has closed or its lock is free. It may be repeated, and killed at any
point: what is left is named by state.json in the bundle until it is gone. Source: containerd's runtime v2
documentation.
"""

import json
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from pyctr_shim.exit_record import read_record
from pyctr_shim.oci import runtime
from pyctr_shim.oci.errors import OciError
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2

_SHIM_LOST: Final = 255
_LIMIT: Final = 4.0  # containerd gives `delete` five seconds
_PAUSE: Final = 0.01


def delete(bundle: Path, container: str) -> bytes:
    """Bury the container and return a marshalled DeleteResponse.

    containerd starts us in the bundle or beside it. The status is that of the exit record, if the shim still wrote
    one, and 255 otherwise: nobody knows. Raises OciError if processes or cgroups outlast SIGKILL.
    """
    if container and bundle.name != container and (bundle.parent / container).is_dir():
        bundle = bundle.parent / container
    response = shim_pb2.DeleteResponse(pid=bury(bundle), exit_status=_SHIM_LOST)
    response.exited_at.FromNanoseconds(time.time_ns())
    record = read_record(bundle)
    if record is not None:
        response.pid = int(record["pid"])
        response.exit_status = int(record["exit_status"])
        response.exited_at.FromNanoseconds(int(record["exited_at_ns"]))
    for path in _sockets(bundle):
        path.unlink(missing_ok=True)
    return response.SerializeToString()


def bury(bundle: Path) -> int:
    """Kill every process of the container, remove its cgroups and state; return the first process's pid, or 0."""
    if (bundle / "runtime.json").exists():
        from pyctr_shim.external import remains

        record = remains.read(str(bundle))
        if record is not None:
            pid = remains.bury(str(bundle), record)
            _repeat(lambda: remains.remove(record))
            return pid
    try:
        container = runtime.load(str(bundle))
    except FileNotFoundError:
        return 0

    def end() -> None:
        container.kill_all(signal.SIGKILL)
        container.delete()

    _repeat(end)
    return container.pid


def _repeat(end: Callable[[], None]) -> None:
    """Call `end` until it works: what has been killed takes a moment to go. Raises its last OciError."""
    deadline = time.monotonic() + _LIMIT
    while True:
        try:
            end()
        except OciError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)
        else:
            return


def _sockets(bundle: Path) -> list[Path]:
    """Return the dead shim's sockets, as its description names them."""
    with suppress(OSError, ValueError):
        description = json.loads((bundle / "shim.json").read_bytes())
        return [Path(description[key]) for key in ("address", "attach") if key in description]
    return []
