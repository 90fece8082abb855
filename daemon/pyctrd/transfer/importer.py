"""Import: an archive that a client sends becomes images of the store.

Two kinds of archives are read: OCI layouts (oci-layout, index.json, blobs/) and what docker save writes
(manifest.json); one that is both counts as a layout. Source: OCI image-spec, image-layout.md; moby image/spec v1.2.
"""

import posixpath
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from pyctr_wire.errors import InvalidArgument, NotFound
from pyctr_wire.oci import image_spec
from pyctr_wire.oci.image_spec import ANNOTATION_IMAGE_NAME, ANNOTATION_REF_NAME, Index, Manifest
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.platforms import Platform
from pyctrd.core.references import normalize_reference
from pyctrd.diff.compression import Compression
from pyctrd.transfer import naming
from pyctrd.transfer.archive import Archive, ArchiveReader, File
from pyctrd.transfer.bridge import Bridge
from pyctrd.transfer.progress import Progress, Report
from pyctrd.transfer.requests import ImageStore, ImportStream
from pyctrd.transfer.stores import Session
from pyctrd.transfer.tree import Node, Reader, Selection, core_descriptor, misfits, ref_of
from pyctrd.transfer.unpack import ChainLocks, Obtain, unpack_all

_LAYOUT_VERSION: Final = "1.0.0"
_DOCKER_LAYERS: Final = {
    Compression.NONE: image_spec.DOCKER_LAYER,
    Compression.GZIP: image_spec.DOCKER_LAYER_GZIP,
    Compression.ZSTD: image_spec.DOCKER_LAYER_ZSTD,
}


async def import_archive(
    session: Session,
    chunks: AsyncIterator[bytes],
    request: ImportStream,
    destination: ImageStore,
    host: Platform,
    locks: ChainLocks,
    progress: Progress,
) -> None:
    """Store the images of the archive that `chunks` are, under the names that the rules of `destination` let through.

    Raises InvalidArgument for an archive that is damaged or of no known kind, NotFound if it lacks a blob of an image
    that was asked for.
    """
    progress.say("Importing")
    archive = await _read(session, chunks, request, progress)
    index = await _index(session, archive)
    data = archive.documents["index.json"] if "oci-layout" in archive.documents else image_spec.encode(index)
    media_type = index.media_type
    digest = await session.write(f"index-{image_spec.digest_like('', data)}", data)
    top = Descriptor(media_type, digest, len(data))

    selection = Selection(destination.platforms, destination.manifest_limit, destination.all_metadata, tolerant=True)
    reader = Reader(lambda descriptor, _: session.document(descriptor), selection)
    trees = [
        await reader.read(child, ref_of(top)) for child in index.manifests if image_spec.is_document(child.media_type)
    ]
    whole = Node(image_spec.Descriptor(media_type, digest, len(data)), index, data, tuple(trees))
    for node in whole.walk():
        await _check_complete(session, node)
        await session.label(node.descriptor.digest, node.gc_labels())
    for warning in misfits(whole, destination.wanted(host)):
        progress.say(warning)
    await unpack_all(session, whole, destination.unpacks, host, locks, progress, lambda _: present(session))

    await _store_images(session, top, trees, destination, progress)
    progress.say("Completed import")


async def _read(session: Session, chunks: AsyncIterator[bytes], request: ImportStream, progress: Progress) -> Archive:
    def on_blob(name: str, size: int) -> None:
        progress.blob(Report("complete", f"tar-{name}", (), size, size))

    stores = session.stores
    reader = ArchiveReader(stores.content, session.ns, session.lease, on_blob, compress=request.force_compress)
    bridge = Bridge(chunks)
    try:
        return await stores.bulk.run(reader.read, iter(bridge))
    finally:
        await bridge.close()


async def _index(session: Session, archive: Archive) -> Index:
    if layout := archive.documents.get("oci-layout"):
        return _oci_index(layout, archive)
    if manifest := archive.documents.get("manifest.json"):
        return await _docker_index(session, manifest, archive)
    raise InvalidArgument("unrecognized image format")


def _oci_index(layout: bytes, archive: Archive) -> Index:
    document = image_spec.load_json(layout, "oci-layout")
    version = document.get("imageLayoutVersion") if isinstance(document, dict) else None
    if version != _LAYOUT_VERSION:
        raise InvalidArgument(f"unsupported OCI version {str(version)[:100]}")
    data = archive.documents.get("index.json")
    if data is None:
        raise InvalidArgument(f"missing index.json in OCI layout {_LAYOUT_VERSION}")
    index = image_spec.parse_document(data)
    if not isinstance(index, Index):
        raise InvalidArgument("index.json is not an index")
    return index


async def _docker_index(session: Session, data: bytes, archive: Archive) -> Index:
    """Return an index of what docker saved; a manifest is made for each image and stored."""
    document = image_spec.load_json(data, "manifest.json")
    if not isinstance(document, list) or len(document) > image_spec.MAX_CHILDREN:
        raise InvalidArgument("manifest.json is not a list of images")
    children: list[image_spec.Descriptor] = []
    for entry in document:
        config, layers, tags = _docker_entry(entry, archive)
        target = await _docker_manifest(session, config, layers)
        names = [normalize_reference(tag) for tag in tags]
        children += [
            replace(target, annotations={ANNOTATION_IMAGE_NAME: str(name), ANNOTATION_REF_NAME: name.tag})
            for name in names
        ] or [target]
    return Index(tuple(children))


def _docker_entry(entry: Any, archive: Archive) -> tuple[File, list[File], list[str]]:
    """Return an image's configuration, layers and tags; raises InvalidArgument unless all of it is there."""
    if not isinstance(entry, dict):
        raise InvalidArgument("an entry of manifest.json is not an image")
    path, layer_paths, tags = entry.get("Config"), entry.get("Layers") or [], entry.get("RepoTags") or []
    if not isinstance(layer_paths, list) or not isinstance(tags, list):
        raise InvalidArgument("an entry of manifest.json is not an image")
    config = _file(archive, path)
    if config is None:
        raise InvalidArgument(f'image config "{str(path)[:200]}" not found')
    layers = []
    for layer_path in layer_paths:
        layer = _file(archive, layer_path)
        if layer is None:
            raise InvalidArgument(f'layer "{str(layer_path)[:200]}" not found')
        layers.append(layer)
    return config, layers, [str(tag) for tag in tags]


def _file(archive: Archive, path: object) -> File | None:
    return archive.find(posixpath.normpath(path)) if isinstance(path, str) else None


async def _docker_manifest(session: Session, config: File, layers: list[File]) -> image_spec.Descriptor:
    manifest = Manifest(
        image_spec.Descriptor(image_spec.DOCKER_CONFIG, config.digest, config.size),
        tuple(image_spec.Descriptor(_DOCKER_LAYERS[one.compression], one.digest, one.size) for one in layers),
        image_spec.DOCKER_MANIFEST,
    )
    platform = image_spec.parse_config(await session.document(core_descriptor(manifest.config))).platform
    data = image_spec.encode(manifest)
    digest = await session.write(f"manifest-{image_spec.digest_like('', data)}", data)
    return image_spec.Descriptor(manifest.media_type, digest, len(data), platform=platform)


async def _check_complete(session: Session, node: Node) -> None:
    """Raise NotFound if a layer that is wanted came neither with this archive nor with anything before it."""
    for layer in node.layers():
        if not image_spec.is_nondistributable(layer.media_type) and not await session.has(layer.digest):
            raise NotFound(f"content {layer.digest}")


def present(session: Session) -> Obtain:
    async def check(layer: image_spec.Descriptor) -> None:
        if not await session.has(layer.digest):
            raise NotFound(f"content {layer.digest}")

    return check


async def _store_images(
    session: Session, top: Descriptor, trees: list[Node], destination: ImageStore, progress: Progress
) -> None:
    now = datetime.now(UTC)
    found = naming.images([destination.name] if destination.name else [], top, destination.labels, now)
    for tree in trees:
        target = core_descriptor(tree.descriptor)
        names = naming.names_of_imported(destination.extra_references, target)
        found += naming.images(names, target, destination.labels, now)
    for image in found:
        await session.store_image(image)
        progress.say("saved", image.name, image.target)
