"""What transfers need of the stores, and the few things that all of them do with them."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, Protocol

from pyctr_wire.errors import AlreadyExists, DataLoss, NotFound, Unavailable
from pyctr_wire.oci import image_spec
from pyctrd.core.content import BlobInfo
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.digests import Digest, digest_of
from pyctrd.core.images import Image
from pyctrd.core.labels import Labels
from pyctrd.core.leases import EXPIRE_LABEL, Lease, Resource
from pyctrd.core.mounts import Mount
from pyctrd.core.snapshots import SnapshotInfo
from pyctrd.core.times import UNSET
from pyctrd.core.values import dataclass
from pyctrd.offload import Offload

_CHUNK: Final = 1 << 20
_LEASE_LIFETIME: Final = timedelta(hours=24)
# Seconds: the bounds of the pause while somebody else writes the same blob.
_SHORTEST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 2.0


class BlobWriter(Protocol):
    """An ingest that this process has locked; `offset` in bytes."""

    @property
    def offset(self) -> int: ...
    def truncate(self, size: int, /) -> None: ...
    def write(self, data: bytes, /) -> object: ...
    def digest(self) -> str: ...
    def commit(self, total: int, expected: str, labels: Labels, /) -> object: ...
    def close(self) -> None: ...


class Content(Protocol):
    """Where blobs are kept."""

    def info(self, ns: str, digest: str, /) -> BlobInfo: ...
    def update(self, ns: str, info: BlobInfo, mask: tuple[str, ...], /) -> BlobInfo: ...
    def open_blob(self, ns: str, digest: str, /) -> tuple[int, int]: ...
    def open_writer(self, ns: str, ref: str, total: int, expected: str, /, lease: str) -> BlobWriter: ...
    def verify(self, digest: str, /) -> bool: ...


class Images(Protocol):
    """Where names of images are kept."""

    def get(self, ns: str, name: str, /) -> Image: ...
    def create(self, ns: str, image: Image, /, lease: str) -> Image: ...
    def update(self, ns: str, image: Image, mask: tuple[str, ...], /) -> Image: ...


class Leases(Protocol):
    """Where leases are kept."""

    def create(self, ns: str, lease: Lease, /) -> Lease: ...
    def delete(self, ns: str, lease: str, /) -> None: ...
    def add_resource(self, ns: str, lease: str, resource: Resource, /) -> None: ...


class Snapshotter(Protocol):
    """Snapshots of one kind."""

    def prepare(self, ns: str, key: str, parent: str, labels: Labels, /, lease: str) -> Sequence[Mount]: ...
    def commit(self, ns: str, name: str, key: str, labels: Labels, /, *, lease: str) -> None: ...
    def remove(self, ns: str, key: str, /, lease: str) -> None: ...
    def stat(self, ns: str, key: str, /) -> SnapshotInfo: ...


class Snapshotters(Protocol):
    """The snapshotters that there are."""

    @property
    def default(self) -> str:
        """The name of the one that is meant by who names none."""

    def named(self, snapshotter: str, /) -> Snapshotter: ...


class Differ(Protocol):
    """Unpacks layers."""

    async def apply(self, ns: str, layer: Descriptor, mounts: Sequence[Mount], /) -> Descriptor: ...


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores of one daemon; short calls run in `rows`, reading and writing of blobs in `bulk`."""

    content: Content
    images: Images
    leases: Leases
    snapshots: Snapshotters
    differ: Differ
    rows: Offload
    bulk: Offload


@dataclass(frozen=True, slots=True)
class Session:
    """One transfer's view of the stores: a namespace, and the lease that holds what the transfer makes."""

    stores: Stores
    ns: str
    lease: str

    async def has(self, digest: str) -> bool:
        """Say whether the blob is there, whole as far as its size tells, and hold it.

        In the other order a collection might come between the answer and what relies on it.
        """
        await self.hold(Resource(digest, "content"))
        try:
            async with self.blob(digest):
                return True
        except (NotFound, DataLoss):  # a cut file: writing the blob again replaces it
            return False

    async def hold(self, resource: Resource) -> None:
        """Let the lease hold something, there or not yet."""
        await self.stores.rows.run(self.stores.leases.add_resource, self.ns, self.lease, resource)

    async def info(self, digest: str) -> BlobInfo:
        """Return what is known of a blob. Raises NotFound."""
        return await self.stores.rows.run(self.stores.content.info, self.ns, digest)

    async def label(self, digest: str, labels: Labels) -> None:
        """Set labels on a blob, beside those that it has. Raises NotFound."""
        if labels:
            mask = tuple(f"labels.{key}" for key in labels)
            info = BlobInfo(Digest(digest), 0, UNSET, UNSET, labels)
            await self.stores.rows.run(self.stores.content.update, self.ns, info, mask)

    async def document(self, descriptor: image_spec.Descriptor | Descriptor) -> bytes:
        """Return a manifest's, an index's or a configuration's bytes.

        Raises NotFound, InvalidArgument for one over image_spec.MAX_DOCUMENT, DataLoss for damaged bytes.
        """
        image_spec.check_size((await self.info(descriptor.digest)).size, descriptor.digest)
        data = b"".join([part async for part in self.read(descriptor.digest)])
        if image_spec.digest_like(descriptor.digest, data) != descriptor.digest:
            raise DataLoss(f"content {descriptor.digest} is damaged")
        return data

    @asynccontextmanager
    async def blob(self, digest: str) -> AsyncIterator[tuple[int, int]]:
        """Yield a file descriptor of a blob (borrowed) and its size. Raises NotFound."""
        opening = partial(self.stores.content.open_blob, self.ns, digest)
        async with self.stores.bulk.holding(opening, lambda opened: os.close(opened[0])) as opened:
            yield opened

    async def read(self, digest: str) -> AsyncIterator[bytes]:
        """Yield a blob's bytes, 1 MiB at a time. Raises NotFound, DataLoss if the file is shorter than its size."""
        async with self.blob(digest) as (blob_fd, size):
            offset = 0
            while offset < size:
                data = await self.stores.bulk.run(os.pread, blob_fd, min(_CHUNK, size - offset), offset)
                if not data:
                    raise DataLoss(f"content {digest}: the file ends after {offset} of {size} bytes")
                yield data
                offset += len(data)

    @asynccontextmanager
    async def writer(self, ref: str, total: int, expected: str) -> AsyncIterator[BlobWriter]:
        """Yield an ingest (borrowed), having waited while somebody else writes under the same ref.

        The lease holds the blob that it will be, not the ingest: unless that is committed it stays for a day, for
        the next transfer to go on with. Raises AlreadyExists if `expected` is there.
        """
        await self.hold(Resource(expected, "content"))
        opening = partial(self.stores.content.open_writer, self.ns, ref, total, expected, lease="")
        pause = _SHORTEST_PAUSE
        async with AsyncExitStack() as stack:
            while True:
                try:
                    writer = await stack.enter_async_context(self.stores.bulk.holding(opening, _close))
                    break
                except Unavailable:  # locked; who holds it will commit, or leave it for us
                    await asyncio.sleep(random.uniform(0, pause))  # noqa: S311 - not a secret
                    pause = min(pause * 2, _LONGEST_PAUSE)
            yield writer

    async def write(self, ref: str, data: bytes, digest: str = "", labels: Labels | None = None) -> str:
        """Store a small blob, unless it is there, and return its digest: `digest`, or else its sha256."""
        digest = digest or digest_of(data)
        try:
            async with self.writer(ref, len(data), digest) as writer:
                await self.stores.bulk.run(_write_whole, writer, data, digest, labels or {})
        except AlreadyExists:
            await self.label(digest, labels or {})
        return digest

    async def store_image(self, image: Image) -> None:
        """Create an image, or let the name point at its new target if it is taken."""
        try:
            await self.stores.rows.run(self.stores.images.create, self.ns, image, lease=self.lease)
        except AlreadyExists:
            await self.stores.rows.run(self.stores.images.update, self.ns, image, ())


def _close(writer: BlobWriter) -> None:
    writer.close()


def _write_whole(writer: BlobWriter, data: bytes, digest: str, labels: Labels) -> None:
    if writer.offset != len(data):  # else another namespace has it, and it need only be committed
        writer.truncate(0)
        writer.write(data)
    writer.commit(len(data), digest, labels)


@asynccontextmanager
async def session(stores: Stores, ns: str, lease: str) -> AsyncIterator[Session]:
    """Yield a session under `lease`, or under a lease of its own that is gone afterwards; it outlives us by a day."""
    if lease:
        yield Session(stores, ns, lease)
        return
    expiry = (datetime.now(UTC) + _LEASE_LIFETIME).isoformat(timespec="seconds")

    def make() -> Lease:
        return stores.leases.create(ns, Lease("", {EXPIRE_LABEL: expiry}))

    # Whatever cancels us, the lease is let go of; a crash leaves the expiry.
    async with stores.rows.holding(make, lambda own: stores.leases.delete(ns, own.id)) as own:
        yield Session(stores, ns, own.id)
