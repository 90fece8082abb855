"""The images of a node: kept in memory as they change in the store, pulled, removed, and found for containers.

Everybody's images in namespace k8s.io count, whoever brought them: what another client imports is labelled as ours
and seen by the kubelet. What has changed is read again before anybody is answered, so nobody reads older than what
he wrote.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from pyctr_wire.errors import AlreadyExists, ApiError, DataLoss, NotFound
from pyctr_wire.oci import image_spec
from pyctr_wire.oci.image_spec import ImageConfig
from pyctrd.core.images import Image
from pyctrd.core.labels import Labels
from pyctrd.core.platforms import Platform
from pyctrd.core.snapshots import SnapshotInfo
from pyctrd.cri.image_index import (
    MANAGED,
    MANAGED_LABEL,
    Ambiguous,
    CriImage,
    Details,
    ImageIndex,
    Record,
    reference_of,
)
from pyctrd.log import Logger
from pyctrd.offload import Offload
from pyctrd.runtime.image_lookup import Blobs, read_image
from pyctrd.transfer.requests import Unpack

NAMESPACE: Final = "k8s.io"

_LABELS: Final[Labels] = {MANAGED_LABEL: MANAGED}
# What an image says of itself is cut where it would fill memory, or a list's answer.
_MAX_USER: Final = 256  # characters
_MAX_SIZE: Final = (1 << 63) - 1  # bytes

_log = Logger(__name__)


class Rows(Protocol):
    """The records of images."""

    def get(self, ns: str, name: str, /) -> Image: ...
    def list(self, ns: str, /) -> Sequence[Image]: ...
    def create(self, ns: str, image: Image, /) -> Image: ...
    def update(self, ns: str, image: Image, mask: Sequence[str], /) -> Image: ...
    def delete(self, ns: str, name: str, target_digest: str, /) -> None: ...


class Snapshotter(Protocol):
    """Snapshots of one kind."""

    def stat(self, ns: str, key: str, /) -> SnapshotInfo: ...


class Snapshotters(Protocol):
    """The snapshotters by name."""

    def named(self, snapshotter: str, /) -> Snapshotter: ...


class Images:
    """All images of the node. Used on the event loop, but for `changed`."""

    def __init__(
        self,
        store: Rows,
        blobs: Blobs,
        snapshots: Snapshotters,
        unpack: Callable[[str, str, Unpack], Awaitable[None]],
        collect: Callable[[], Awaitable[Any]],
        rows: Offload,
        host: Platform,
    ) -> None:
        """Read from `store` and `blobs` in `rows`; `unpack` is a transfer's, `collect` a garbage collection.

        `host` is this machine's platform. Belongs to the running event loop.
        """
        self._store = store
        self._blobs = blobs
        self._snapshots = snapshots
        self._unpack = unpack
        self._collect = collect
        self._rows = rows
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._index = ImageIndex()
        self._is_complete = False
        # Records that changed since they were read, each with an object that tells its changes apart.
        self._stale: dict[str, object] = {}
        self._unusable: set[str] = set()
        self._refreshing = asyncio.Lock()
        self._changing = asyncio.Lock()
        self._news = asyncio.Event()
        self._news.set()

    def changed(self, namespace: str, name: str) -> None:
        """Forget a record: it was created, updated or deleted. Called from any thread, before its call returns."""
        if namespace == NAMESPACE:
            self._stale[name] = object()
            with suppress(RuntimeError):  # the loop is closed: the daemon is ending
                self._loop.call_soon_threadsafe(self._news.set)

    async def run(self) -> None:
        """Take in what other clients bring, until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self._adopt_foreign()
            except (ApiError, OSError) as error:
                # A full disk, mostly. It is tried again after the next change.
                _log.warning("image.not_adopted", error=str(error))

    async def list(self) -> tuple[CriImage, ...]:
        """Return all images, by id: the same tuple until something changes."""
        return (await self._fresh()).list()

    async def resolve(self, reference: str) -> CriImage:
        """Return the image that `reference` means, by id, start of an id, name or digest. Raises NotFound."""
        return (await self._fresh()).find(reference)

    async def config(self, image: CriImage) -> ImageConfig:
        """Return an image's configuration. Raises NotFound if its image was removed meanwhile."""
        return image_spec.parse_config(await self._rows.run(self._read_config, image))

    async def document(self, image: CriImage) -> Mapping[str, Any]:
        """Return an image's configuration as the JSON object that it was written as. Raises as `config`."""
        data = await self._rows.run(self._read_config, image)
        document: Mapping[str, Any] = await self._rows.run(image_spec.load_json, data, "image configuration")
        return document

    async def ensure_unpacked(self, image: CriImage, snapshotter: str) -> None:
        """See that the snapshots of an image are there; nearly always they are.

        Raises NotFound if the image, or a blob of it, was removed meanwhile; InvalidArgument for an unknown
        snapshotter; and what unpacking raises.
        """
        chosen = self._snapshots.named(snapshotter)
        if not image.chain_id:
            return
        with suppress(NotFound):
            self._rows.at_once(chosen.stat, NAMESPACE, image.chain_id)
            return
        current = (await self._fresh()).find(image.id)
        await self._unpack(NAMESPACE, current.names[0], Unpack(None, snapshotter))

    async def remove(self, reference: str) -> None:
        """Remove the image that `reference` means, under all its names, and what it alone kept on disk.

        None is a success. Raises Ambiguous if several images have ids that begin so.
        """
        try:
            image = await self.resolve(reference)
        except Ambiguous:
            raise
        except NotFound:
            return
        async with self._changing:
            records = (await self._fresh()).records(image.id)
            await self._rows.run(self._delete, records)
        await self._collect()

    async def _fresh(self) -> ImageIndex:
        """Return the index, with what has changed until now."""
        if self._is_complete and not self._stale:
            return self._index
        async with self._refreshing:
            stale = dict(self._stale)
            if not self._is_complete:
                self._take(await self._rows.run(self._read_all))
                self._is_complete = True
            elif stale:
                names = self._unusable.union(stale)
                self._take(await self._rows.run(self._read_some, names, self._index.details()))
            for name, change in stale.items():
                if self._stale.get(name) is change:
                    del self._stale[name]
        return self._index

    def _take(self, found: Mapping[str, Record | ApiError | None]) -> None:
        """Put into the index what was read: a record, why it is of no use, or None if it is gone."""
        for name, record in found.items():
            if isinstance(record, ApiError):
                if name not in self._unusable:
                    _log.warning("image.not_usable", namespace=NAMESPACE, image=name, error=str(record))
                self._unusable.add(name)
            else:
                self._unusable.discard(name)
        self._index.replace({name: record if isinstance(record, Record) else None for name, record in found.items()})

    async def _adopt_foreign(self) -> None:
        index = await self._fresh()
        for record in [one for one in index.records() if one.is_foreign]:
            async with self._changing:
                if await self._rows.run(self._adopt, record):
                    _log.info("image.adopted", namespace=NAMESPACE, image=record.name, id=record.details.id)

    # -- in threads

    def _read_all(self) -> dict[str, Record | ApiError | None]:
        return {image.name: self._record(image, {}) for image in self._store.list(NAMESPACE)}

    def _read_some(self, names: Iterable[str], known: Mapping[str, Details]) -> dict[str, Record | ApiError | None]:
        found: dict[str, Record | ApiError | None] = {}
        for name in names:
            try:
                found[name] = self._record(self._store.get(NAMESPACE, name), known)
            except NotFound:
                found[name] = None
        return found

    def _record(self, image: Image, known: Mapping[str, Details]) -> Record | ApiError:
        try:
            details = known.get(image.target.digest) or self._details(image)
        except ApiError as error:  # for another platform, not all here, or not well-formed
            return error
        return Record(image.name, reference_of(image.name), image.target, image.labels, details)

    def _details(self, image: Image) -> Details:
        found = read_image(self._blobs, NAMESPACE, image, self._host)
        user = found.config.process.user[:_MAX_USER]
        return Details(found.config_digest, min(found.size, _MAX_SIZE), user, found.chain_id, found.saved)

    def _read_config(self, image: CriImage) -> bytes:
        descriptor_fd, size = self._blobs.open_blob(NAMESPACE, image.id)
        with os.fdopen(descriptor_fd, "rb") as file:
            image_spec.check_size(size, image.id)
            data = file.read(size)
        if image_spec.digest_like(image.id, data) != image.id:
            raise DataLoss(f"the configuration of image {image.id} is damaged on disk; pull the image again")
        return data

    def _adopt(self, record: Record) -> bool:
        """Label a record as ours, and give its image a name that stays if that one moves on; False if it is gone."""
        digest = record.target.digest
        try:
            mask = tuple(f"labels.{key}" for key in _LABELS)
            self._store.update(NAMESPACE, Image(record.name, record.target, _LABELS), mask)
        except NotFound:
            return False
        with suppress(AlreadyExists, NotFound):
            self._store.create(NAMESPACE, Image(record.details.id, record.target, _LABELS))
            try:
                still = self._store.get(NAMESPACE, record.name).target.digest == digest
            except NotFound:
                still = False
            if not still:  # removed or moved while we named it: what was removed must not come back
                self._store.delete(NAMESPACE, record.details.id, digest)
        return True

    def _delete(self, records: Iterable[Record]) -> None:
        for record in records:
            with suppress(NotFound):  # somebody else removed it, or it is another image's name by now
                self._store.delete(NAMESPACE, record.name, record.target.digest)
