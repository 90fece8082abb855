"""Who a shim is: what it was told when it was started. Values only."""

from pathlib import Path
from typing import NamedTuple


class Identity(NamedTuple):
    """A shim's parameters; `instance` tells two shims of one container id apart, empty under a foreign daemon."""

    namespace: str
    id: str
    bundle: Path
    socket: str
    attach: str
    ttrpc_address: str
    grpc_address: str
    instance: str
    log_level: str


def boot_id() -> str:
    """Return the kernel's boot id: what was written under another one is history. Source: random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
