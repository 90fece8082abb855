"""A node's images: real stores that tell them what changes, and transfers from a repository that may misbehave."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from pyctrd.content.store import ContentStore
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.digests import digest_of
from pyctrd.core.events import Event, ImageCreate, ImageDelete, ImageUpdate
from pyctrd.core.images import Image
from pyctrd.core.labels import Labels
from pyctrd.core.platforms import Platform
from pyctrd.core.references import Reference
from pyctrd.cri.images import NAMESPACE, Images
from pyctrd.gc.collector import Collector
from pyctrd.metadata import images, leases
from pyctrd.metadata.database import Database
from pyctrd.offload import Offload
from pyctrd.snapshots.manager import SnapshotManager
from pyctrd.streams.manager import StreamManager
from pyctrd.transfer.service import Transfers
from pyctrd.transfer.stores import Stores
from support.images import CONFIG, LAYER, MANIFEST, BuiltImage
from support.transfers import FakeRepository, HashingDiffer

HOST = Platform("linux", "amd64")


class Node:
    """The images of one node, with all that they stand on."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images: Images | None = None
        self.events: list[Event] = []
        self.database = Database(root / "metadata.db", self._publish)
        self.store = images.Images(self.database)
        self.leases = leases.Leases(self.database)
        self.content = ContentStore(root / "content", self.database)
        self.snapshots = SnapshotManager(root / "snapshots", self.database)
        self.collector = Collector(self.database, self.content, self.snapshots)
        self.offload = Offload(4)
        self.repository = FakeRepository()
        self.differ = HashingDiffer(self.content)
        self.opened_with: list[Any] = []
        stores = Stores(self.content, self.store, self.leases, self.snapshots, self.differ, self.offload, self.offload)
        self.transfers = Transfers(stores, StreamManager(), self, HOST)

    def new_images(self) -> Images:
        """Let images begin anew, as after a restart."""
        self.images = Images(
            self.store, self.content, self.snapshots, self.transfers.unpack, self._collect, self.offload, HOST
        )
        return self.images

    def open(self, reference: Reference, **options: Any) -> AbstractAsyncContextManager[Any]:
        """Return the repository, whatever was asked for."""
        self.opened_with.append(options["credentials"])

        @asynccontextmanager
        async def opened() -> AsyncIterator[FakeRepository]:
            self.repository.reference = reference
            yield self.repository

        return opened()

    def bring(self, built: BuiltImage, name: str, labels: Labels | None = None, without: str = "") -> Image:
        """Do as a foreign client that imports an image: blobs, but for `without`, labels for them, then the name."""
        for digest, data in built.blobs.items():
            if digest != without:
                self.content.write_blob(
                    NAMESPACE, digest, data, self._descriptor(built, digest), self._gc(built, digest)
                )
        return self.name(Descriptor(MANIFEST, built.digest, len(built.manifest)), name, labels)

    def name(self, target: Descriptor, name: str, labels: Labels | None = None) -> Image:
        """Store a record, or let it point elsewhere."""
        image = Image(name, target, labels or {})
        if any(one.name == name for one in self.store.list(NAMESPACE)):
            return self.store.update(NAMESPACE, image)
        return self.store.create(NAMESPACE, image)

    def names(self) -> list[str]:
        """Return the names of all records."""
        return [image.name for image in self.store.list(NAMESPACE)]

    def blobs(self) -> set[str]:
        """Return the digests of all blobs."""
        return {blob.digest for batch in self.content.list(NAMESPACE) for blob in batch}

    async def _collect(self) -> object:
        return await self.offload.run(self.collector.collect)

    def _publish(self, ns: str, event: Event) -> None:
        self.events.append(event)
        if self.images is not None and isinstance(event, ImageCreate | ImageUpdate | ImageDelete):
            self.images.changed(ns, event.name)

    def _descriptor(self, built: BuiltImage, digest: str) -> Descriptor:
        data = built.blobs[digest]
        kind = {built.digest: MANIFEST, digest_of(built.config): CONFIG}.get(digest, LAYER)
        return Descriptor(kind, digest, len(data))

    def _gc(self, built: BuiltImage, digest: str) -> Labels:
        if digest != built.digest:
            return {}
        return {f"containerd.io/gc.ref.content.{n}": one for n, one in enumerate(built.blobs) if one != digest}


@asynccontextmanager
async def running(images: Images) -> AsyncIterator[None]:
    """Have the images of others taken in meanwhile."""
    task = asyncio.ensure_future(images.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
