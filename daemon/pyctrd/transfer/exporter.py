"""Export: images of the store as a tar archive that is an OCI layout and a docker archive at once.

    blobs/ blobs/sha256/ blobs/sha256/<hex>…     sorted, each once
    index.json                                   the images, with the names they were exported under
    manifest.json                                the same for docker load
    oci-layout

The same images always give the same bytes: owner 0, time 0, sorted. Source: OCI image-spec, image-layout.md.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from pyctr_wire.errors import InvalidArgument, NotFound
from pyctr_wire.oci import image_spec
from pyctr_wire.oci.image_spec import ANNOTATION_IMAGE_NAME, ANNOTATION_REF_NAME, Index, Manifest
from pyctrd.core.images import Image
from pyctrd.core.platforms import Platform
from pyctrd.core.references import parse_reference
from pyctrd.diff.tar_stream import DIRECTORY, REGULAR
from pyctrd.diff.tar_writer import TarWriter
from pyctrd.transfer.progress import Progress
from pyctrd.transfer.requests import ExportStream
from pyctrd.transfer.stores import Session
from pyctrd.transfer.tree import Node, Reader, Selection, choose, spec_descriptor

_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'

Write = Callable[[bytes], Awaitable[None]]


async def export(
    session: Session, images: Sequence[Image], request: ExportStream, host: Platform, write: Write, progress: Progress
) -> None:
    """Write the archive with `write`.

    Raises NotFound if nothing suits the platforms or a blob is missing, InvalidArgument for an image whose target is
    neither manifest nor index.
    """
    progress.say("Exporting")
    platforms = () if request.all_platforms else request.platforms or (host,)
    trees = [await _read(session, image, Selection(platforms, tolerant=True)) for image in images]
    blobs = {digest: size for tree in trees for digest, size in _blobs(tree, request)}
    archive = _Archive(write)
    await archive.directory("blobs/")
    for algorithm in sorted({digest.partition(":")[0] for digest in blobs}):
        await archive.directory(f"blobs/{algorithm}/")
    for digest, size in sorted(blobs.items()):
        await archive.blob(_path(digest), size, session.read(digest))
    await archive.file("index.json", _index(images, trees))
    if not request.skip_compatibility_manifest:
        await archive.file("manifest.json", _docker_manifest(images, trees, host))
    await archive.file("oci-layout", _LAYOUT)
    await archive.end()
    progress.say("Completed export")


async def _read(session: Session, image: Image, selection: Selection) -> Node:
    if not image_spec.is_document(image.target.media_type):
        raise InvalidArgument("only manifests may be exported")

    async def stored(descriptor: image_spec.Descriptor, _: str) -> bytes:
        return await session.document(descriptor)

    tree = await Reader(stored, selection).read(spec_descriptor(image.target), image.name)
    if not any(tree.images()):
        raise NotFound("no manifest found for platform")
    return tree


def _blobs(tree: Node, request: ExportStream) -> list[tuple[str, int]]:
    """Return digest and size of everything that the archive must hold of a tree."""
    found: list[tuple[str, int]] = []
    for node in tree.walk():
        found.append((node.descriptor.digest, node.descriptor.size))
        if isinstance(node.document, Manifest):
            layers = [
                layer
                for layer in node.layers()
                if not (request.skip_non_distributable and image_spec.is_nondistributable(layer.media_type))
            ]
            found += [(blob.digest, blob.size) for blob in (node.document.config, *layers)]
    return found


def _index(images: Sequence[Image], trees: Sequence[Node]) -> bytes:
    entries = []
    for image, tree in zip(images, trees, strict=True):
        names = {ANNOTATION_IMAGE_NAME: image.name, ANNOTATION_REF_NAME: _tag(image.name)}
        annotations = {**tree.descriptor.annotations, **{key: name for key, name in names.items() if name}}
        entries.append(replace(tree.descriptor, annotations=annotations))
    return image_spec.encode(Index(tuple(entries)))


def _docker_manifest(images: Sequence[Image], trees: Sequence[Node], host: Platform) -> bytes:
    """Return what docker load reads: for each configuration, its layers and all its tags."""
    entries: dict[str, dict[str, Any]] = {}
    for image, tree in zip(images, trees, strict=True):
        node = _docker_image(tree, host)
        if node is None or not isinstance(node.document, Manifest):
            continue
        manifest = node.document
        entry = entries.setdefault(
            node.descriptor.digest,
            {
                "Config": _path(manifest.config.digest),
                "RepoTags": [],
                "Layers": [_path(layer.digest) for layer in manifest.layers],
            },
        )
        if name := _familiar(image.name):
            entry["RepoTags"].append(name)
    return json.dumps(list(entries.values()), separators=(",", ":")).encode()


def _docker_image(tree: Node, host: Platform) -> Node | None:
    """Return the one image that docker gets: the best for this machine, or the only one there is."""
    images = [node for node in tree.images() if node.config is not None]
    chosen = choose([node.platform for node in images], [host], 1)
    if chosen:
        return images[chosen[0]]
    return images[0] if len(images) == 1 else None


def _tag(name: str) -> str:
    """Return the tag of an image's name, "" if it has none or is no reference."""
    try:
        return parse_reference(name).tag
    except InvalidArgument:
        return ""


def _familiar(name: str) -> str:
    """Return how docker writes the name, "" for one that it could not load."""
    try:
        reference = parse_reference(name)
    except InvalidArgument:
        return ""
    return reference.familiar() if reference.tag and not reference.digest else ""


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


class _Archive:
    """Writes tar entries in order; nothing in them depends on when or by whom they were written."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._buffer = bytearray()
        self._tar = TarWriter(self._buffer.extend)

    async def directory(self, name: str) -> None:
        self._tar.add(name.encode(), DIRECTORY, mode=0o755)
        await self._flush()

    async def file(self, name: str, data: bytes) -> None:
        self._tar.add(name.encode(), REGULAR, mode=0o444, size=len(data))
        self._tar.content(data)
        self._tar.pad(len(data))
        await self._flush()

    async def blob(self, name: str, size: int, parts: AsyncIterator[bytes]) -> None:
        self._tar.add(name.encode(), REGULAR, mode=0o444, size=size)
        await self._flush()
        sent = 0
        async for part in parts:
            await self._write(part)
            sent += len(part)
        if sent != size:
            raise InvalidArgument(f"{name} has {sent} bytes, its descriptor says {size}")
        self._tar.pad(size)
        await self._flush()

    async def end(self) -> None:
        self._tar.finish()
        await self._flush()

    async def _flush(self) -> None:
        data = bytes(self._buffer)
        self._buffer.clear()
        await self._write(data)
