"""What a state directory tells after the machine was started anew.

It belongs on a tmpfs, where nothing of it is left then. On a disk it outlives the boot, and everything that it says of
processes, sockets, mounts and cgroups is about some that there are no more: a pid in it may be anybody's by now, and
what was written last may be cut off. What it says of containers and of how they have ended is still true.

    <state>/boot_id   the boot that everything beside it belongs to, as the kernel names it
"""

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pyctrd.core.tasks import LOST_EXIT_STATUS, REBOOTED, Exit
from pyctrd.log import Logger
from pyctrd.runtime.bundle import Bundle, Bundles

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_log = Logger("pyctrd.runtime")


def settle(state: Path, bundles: Bundles, boot_id_path: Path = _BOOT_ID) -> None:
    """Have bundles of an earlier boot tell that what ran in it has ended; for a start, before anything reads them.

    Nobody knows how it ended: status 255, unless there is a record. It may be repeated, and cut off at any point.
    """
    marker, boot_id = state / "boot_id", boot_id_path.read_text().strip()
    known = _read(marker)
    if known == boot_id:
        return
    if known:
        whole, _, _ = bundles.list()
        for bundle in whole:
            _end(bundle)
        for stale in (*(state / "s").glob("*"), *(state / "pods").glob("*/ns/init.json")):
            stale.unlink()
        _log.warning("rebooted", tasks=len(whole))
    _write(marker, boot_id)


def _end(bundle: Bundle) -> None:
    pid, recorded = bundle.recorded_pid(), bundle.exits()
    if pid or recorded:
        now = datetime.now(UTC)
        for exec_id in {"", *bundle.execs()} - recorded.keys():
            bundle.write_exit(exec_id, pid if not exec_id else 0, Exit(LOST_EXIT_STATUS, now, reason=REBOOTED))
        bundle.mark_buried()
    # Whoever finds none of these ends no process: the pids in them are of another boot. The state comes last, because
    # it says that there was a container.
    for path in (bundle.path / "spool").glob("*"):
        path.unlink()
    for name in ("shim.json", "asleep", "runtime.json", "state.json"):
        with suppress(FileNotFoundError):
            (bundle.path / name).unlink()


def _read(marker: Path) -> str:
    try:
        return marker.read_text().strip()
    except FileNotFoundError:
        return ""


def _write(marker: Path, boot_id: str) -> None:
    temporary = marker.with_name(f".{marker.name}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"{boot_id}\n".encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(marker)
