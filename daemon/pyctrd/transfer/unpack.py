"""Layers into snapshots: each becomes a committed snapshot named by its chain id, on top of the one before.

A layer that is there already is not unpacked again, whoever did it, and transfers that need the same layer at the
same time do the work once. Source: OCI image-spec, config.md; containerd docs/content-flow.md.
"""

import asyncio
import base64
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Final

from pyctr_wire.errors import AlreadyExists, ApiError, InvalidArgument, NotFound
from pyctr_wire.oci import image_spec
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.digests import chain_ids
from pyctrd.core.leases import Resource
from pyctrd.core.platforms import Platform
from pyctrd.core.snapshots import TARGET_LABEL
from pyctrd.log import Logger
from pyctrd.transfer.progress import Progress, Report
from pyctrd.transfer.requests import Unpack
from pyctrd.transfer.stores import Session
from pyctrd.transfer.together import Together
from pyctrd.transfer.tree import Node, choose, core_descriptor, ref_of

UNCOMPRESSED_LABEL: Final = "containerd.io/uncompressed"
_GC_SNAPSHOT: Final = "containerd.io/gc.ref.snapshot"

_log = Logger("pyctrd.transfer")

# Sees that a layer's blob is in the store; raises what keeps it from getting there.
Obtain = Callable[[image_spec.Descriptor], Awaitable[None]]


class ChainLocks:
    """One lock per snapshot that is being made, for all transfers of the daemon."""

    def __init__(self) -> None:
        """Start with none."""
        self._locks: dict[tuple[str, str, str], tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def held(self, ns: str, snapshotter: str, chain_id: str) -> AsyncIterator[None]:
        """Hold the lock of one snapshot; it exists only while somebody holds or wants it."""
        key = (ns, snapshotter, chain_id)
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = (lock, users - 1)


class Unpacker:
    """Unpacks one transfer's images with one snapshotter."""

    def __init__(self, session: Session, snapshotter: str, locks: ChainLocks, progress: Progress) -> None:
        """Make snapshots in the session's namespace, under its lease. Raises InvalidArgument for a wrong name."""
        self._session = session
        self._name = snapshotter
        self._snapshotter = session.stores.snapshots.named(snapshotter)
        self._locks = locks
        self._progress = progress

    async def unpack(self, image: Node, obtain: Obtain) -> str:
        """Unpack an image whose documents are in the store, each layer as soon as `obtain` has it.

        Returns the chain id of its uppermost layer, "" for an image without layers. Raises InvalidArgument if the
        layers are not what the configuration says, and what obtaining or unpacking one raises.
        """
        if image.config is None or not isinstance(image.document, image_spec.Manifest):
            raise InvalidArgument(f"{image.descriptor.digest} is no image that could be unpacked")
        layers, diff_ids = image.document.layers, image.config.diff_ids
        if len(layers) != len(diff_ids):
            raise InvalidArgument(f"number of layers and diffIDs don't match: {len(layers)} != {len(diff_ids)}")
        chain = chain_ids(list(diff_ids))
        for number in range(await self._count_present(chain), len(chain)):
            parent = chain[number - 1] if number else ""
            async with self._locks.held(self._session.ns, self._name, chain[number]):
                if not await self._is_present(chain[number]):
                    await self._unpack_layer(image, layers[number], diff_ids[number], parent, chain[number], obtain)
        if chain:
            label = f"{_GC_SNAPSHOT}.{self._name}"
            await self._session.label(image.document.config.digest, {label: chain[-1]})
        return chain[-1] if chain else ""

    async def _count_present(self, chain: list[str]) -> int:
        """Return how many layers from the lowest on are there, looking from the top: parents are kept by children."""
        for number in range(len(chain), 0, -1):
            if await self._is_present(chain[number - 1]):
                return number
        return 0

    async def _is_present(self, chain_id: str) -> bool:
        """Say whether the snapshot is there, and hold it: in this order, so that no collection comes between."""
        stores, ns = self._session.stores, self._session.ns
        await self._session.hold(Resource(chain_id, f"snapshots/{self._name}"))
        try:
            await stores.rows.run(self._snapshotter.stat, ns, chain_id)
        except NotFound:
            return False
        return True

    async def _unpack_layer(
        self,
        image: Node,
        layer: image_spec.Descriptor,
        diff_id: str,
        parent: str,
        chain_id: str,
        obtain: Obtain,
    ) -> None:
        """Make one snapshot; a blob that proves damaged is obtained anew, once."""
        await obtain(layer)
        try:
            await self._apply(image, layer, diff_id, parent, chain_id)
        except ApiError:
            stores = self._session.stores
            if await stores.bulk.run(stores.content.verify, layer.digest):
                raise
            await obtain(layer)
            await self._apply(image, layer, diff_id, parent, chain_id)
        await self._session.label(layer.digest, {UNCOMPRESSED_LABEL: diff_id})

    async def _apply(self, image: Node, layer: image_spec.Descriptor, diff_id: str, parent: str, chain_id: str) -> None:
        stores, session = self._session.stores, self._session
        report = Report("extracting", ref_of(layer), (image.ref,), 0, layer.size, core_descriptor(layer))
        self._progress.blob(report)
        key = _extract_key(chain_id)
        try:
            mounts = await stores.rows.run(
                self._snapshotter.prepare, session.ns, key, parent, {TARGET_LABEL: chain_id}, lease=session.lease
            )
        except AlreadyExists:
            return  # a client unpacked it meanwhile, with calls of its own
        try:
            _check_diff_id(await stores.differ.apply(session.ns, core_descriptor(layer), mounts), diff_id)
            await stores.bulk.run(self._snapshotter.commit, session.ns, chain_id, key, {}, lease=session.lease)
        except BaseException as error:
            # Also when cancelled; a crash leaves it to the lease's expiry and the next collection.
            with suppress(NotFound):
                await stores.rows.run(self._snapshotter.remove, session.ns, key, lease=session.lease)
            if not isinstance(error, AlreadyExists):
                raise
        self._progress.blob(replace(report, event="extracted", progress=layer.size))


def _check_diff_id(applied: Descriptor, diff_id: str) -> None:
    if applied.digest != diff_id:
        raise InvalidArgument(f'wrong diff id calculated on extraction "{applied.digest}"')


async def unpack_all(
    session: Session,
    tree: Node,
    unpacks: Sequence[Unpack],
    host: Platform,
    locks: ChainLocks,
    progress: Progress,
    obtaining: Callable[[Node], Obtain],
) -> None:
    """Carry out what a client wants unpacked of `tree`, at the same time; `host` is this machine's platform.

    What suits no image in the tree is passed over with a warning, as containerd does.
    """
    images = list(tree.images())
    async with Together() as tasks:
        for wanted in unpacks:
            platform = wanted.platform or host
            name = wanted.snapshotter or session.stores.snapshots.default
            chosen = choose([image.platform for image in images], [platform], 1)
            if not chosen or images[chosen[0]].config is None:
                _log.warning("unpack.skipped", namespace=session.ns, platform=str(platform), snapshotter=name)
                continue
            image = images[chosen[0]]
            tasks.create_task(Unpacker(session, name, locks, progress).unpack(image, obtaining(image)))


def _extract_key(chain_id: str) -> str:
    """Return a key that nobody else uses, in the form in which all unpackers make theirs."""
    random = base64.urlsafe_b64encode(secrets.token_bytes(3)).decode()
    return f"extract-{time.time_ns() % 1_000_000_000:09d}-{random} {chain_id}"
