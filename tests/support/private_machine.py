"""A network of one's own and empty /run and /var/lib, for programs that keep what they know at fixed places there."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .pod_networks import own_host

_EMPTY: Final = ("/run", "/var/lib")
_MAKE: Final = f"for folder in {' '.join(_EMPTY)}; do mount -t tmpfs tmpfs $folder; done; echo ready; exec cat"


@dataclass(frozen=True, slots=True)
class Machine:
    """Where programs run that are started with `wrapper` before their words; all others see its network only."""

    holder: int

    @property
    def wrapper(self) -> tuple[str, ...]:
        return ("nsenter", f"--mount=/proc/{self.holder}/ns/mnt", "--")

    def files(self) -> set[str]:
        """Return the files that are in the folders which were empty."""
        root = Path(f"/proc/{self.holder}/root")
        found = (path for folder in _EMPTY for path in (root / folder[1:]).rglob("*"))
        return {f"/{path.relative_to(root)}" for path in found if not path.is_dir()}

    def mounts(self) -> list[str]:
        """Return the places at which something is mounted."""
        return [line.split()[4] for line in Path(f"/proc/{self.holder}/mountinfo").read_text().splitlines()]


@contextmanager
def private_machine() -> Iterator[Machine]:
    """Yield a machine; this thread is in its network meanwhile."""
    pipe = subprocess.PIPE
    command = ["unshare", "--mount", "sh", "-ec", _MAKE]
    with own_host(), subprocess.Popen(command, stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"ready\n"
        yield Machine(holder.pid)
        holder.stdin.close()  # which ends it
