"""Blobs from a registry into the content store: several at a time, resumed where they broke off, refetched if wrong.

A blob is written under its ref (`layer-sha256:…`): what an interrupted pull left behind is found by the next one, and
pulls of the same blob at the same time take turns, so that the second finds it there.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final, Protocol

from pyctr_wire.errors import AlreadyExists, DataLoss
from pyctr_wire.oci import image_spec
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.labels import MAX_BYTES
from pyctrd.core.references import Reference
from pyctrd.registry.errors import Interrupted
from pyctrd.transfer.progress import Progress, Report
from pyctrd.transfer.stores import BlobWriter, Session
from pyctrd.transfer.tree import core_descriptor, ref_of

SOURCE_LABEL: Final = "containerd.io/distribution.source"

# Blobs that are fetched at the same time.
_PARALLEL: Final = 3
# How often in a row a transfer may break off without having brought anything.
_MAX_BARREN: Final = 5
# How often the bytes may prove wrong before we believe that there are no better ones.
_MAX_WRONG: Final = 3
# Seconds before a broken transfer goes on, doubling while it brings nothing.
_PAUSE: Final = 0.25

Sleep = Callable[[float], Awaitable[None]]


class Repository(Protocol):
    """Where blobs come from."""

    @property
    def reference(self) -> Reference: ...
    async def manifest(self, descriptor: Descriptor) -> bytes: ...
    def blob(
        self, descriptor: Descriptor, offset: int, skip: int = 0
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]: ...


class Fetcher:
    """Fetches what one transfer needs from `repository`, and reports on it."""

    def __init__(
        self, session: Session, repository: Repository, progress: Progress, sleep: Sleep = asyncio.sleep
    ) -> None:
        """Store what is fetched in the session's namespace, under its lease."""
        self._session = session
        self._repository = repository
        self._progress = progress
        self._sleep = sleep
        self._slots = asyncio.Semaphore(_PARALLEL)
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._fetched: set[str] = set()

    async def document(self, descriptor: image_spec.Descriptor, parent: str) -> bytes:
        """Return a manifest's, an index's or a configuration's bytes; they are in the store when this returns.

        Raises what the registry's answer means: NotFound, Unauthenticated, …; DataLoss for wrong bytes.
        """
        image_spec.check_size(descriptor.size, descriptor.digest)
        if not image_spec.is_document(descriptor.media_type):
            await self.blob(descriptor, parent)
            config = await self._stored(descriptor)
            if config is None:
                await self.blob(descriptor, parent)
                config = await self._session.document(descriptor)
            return config
        data = await self._stored(descriptor) if await self._session.has(descriptor.digest) else None
        if data is not None:
            self._report("already exists", descriptor, parent, descriptor.size)
        else:
            data = await self._repository.manifest(core_descriptor(descriptor))
            await self._session.write(ref_of(descriptor), data, descriptor.digest)
            self._report("complete", descriptor, parent, len(data))
        await self._note_source(descriptor.digest)
        return data

    async def _stored(self, descriptor: image_spec.Descriptor) -> bytes | None:
        """Return a document that is in the store; one that has been damaged there is dropped, and None returned."""
        try:
            return await self._session.document(descriptor)
        except DataLoss:
            stores = self._session.stores
            if await stores.bulk.run(stores.content.verify, descriptor.digest):
                raise
            return None

    async def blob(self, descriptor: image_spec.Descriptor, parent: str) -> None:
        """See that a blob is in the store; asked for twice at the same time, it is fetched once.

        Raises as `document` does; Interrupted if the transfer keeps breaking off: what arrived stays for the next.
        """
        async with self._locks[descriptor.digest]:
            if await self._session.has(descriptor.digest):
                if descriptor.digest not in self._fetched:
                    self._report("already exists", descriptor, parent, descriptor.size)
                    await self._note_source(descriptor.digest)
            else:
                self._report("waiting", descriptor, parent, 0)
                async with self._slots:
                    with suppress(AlreadyExists):  # another transfer was first
                        await self._fetch(descriptor, parent)
                self._report("complete", descriptor, parent, descriptor.size)
                await self._note_source(descriptor.digest)
            self._fetched.add(descriptor.digest)

    async def _fetch(self, descriptor: image_spec.Descriptor, parent: str) -> None:
        run = self._session.stores.bulk.run
        async with self._session.writer(ref_of(descriptor), descriptor.size, descriptor.digest) as writer:
            if writer.offset > descriptor.size:
                await run(writer.truncate, 0)
            for wrong in range(_MAX_WRONG):
                with suppress(DataLoss):
                    await self._fill(writer, descriptor, parent, skip=wrong)
                    if await run(writer.digest) == descriptor.digest:
                        await run(writer.commit, descriptor.size, descriptor.digest, {})
                        return
                # Bytes that are not what they should be, from here or from a resumed ingest: trust none of them.
                await run(writer.truncate, 0)
        raise DataLoss(f"{self._repository.reference}: the registry serves wrong bytes for {descriptor.digest}")

    async def _fill(self, writer: BlobWriter, descriptor: image_spec.Descriptor, parent: str, skip: int) -> None:
        """Append what is missing; a transfer that broke off goes on from where it was."""
        barren = 0
        while (start := writer.offset) < descriptor.size:
            try:
                async with self._repository.blob(core_descriptor(descriptor), start, skip) as parts:
                    async for part in parts:
                        await self._session.stores.bulk.run(writer.write, part)
                        self._report("downloading", descriptor, parent, writer.offset)
            except Interrupted:
                barren = 0 if writer.offset > start else barren + 1
                if barren == _MAX_BARREN:
                    raise
                await self._sleep(_PAUSE * 2**barren * random.uniform(0.5, 1))  # noqa: S311 - not a secret

    async def _note_source(self, digest: str) -> None:
        """Remember which repository has the blob: a push to the same registry can borrow it from there."""
        reference = self._repository.reference
        key = f"{SOURCE_LABEL}.{reference.domain}"
        known = (await self._session.info(digest)).labels.get(key, "")
        if reference.path not in known.split(","):
            value = f"{known},{reference.path}" if known else reference.path
            if len(key) + len(value) <= MAX_BYTES:
                await self._session.label(digest, {key: value})

    def _report(self, event: str, descriptor: image_spec.Descriptor, parent: str, progress: int) -> None:
        self._progress.blob(
            Report(event, ref_of(descriptor), (parent,), progress, descriptor.size, core_descriptor(descriptor))
        )
