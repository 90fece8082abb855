"""ImageFsInfo: what images and containers take of the snapshotter's file system.

What a layer takes was counted when it was unpacked. What a container has written must be walked, and kubelets ask
every few seconds: so that is good for a while.
"""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from pyctr_wire.errors import NotFound
from pyctrd.core.snapshots import Kind, SnapshotInfo, Usage
from pyctrd.offload import Offload

_GOOD_FOR: Final = 10.0  # seconds; containerd's CRI measures as often


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
        # What containers have written, by snapshot, and when that was walked, monotonic.
        self._walks: dict[str, Usage] = {}
        self._walked = 0.0

    async def measure(self) -> FilesystemUsage:
        """Return the usage; what containers have written, as it was at most ten seconds ago."""
        async with self._measuring:
            return await self._bulk.run(self._sum)

    def _sum(self) -> FilesystemUsage:
        taken_at, size, inodes = time.time_ns(), 0, 0
        if time.monotonic() - self._walked > _GOOD_FOR:
            self._walks, self._walked = {}, time.monotonic()
        for info in [info for batch in self._snapshotter.list(self._ns) for info in batch]:
            usage = self._usage(info)
            size += usage.size
            inodes += usage.inodes
        return FilesystemUsage(taken_at, self._root, size, inodes)

    def _usage(self, info: SnapshotInfo) -> Usage:
        """Return what one snapshot takes; nothing if it is gone by now."""
        try:
            if info.kind is Kind.COMMITTED:
                return self._snapshotter.usage(self._ns, info.name)
            if info.name not in self._walks:
                self._walks[info.name] = self._snapshotter.usage(self._ns, info.name)
            return self._walks[info.name]
        except NotFound:
            return Usage(0, 0)
