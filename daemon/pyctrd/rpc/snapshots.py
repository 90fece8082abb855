"""containerd.services.snapshots.v1."""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Protocol

from google.protobuf.empty_pb2 import Empty

from pyctr_wire.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from pyctrd.core.labels import Labels
from pyctrd.core.mounts import Mount
from pyctrd.core.snapshots import SnapshotInfo, Usage
from pyctrd.offload import Offload
from pyctrd.rpc.convert.records import mount_to_proto, snapshot_from_proto, snapshot_to_proto
from pyctrd.rpc.convert.well_known import mask_from_proto
from pyctrd.rpc.headers import Context, lease_of, namespace_of


class Snapshotter(Protocol):
    """Snapshots of one kind."""

    @property
    def is_remote(self) -> bool:
        """Whether another program keeps them."""

    def prepare(self, ns: str, key: str, parent: str, labels: Labels, /, lease: str) -> Sequence[Mount]: ...
    def view(self, ns: str, key: str, parent: str, labels: Labels, /, lease: str) -> Sequence[Mount]: ...
    def mounts(self, ns: str, key: str, /) -> Sequence[Mount]: ...
    def commit(self, ns: str, name: str, key: str, labels: Labels, parent: str, /, lease: str) -> None: ...
    def remove(self, ns: str, key: str, /, lease: str) -> None: ...
    def stat(self, ns: str, key: str, /) -> SnapshotInfo: ...
    def update(self, ns: str, info: SnapshotInfo, mask: tuple[str, ...], /) -> SnapshotInfo: ...
    def list(self, ns: str, filters: Sequence[str], /) -> Iterator[list[SnapshotInfo]]: ...
    def usage(self, ns: str, key: str, /) -> Usage: ...
    def cleanup(self) -> object: ...


class Snapshotters(Protocol):
    """The snapshotters that there are."""

    def named(self, snapshotter: str, /) -> Snapshotter: ...


class Snapshots:
    """Layers of file systems. Every call names its snapshotter: InvalidArgument if there is none of that name."""

    SERVICE: ClassVar = pb.DESCRIPTOR.services_by_name["Snapshots"]

    def __init__(self, snapshotters: Snapshotters, rows: Offload, bulk: Offload) -> None:
        """Serve `snapshotters`; what may walk directories runs in `bulk`, the rest in `rows`."""
        self._snapshotters = snapshotters
        self._rows = rows
        self._bulk = bulk

    async def Prepare(self, request: pb.PrepareSnapshotRequest, context: Context) -> pb.PrepareSnapshotResponse:
        """Make a writable snapshot. NotFound or InvalidArgument for its parent, AlreadyExists."""
        mounts = await self._bulk.run(
            self._snapshotters.named(request.snapshotter).prepare,
            namespace_of(context),
            request.key,
            request.parent,
            dict(request.labels),
            lease=lease_of(context),
        )
        return pb.PrepareSnapshotResponse(mounts=map(mount_to_proto, mounts))

    async def View(self, request: pb.ViewSnapshotRequest, context: Context) -> pb.ViewSnapshotResponse:
        """Make a read-only view. NotFound or InvalidArgument for its parent, AlreadyExists."""
        mounts = await self._bulk.run(
            self._snapshotters.named(request.snapshotter).view,
            namespace_of(context),
            request.key,
            request.parent,
            dict(request.labels),
            lease=lease_of(context),
        )
        return pb.ViewSnapshotResponse(mounts=map(mount_to_proto, mounts))

    async def Mounts(self, request: pb.MountsRequest, context: Context) -> pb.MountsResponse:
        """Return the mounts that show an active snapshot or a view. NotFound, FailedPrecondition."""
        snapshotter = self._snapshotters.named(request.snapshotter)
        mounts = await self._pool(snapshotter).run(snapshotter.mounts, namespace_of(context), request.key)
        return pb.MountsResponse(mounts=map(mount_to_proto, mounts))

    def _pool(self, snapshotter: Snapshotter) -> Offload:
        """Return where short calls run: not beside those on rows if another program may keep them waiting."""
        return self._bulk if snapshotter.is_remote else self._rows

    async def Commit(self, request: pb.CommitSnapshotRequest, context: Context) -> Empty:
        """Make an active snapshot read-only, under a name. NotFound, AlreadyExists, FailedPrecondition."""
        await self._bulk.run(
            self._snapshotters.named(request.snapshotter).commit,
            namespace_of(context),
            request.name,
            request.key,
            dict(request.labels),
            request.parent,
            lease=lease_of(context),
        )
        return Empty()

    async def Remove(self, request: pb.RemoveSnapshotRequest, context: Context) -> Empty:
        """Remove a snapshot that has no children. NotFound, FailedPrecondition."""
        snapshotter = self._snapshotters.named(request.snapshotter)
        await self._rows.run(snapshotter.remove, namespace_of(context), request.key, lease=lease_of(context))
        return Empty()

    async def Stat(self, request: pb.StatSnapshotRequest, context: Context) -> pb.StatSnapshotResponse:
        """Return what is known of a snapshot. NotFound."""
        snapshotter = self._snapshotters.named(request.snapshotter)
        info = self._rows.at_once(snapshotter.stat, namespace_of(context), request.key)
        return pb.StatSnapshotResponse(info=snapshot_to_proto(info))

    async def Update(self, request: pb.UpdateSnapshotRequest, context: Context) -> pb.UpdateSnapshotResponse:
        """Change labels, those that the mask names or all. NotFound, InvalidArgument."""
        snapshotter = self._snapshotters.named(request.snapshotter)
        info = await self._pool(snapshotter).run(
            snapshotter.update,
            namespace_of(context),
            snapshot_from_proto(request.info),
            mask_from_proto(request.update_mask),
        )
        return pb.UpdateSnapshotResponse(info=snapshot_to_proto(info))

    async def List(self, request: pb.ListSnapshotsRequest, context: Context) -> None:
        """Send the snapshots that match, a batch a message. InvalidArgument."""
        snapshotter = self._snapshotters.named(request.snapshotter)
        batches = await self._rows.run(snapshotter.list, namespace_of(context), tuple(request.filters))
        while batch := await self._rows.run(next, batches, None):
            await context.write(pb.ListSnapshotsResponse(info=map(snapshot_to_proto, batch)))

    async def Usage(self, request: pb.UsageRequest, context: Context) -> pb.UsageResponse:
        """Return the bytes and inodes that a snapshot adds to its parent. NotFound."""
        snapshotter = self._snapshotters.named(request.snapshotter)
        usage = await self._bulk.run(snapshotter.usage, namespace_of(context), request.key)
        return pb.UsageResponse(size=usage.size, inodes=usage.inodes)

    async def Cleanup(self, request: pb.CleanupRequest, context: Context) -> Empty:
        """Delete directories that belong to no snapshot."""
        await self._bulk.run(self._snapshotters.named(request.snapshotter).cleanup)
        return Empty()
