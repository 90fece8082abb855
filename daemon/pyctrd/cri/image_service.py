"""runtime.v1.ImageService: the image half of the CRI."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar, Final, TypeAlias

from grpc.aio import ServicerContext

from pyctr_wire.cri import image_pb2 as pb
from pyctr_wire.errors import DeadlineExceeded, InvalidArgument, NotFound
from pyctrd.cri.filesystem_usage import UsageMeter
from pyctrd.cri.image_auth import credentials_of
from pyctrd.cri.image_index import Ambiguous, CriImage, reference_of
from pyctrd.cri.images import Images
from pyctrd.cri.pulls import Pulls, Request

Context: TypeAlias = ServicerContext[Any, Any]

# Images in one message of a stream.
_BATCH: Final = 100
# The largest uid that a process can be given here; what is larger must not look like a number to anybody.
_MAX_UID: Final = (1 << 31) - 1
_NUMBER: Final = re.compile(r"[0-9]{1,10}", re.ASCII)


class ImageService:
    """Images, as a kubelet sees them."""

    SERVICE: ClassVar = pb.DESCRIPTOR.services_by_name["ImageService"]

    def __init__(self, images: Images, pulls: Pulls, usage: UsageMeter, snapshotter: str) -> None:
        """Serve `images`, pulled by `pulls` for `snapshotter`, whose `usage` is measured."""
        self._images = images
        self._pulls = pulls
        self._usage = usage
        self._snapshotter = snapshotter
        self._listed: Sequence[CriImage] | None = None
        self._encoded = b""

    async def ListImages(self, request: pb.ListImagesRequest, context: Context) -> bytes:
        """Return all images, or the one that the filter names."""
        images = await self._matching(request.filter)
        if request.filter.image.image:
            return _list_of(images)
        if images is not self._listed:  # kubelets ask again and again, and seldom anything has changed
            self._listed, self._encoded = images, _list_of(images)
        return self._encoded

    async def StreamImages(
        self, request: pb.StreamImagesRequest, context: Context
    ) -> AsyncIterator[pb.StreamImagesResponse]:
        """Yield what ListImages returns, as it is now."""
        images = await self._matching(request.filter)
        for start in range(0, len(images), _BATCH):
            yield pb.StreamImagesResponse(images=map(_to_proto, images[start : start + _BATCH]))

    async def ImageStatus(self, request: pb.ImageStatusRequest, context: Context) -> pb.ImageStatusResponse:
        """Return an image, or nothing if it is not here; more about it if that is asked for."""
        try:
            image = await self._images.resolve(_named(request.image))
            info = await self._info(image) if request.verbose else {}
        except Ambiguous:
            raise
        except NotFound:
            return pb.ImageStatusResponse()
        return pb.ImageStatusResponse(image=_to_proto(image), info=info)

    async def PullImage(self, request: pb.PullImageRequest, context: Context) -> pb.PullImageResponse:
        """Pull an image and return its id."""
        text = _named(request.image)
        reference = reference_of(text)
        if reference is None:
            raise InvalidArgument(f'cannot pull "{text}": it is not the reference of an image')
        credentials = credentials_of(request.auth, reference.domain)
        try:
            async with asyncio.timeout(context.time_remaining()) as deadline:
                image_ref = await self._pulls.pull(Request(reference, self._snapshotter, credentials))
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise DeadlineExceeded(f'failed to pull image "{reference}"') from error
        return pb.PullImageResponse(image_ref=image_ref)

    async def RemoveImage(self, request: pb.RemoveImageRequest, context: Context) -> pb.RemoveImageResponse:
        """Remove an image under all its names; none is a success."""
        await self._images.remove(_named(request.image))
        return pb.RemoveImageResponse()

    async def ImageFsInfo(self, request: pb.ImageFsInfoRequest, context: Context) -> pb.ImageFsInfoResponse:
        """Return how much room images take; containers take theirs in the same place."""
        usage = await self._usage.measure()
        entry = pb.FilesystemUsage(
            timestamp=usage.taken_at,
            fs_id=pb.FilesystemIdentifier(mountpoint=str(usage.mountpoint)),
            used_bytes=pb.UInt64Value(value=usage.size),
            inodes_used=pb.UInt64Value(value=usage.inodes),
        )
        return pb.ImageFsInfoResponse(image_filesystems=[entry], container_filesystems=[entry])

    async def _matching(self, wanted: pb.ImageFilter) -> Sequence[CriImage]:
        if not wanted.image.image:
            return await self._images.list()
        try:
            return [await self._images.resolve(wanted.image.image)]
        except NotFound:
            return []

    async def _info(self, image: CriImage) -> dict[str, str]:
        document = {"chainID": image.chain_id, "imageSpec": await self._images.document(image)}
        return {"info": json.dumps(document)}


def _list_of(images: Sequence[CriImage]) -> bytes:
    encoded: bytes = pb.ListImagesResponse(images=map(_to_proto, images)).SerializeToString()
    return encoded


def _named(spec: pb.ImageSpec) -> str:
    if not spec.image:
        raise InvalidArgument("the request names no image")
    text: str = spec.image
    return text


def _to_proto(image: CriImage) -> pb.Image:
    """Return the image as a message.

    Without `spec`: kubelets hand it back with requests of their own, and nothing that an image says of itself is
    to come back as an annotation that means something.
    """
    message = pb.Image(
        id=image.id, repo_tags=image.tags, repo_digests=image.digests, size=image.size, pinned=image.pinned
    )
    user = image.user.partition(":")[0] or "0"
    if _NUMBER.fullmatch(user) and int(user) <= _MAX_UID:
        message.uid.value = int(user)
    else:
        message.username = user
    return message
