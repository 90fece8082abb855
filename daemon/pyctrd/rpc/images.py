"""containerd.services.images.v1."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, ClassVar, Protocol

from google.protobuf.empty_pb2 import Empty

from pyctr_wire.containerd.services.images.v1 import images_pb2 as pb
from pyctrd.core.images import Image
from pyctrd.offload import Offload
from pyctrd.rpc.convert.records import image_from_proto, image_to_proto
from pyctrd.rpc.convert.well_known import mask_from_proto, time_from_proto
from pyctrd.rpc.headers import Context, lease_of, namespace_of


class ImageStore(Protocol):
    """Where images are kept."""

    def get(self, ns: str, name: str, /) -> Image: ...
    def list(self, ns: str, filters: Sequence[str], /) -> Sequence[Image]: ...
    def create(self, ns: str, image: Image, /, lease: str, created_at: datetime | None) -> Image: ...
    def update(self, ns: str, image: Image, mask: tuple[str, ...], /, lease: str) -> Image: ...
    def delete(self, ns: str, name: str, target_digest: str, /, lease: str) -> None: ...


class Images:
    """Names for manifests."""

    SERVICE: ClassVar = pb.DESCRIPTOR.services_by_name["Images"]

    def __init__(self, store: ImageStore, rows: Offload, collect: Callable[[], Awaitable[Any]]) -> None:
        """Serve `store`, whose calls run in `rows`; `collect` is a whole garbage collection."""
        self._store = store
        self._rows = rows
        self._collect = collect

    async def Get(self, request: pb.GetImageRequest, context: Context) -> pb.GetImageResponse:
        """Return an image. NotFound."""
        image = self._rows.at_once(self._store.get, namespace_of(context), request.name)
        return pb.GetImageResponse(image=image_to_proto(image))

    async def List(self, request: pb.ListImagesRequest, context: Context) -> pb.ListImagesResponse:
        """Return the images that match, sorted by name. InvalidArgument."""
        images = await self._rows.run(self._store.list, namespace_of(context), tuple(request.filters))
        return pb.ListImagesResponse(images=map(image_to_proto, images))

    async def Create(self, request: pb.CreateImageRequest, context: Context) -> pb.CreateImageResponse:
        """Create an image. AlreadyExists, InvalidArgument."""
        epoch = request.source_date_epoch if request.HasField("source_date_epoch") else None
        image = await self._rows.run(
            self._store.create,
            namespace_of(context),
            image_from_proto(request.image),
            lease=lease_of(context),
            created_at=None if epoch is None else time_from_proto(epoch),
        )
        return pb.CreateImageResponse(image=image_to_proto(image))

    async def Update(self, request: pb.UpdateImageRequest, context: Context) -> pb.UpdateImageResponse:
        """Change what the mask names, or all. NotFound, InvalidArgument."""
        image = await self._rows.run(
            self._store.update,
            namespace_of(context),
            image_from_proto(request.image),
            mask_from_proto(request.update_mask),
            lease=lease_of(context),
        )
        return pb.UpdateImageResponse(image=image_to_proto(image))

    async def Delete(self, request: pb.DeleteImageRequest, context: Context) -> Empty:
        """Delete an image; `sync` also collects what it kept before this returns. NotFound."""
        await self._rows.run(
            self._store.delete,
            namespace_of(context),
            request.name,
            request.target.digest,
            lease=lease_of(context),
        )
        if request.sync:
            await self._collect()
        return Empty()
