"""containerd.services.diff.v1."""

from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar, Protocol

from pyctr_wire.containerd.services.diff.v1 import diff_pb2 as pb
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.labels import Labels
from pyctrd.core.mounts import Mount
from pyctrd.rpc.convert.records import descriptor_from_proto, descriptor_to_proto, mounts_from_proto
from pyctrd.rpc.convert.well_known import time_from_proto
from pyctrd.rpc.headers import Context, lease_of, namespace_of


class Differ(Protocol):
    """Unpacks layers, and makes them."""

    async def apply(
        self, ns: str, layer: Descriptor, mounts: Sequence[Mount], *, sync_fs: bool = False
    ) -> Descriptor: ...

    async def diff(
        self,
        ns: str,
        left: Sequence[Mount],
        right: Sequence[Mount],
        *,
        media_type: str = "",
        ref: str = "",
        labels: Labels | None = None,
        source_date_epoch: datetime | None = None,
        lease: str = "",
    ) -> Descriptor: ...


class Diff:
    """Layers out of mounts, and into them."""

    SERVICE: ClassVar = pb.DESCRIPTOR.services_by_name["Diff"]

    def __init__(self, differ: Differ) -> None:
        """Serve `differ`."""
        self._differ = differ

    async def Apply(self, request: pb.ApplyRequest, context: Context) -> pb.ApplyResponse:
        """Unpack a blob and return the descriptor of what was in it."""
        applied = await self._differ.apply(
            namespace_of(context),
            descriptor_from_proto(request.diff),
            mounts_from_proto(request.mounts),
            sync_fs=request.sync_fs,
        )
        return pb.ApplyResponse(applied=descriptor_to_proto(applied))

    async def Diff(self, request: pb.DiffRequest, context: Context) -> pb.DiffResponse:
        """Store a layer that turns one view into another."""
        has_epoch = request.HasField("source_date_epoch")
        layer = await self._differ.diff(
            namespace_of(context),
            mounts_from_proto(request.left),
            mounts_from_proto(request.right),
            media_type=request.media_type,
            ref=request.ref,
            labels=dict(request.labels),
            source_date_epoch=time_from_proto(request.source_date_epoch) if has_epoch else None,
            lease=lease_of(context),
        )
        return pb.DiffResponse(diff=descriptor_to_proto(layer))
