"""What transfer tests stand on: real stores with a differ that only hashes, and a repository that may misbehave."""

import gzip
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import zstandard

from pyctr_wire.errors import InvalidArgument, NotFound
from pyctrd.content.store import ContentStore
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.mounts import Mount
from pyctrd.core.references import Reference, parse_reference
from pyctrd.offload import Offload
from pyctrd.registry.errors import Interrupted
from pyctrd.transfer.stores import Stores
from support.images import INDEX, MANIFEST, BuiltImage, digest
from support.stores import Stores as RealStores


class HashingDiffer:
    """Unpacks nothing, and says what an unpacked layer's digest would be."""

    def __init__(self, content: ContentStore) -> None:
        self._content = content
        self.applied: list[str] = []
        self.failures: list[Exception] = []

    async def apply(self, ns: str, layer: Descriptor, mounts: Sequence[Mount], /) -> Descriptor:
        assert mounts
        self.applied.append(layer.digest)
        if self.failures:
            raise self.failures.pop(0)
        fd, size = self._content.open_blob(ns, layer.digest)
        try:
            data = os.pread(fd, size, 0)
        finally:
            os.close(fd)
        try:
            if data[:2] == b"\x1f\x8b":
                data = gzip.decompress(data)
            elif data[:4] == b"\x28\xb5\x2f\xfd":
                data = zstandard.decompress(data)
        except OSError as error:
            raise InvalidArgument(f"damaged layer: {error}") from error
        return Descriptor("application/vnd.oci.image.layer.v1.tar", digest(data), len(data))


@asynccontextmanager
async def transfer_stores(real: RealStores) -> AsyncIterator[tuple[Stores, HashingDiffer]]:
    """Yield the stores as transfers see them."""
    offload = Offload(4)
    differ = HashingDiffer(real.content)
    try:
        yield Stores(real.content, real.images, real.leases, real.snapshots, differ, offload, offload), differ
    finally:
        offload.close()


Blob = Callable[[int], AsyncIterator[bytes]]


@dataclass
class FakeRepository:
    """A repository that has `blobs`; scripts by digest replace what it would send, once each."""

    reference: Reference = field(default_factory=lambda: parse_reference("registry.example/some/image:v1"))
    target: Descriptor | None = None
    blobs: dict[str, bytes] = field(default_factory=dict)
    scripts: dict[str, list[Blob]] = field(default_factory=dict)
    asked: list[tuple[str, int, int]] = field(default_factory=list)

    def add(self, image: BuiltImage) -> None:
        """Have an image, and let the reference point at it."""
        self.blobs |= image.blobs
        self.target = Descriptor(MANIFEST, image.digest, len(image.manifest))

    def add_index(self, data: bytes, *images: BuiltImage) -> None:
        """Have an index of images, and let the reference point at it."""
        for image in images:
            self.add(image)
        self.blobs[digest(data)] = data
        self.target = Descriptor(INDEX, digest(data), len(data))

    async def resolve(self) -> Descriptor:
        assert self.target is not None
        return self.target

    async def manifest(self, descriptor: Descriptor) -> bytes:
        self.asked.append((descriptor.digest, 0, 0))
        return self._get(descriptor.digest)

    @asynccontextmanager
    async def blob(self, descriptor: Descriptor, offset: int, skip: int = 0) -> AsyncIterator[AsyncIterator[bytes]]:
        self.asked.append((descriptor.digest, offset, skip))
        scripts = self.scripts.get(descriptor.digest)
        yield scripts.pop(0)(offset) if scripts else sending(self._get(descriptor.digest))(offset)

    def _get(self, name: str) -> bytes:
        if name not in self.blobs:
            raise NotFound(f"{name} is not here")
        return self.blobs[name]


def sending(data: bytes, break_after: int | None = None) -> Blob:
    """Return a script that sends `data` from the offset on, and breaks off after so many bytes."""

    async def parts(offset: int) -> AsyncIterator[bytes]:
        rest = data[offset:]
        if break_after is None:
            yield rest
            return
        if break_after:
            yield rest[:break_after]
        raise Interrupted("broke off")

    return parts
