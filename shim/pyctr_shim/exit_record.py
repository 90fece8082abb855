"""Exit records: what a process's end was, on disk before anybody is told.

    <bundle>/exits/init.json             the container's first process
    <bundle>/exits/exec-<exec id>.json   the others

A shim that dies after an exit leaves the record; a daemon that was away reads it. Times come from both clocks,
because the wall clock may be set; the boot id says whether the monotonic one still means anything.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from pyctr_shim.identity import write_file


class Exit(NamedTuple):
    """How a process ended. `status` is 128 plus the signal if one ended it; `reason` is exited, signalled or oom."""

    container: str
    exec_id: str
    pid: int
    status: int
    signal: int
    exited_at_ns: int
    monotonic_ns: int
    oom_killed: bool
    reason: str


class Usage(NamedTuple):
    """What a process used of the machine."""

    user_seconds: float
    system_seconds: float
    max_rss_kib: int


def record_name(exec_id: str) -> str:
    """Return the file name of a process's record; "" is the container's first process."""
    return f"exec-{exec_id}.json" if exec_id else "init.json"


def write_record(bundle: str, end: Exit, usage: Usage, boot_id: str) -> None:
    """Put the record in place whole, and on the disk where the bundle is on one; raises OSError."""
    folder = f"{bundle}/exits"
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    record = {
        "container": end.container,
        "exec_id": end.exec_id,
        "pid": end.pid,
        "exit_status": end.status,
        "signal": end.signal,
        "exited_at_ns": end.exited_at_ns,
        "monotonic_ns": end.monotonic_ns,
        "oom_killed": end.oom_killed,
        "reason": end.reason,
        "rusage": {
            "user_seconds": usage.user_seconds,
            "system_seconds": usage.system_seconds,
            "max_rss_bytes": usage.max_rss_kib * 1024,
        },
        "boot_id": boot_id,
    }
    write_file(f"{folder}/{record_name(end.exec_id)}", json.dumps(record).encode(), os.fsync)


def forget_record(bundle: str, exec_id: str) -> None:
    """Remove the record of an exec that has been deleted: its id is free again, also to the next daemon."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{bundle}/exits/{record_name(exec_id)}")


def read_record(bundle: Path, exec_id: str = "") -> dict[str, Any] | None:
    """Return the record of a process, None if there is none or it cannot be read."""
    try:
        record = json.loads((bundle / "exits" / record_name(exec_id)).read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
