"""Push: an image of the store, with all that it consists of, to a reference in a registry.

Blobs first, then manifests, indexes after what they list, the tag last: a registry refuses anything else, and nobody
can pull what is not complete.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

from pyctr_wire.errors import InvalidArgument, NotFound
from pyctr_wire.oci import image_spec
from pyctr_wire.oci.image_spec import Index, Manifest
from pyctr_wire.progress_events import WARNING
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.images import Image
from pyctrd.core.platforms import Platform
from pyctrd.core.references import Reference
from pyctrd.transfer.fetch import SOURCE_LABEL
from pyctrd.transfer.progress import Progress, Report
from pyctrd.transfer.requests import ImageStore
from pyctrd.transfer.stores import Session
from pyctrd.transfer.together import Together
from pyctrd.transfer.tree import Node, Reader, Selection, core_descriptor, platform_of, ref_of, spec_descriptor

# Blobs that are sent at the same time.
_PARALLEL: Final = 3


class Uploads(Protocol):
    """Where an image goes."""

    async def has(self, descriptor: Descriptor, tag: str = "") -> bool: ...
    async def blob(
        self, descriptor: Descriptor, body: Callable[[], AsyncIterator[bytes]], sources: tuple[str, ...] = ()
    ) -> None: ...
    async def manifest(self, descriptor: Descriptor, data: bytes, tag: str = "") -> None: ...


async def push(
    session: Session, source: ImageStore, image: Image, uploads: Uploads, reference: Reference, progress: Progress
) -> None:
    """Push `image` to `reference`.

    An index of which not all is there is cut down to one manifest: with platforms given, the one that suits, else the
    one that is here, as docker does it, and a warning says what was left out. Raises NotFound if something of the image
    is missing here, and what the registry's answers mean.
    """
    progress.say(f"Pushing to OCI Registry ({reference})")

    async def stored(descriptor: image_spec.Descriptor, _: str) -> bytes:
        return await session.document(descriptor)

    selection = Selection(source.platforms, source.manifest_limit, tolerant=not source.platforms)
    tree = await Reader(stored, selection).read(spec_descriptor(image.target), image.name)
    if not source.platforms:
        tree = await _present(session, tree, progress)
    elif missing := await _missing(session, tree := _selected(tree)):
        raise NotFound(f"{missing}: pull all platforms, or push just the one that is here")
    progress.say("pushing content", str(reference), core_descriptor(tree.descriptor))
    pusher = _Pusher(session, uploads, reference, progress)
    async with Together() as tasks:
        for blob, node in _blobs(tree):
            tasks.create_task(pusher.blob(blob, node))
    for node in tree.walk():
        if node is not tree:
            await pusher.manifest(node)
    await pusher.manifest(tree, reference.tag)
    progress.say("pushed content", str(reference), core_descriptor(tree.descriptor))
    progress.say(f"Completed push to OCI Registry ({reference})")


class _Pusher:
    def __init__(self, session: Session, uploads: Uploads, reference: Reference, progress: Progress) -> None:
        self._session = session
        self._uploads = uploads
        self._reference = reference
        self._progress = progress
        self._slots = asyncio.Semaphore(_PARALLEL)

    async def blob(self, descriptor: image_spec.Descriptor, node: Node) -> None:
        """Send a blob unless the registry has it, or can get it from a repository that we pulled it from."""
        target = core_descriptor(descriptor)
        self._report("waiting", descriptor, node.ref, 0)
        async with self._slots:
            if await self._uploads.has(target):
                self._report("already exists", descriptor, node.ref, descriptor.size)
                return
            info = await self._session.info(descriptor.digest)
            if info.size != descriptor.size:  # the registry would wait for what is missing
                raise InvalidArgument(
                    f"{descriptor.digest} has {info.size} bytes, its descriptor says {descriptor.size}"
                )
            known = info.labels.get(f"{SOURCE_LABEL}.{self._reference.domain}", "").split(",")
            sources = tuple(path for path in known if path and path != self._reference.path)
            await self._uploads.blob(target, lambda: self._body(descriptor, node.ref), sources)
        self._report("complete", descriptor, node.ref, descriptor.size)

    async def manifest(self, node: Node, tag: str = "") -> None:
        """Send a manifest or index unless it is there, as it was found under `tag` if that is given."""
        target = core_descriptor(node.descriptor)
        if await self._uploads.has(target, tag):
            self._report("already exists", node.descriptor, node.parent, target.size)
            return
        await self._uploads.manifest(target, node.data, tag)
        self._report("complete", node.descriptor, node.parent, target.size)

    async def _body(self, descriptor: image_spec.Descriptor, parent: str) -> AsyncIterator[bytes]:
        sent = 0
        async for part in self._session.read(descriptor.digest):
            yield part
            sent += len(part)
            self._report("uploading", descriptor, parent, sent)

    def _report(self, event: str, descriptor: image_spec.Descriptor, parent: str, progress: int) -> None:
        target = core_descriptor(descriptor)
        self._progress.blob(Report(event, ref_of(descriptor), (parent,), progress, descriptor.size, target))


def _selected(tree: Node) -> Node:
    """Return the tree if all that its indexes list was read, else its one image; raises NotFound for several."""
    if all(_is_whole(node) for node in tree.walk()):
        return tree
    images = list(tree.images())
    if len(images) != 1:
        raise NotFound(f"{tree.descriptor.digest} lists more platforms than were selected: push them all, or just one")
    return images[0]


async def _present(session: Session, tree: Node, progress: Progress) -> Node:
    """Return the tree if all of it is here, else its one image of which all is; raises NotFound for several, or none.

    An index of what is here would be another one than was pulled, and one that lists more is refused by registries.
    """
    if all(_is_whole(node) for node in tree.walk()) and not await _missing(session, tree):
        return tree
    images = [node for node in tree.images() if not _is_attestation(node.platform)]
    here = [node for node in images if not await _missing(session, node)]
    if len(here) > 1:
        platforms = ", ".join(str(node.platform) for node in here)
        raise NotFound(f"of {tree.parent} only {platforms} are here: pull all platforms, or push just one")
    if not here:
        raise NotFound(await _missing(session, tree) or f"{tree.descriptor.digest}: none of its images is here")
    [image] = here
    if others := _left_out(tree, image):
        progress.say(f"{WARNING}only {image.platform} of {tree.parent} is here, and pushed without {others}")
    return image


async def _missing(session: Session, tree: Node) -> str:
    """Say which blob is not here: one of another platform than was pulled, mostly. "" if all are."""
    for blob, node in _blobs(tree):
        try:
            await session.info(blob.digest)
        except NotFound:
            return f"content {blob.digest}, for {node.platform}"
    return ""


def _left_out(tree: Node, image: Node) -> str:
    """Return what else than `image` the indexes of `tree` list, "" if that is nothing."""
    indexes = [node.document for node in tree.walk() if isinstance(node.document, Index)]
    others = [one for index in indexes for one in index.manifests if one.digest != image.descriptor.digest]
    return ", ".join(dict.fromkeys(map(_name, others)))


def _name(listed: image_spec.Descriptor) -> str:
    """Return what people call something that an index lists."""
    if listed.platform is None:
        return listed.digest
    platform = platform_of(listed.platform)
    return "attestations" if _is_attestation(platform) else str(platform)


def _is_attestation(platform: Platform | None) -> bool:
    return platform is not None and platform.os == "unknown"


def _is_whole(node: Node) -> bool:
    if not isinstance(node.document, Index):
        return True
    read = {child.descriptor.digest for child in node.children}
    return all(child.digest in read for child in node.document.manifests)


def _blobs(tree: Node) -> list[tuple[image_spec.Descriptor, Node]]:
    """Return configurations and layers, each once, without those that may not be distributed."""
    found: dict[str, tuple[image_spec.Descriptor, Node]] = {}
    for node in tree.walk():
        if isinstance(node.document, Manifest):
            for blob in (node.document.config, *node.document.layers):
                if not image_spec.is_nondistributable(blob.media_type):
                    found.setdefault(blob.digest, (blob, node))
    return list(found.values())
