"""When this machine was started."""

from datetime import UTC, datetime
from pathlib import Path


def boot_time() -> datetime:
    """Return when this machine was started. Source: proc(5)."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("btime "):
            return datetime.fromtimestamp(int(line.split()[1]), UTC)
    return datetime.fromtimestamp(0, UTC)
