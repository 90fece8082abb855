"""ImageFsInfo: what images and containers take of the snapshotter's file system, measured now and then.

Kubelets ask every few seconds, and what running containers have written must be walked: a measurement is good for a
while, and all who ask meanwhile wait for the same one.
"""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from pyctr_wire.errors import NotFound
from pyctrd.core.snapshots import SnapshotInfo, Usage
from pyctrd.offload import Offload

_GOOD_FOR: Final = 10.0  # seconds; as often as containerd's CRI measures


class Snapshotter(Protocol):
    """The snapshots of one kind."""

    def list(self, ns: str, /) -> Iterator[list[SnapshotInfo]]: ...
    def usage(self, ns: str, key: str, /) -> Usage: ...


class FilesystemUsage(NamedTuple):
    """`taken_at` in nanoseconds since the epoch, `size` in bytes; `mountpoint` is the snapshotter's directory."""

    taken_at: int
    mountpoint: Path
    size: int
    inodes: int


class UsageMeter:
    """Measures one snapshotter's use of its file system in one namespace."""

    def __init__(self, snapshotter: Snapshotter, root: Path, ns: str, bulk: Offload) -> None:
        """Measure `snapshotter`, which keeps all it has below `root`, in a thread of `bulk`."""
        self._snapshotter = snapshotter
        self._root = root
        self._ns = ns
        self._bulk = bulk
        self._measuring = asyncio.Lock()
        self._last: FilesystemUsage | None = None
        self._measured = 0.0  # when that was, monotonic

    async def measure(self) -> FilesystemUsage:
        """Return the usage as it was at most ten seconds ago."""
        async with self._measuring:
            if self._last is None or time.monotonic() - self._measured > _GOOD_FOR:
                self._last = await self._bulk.run(self._sum)
                self._measured = time.monotonic()
            return self._last

    def _sum(self) -> FilesystemUsage:
        taken_at, size, inodes = time.time_ns(), 0, 0
        for info in [info for batch in self._snapshotter.list(self._ns) for info in batch]:
            try:
                usage = self._snapshotter.usage(self._ns, info.name)
            except NotFound:
                continue
            size += usage.size
            inodes += usage.inodes
        return FilesystemUsage(taken_at, self._root, size, inodes)
