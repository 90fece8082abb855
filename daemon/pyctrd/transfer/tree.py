"""An image as a tree of documents: an index over manifests, each with a configuration and layers.

Source: OCI image-spec, image-index.md and manifest.md; containerd docs/garbage-collection.md.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from pyctr_wire.errors import InvalidArgument, NotFound
from pyctr_wire.oci import image_spec
from pyctr_wire.oci.image_spec import ImageConfig, Index, Manifest
from pyctr_wire.progress_events import WARNING
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.labels import Labels
from pyctrd.core.platforms import Platform, matcher
from pyctrd.core.values import dataclass

_GC_CONTENT: Final = "containerd.io/gc.ref.content"
# How deep indexes may be nested in each other.
_MAX_DEPTH: Final = 4
# Bytes of all documents of a tree, which are in memory at the same time, as text and as values.
_MAX_DOCUMENTS: Final = 4 * image_spec.MAX_DOCUMENT


@dataclass(frozen=True, slots=True)
class Selection:
    """Which images of an index are wanted: the best for each platform (none: all), at most `limit` (0: no limit).

    `all_metadata` wants the documents of the others as well, without their layers; `tolerant` passes over children
    that are not to be had.
    """

    platforms: tuple[Platform, ...] = ()
    limit: int = 0
    all_metadata: bool = False
    tolerant: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """A document that was read, with its children: of an index, those that are wanted.

    `config` is the configuration of a manifest that is an image; `wants_layers` is False for one of which only the
    documents are wanted; `parent` is the ref of what lists it, or the image's name.
    """

    descriptor: image_spec.Descriptor
    document: Index | Manifest
    data: bytes
    children: tuple["Node", ...] = ()
    config: ImageConfig | None = None
    wants_layers: bool = True
    parent: str = ""

    @property
    def platform(self) -> Platform | None:
        """What the image was built for, as the index says, else its configuration; None if nobody says."""
        written = self.descriptor.platform or (self.config.platform if self.config else None)
        return platform_of(written) if written is not None else None

    @property
    def ref(self) -> str:
        """What its children call their parent."""
        return ref_of(self.descriptor)

    def walk(self) -> Iterator["Node"]:
        """Yield all nodes, children before their parents; what is listed several times comes once."""
        return _walk(self, set())

    def images(self) -> Iterator["Node"]:
        """Yield the manifests whose layers are wanted."""
        return (node for node in self.walk() if isinstance(node.document, Manifest) and node.wants_layers)

    def layers(self) -> tuple[image_spec.Descriptor, ...]:
        """Return the layers that are wanted."""
        return self.document.layers if isinstance(self.document, Manifest) and self.wants_layers else ()

    def gc_labels(self) -> Labels:
        """Return the labels that let this document keep its children from garbage collection."""
        if isinstance(self.document, Index):
            kept = {child.descriptor.digest for child in self.children}
            numbered = enumerate(self.document.manifests)
            return {f"{_GC_CONTENT}.m.{n}": child.digest for n, child in numbered if child.digest in kept}
        labels = {f"{_GC_CONTENT}.config": self.document.config.digest}
        return labels | {f"{_GC_CONTENT}.l.{n}": layer.digest for n, layer in enumerate(self.layers())}


# Returns a document's bytes, having stored them if need be; gets the ref of its parent too. Raises NotFound.
Fetch = Callable[[image_spec.Descriptor, str], Awaitable[bytes]]


class Reader:
    """Reads one tree; documents that appear twice in it are read once."""

    def __init__(self, fetch: Fetch, selection: Selection) -> None:
        """Get documents with `fetch`."""
        self._fetch = fetch
        self._size = 0  # of the documents so far, in bytes
        self._selection = selection
        self._known: dict[str, Node] = {}

    async def read(self, root: image_spec.Descriptor, parent: str) -> Node:
        """Return the tree under `root`, which is reported as a child of `parent`.

        Raises NotFound if nothing in it suits, InvalidArgument for bad documents.
        """
        return await self._read(root, parent, 0)

    async def _read(self, descriptor: image_spec.Descriptor, parent: str, depth: int) -> Node:
        if known := self._known.get(descriptor.digest):
            return replace(known, descriptor=descriptor)  # the same bytes under other annotations: another name, say
        if depth > _MAX_DEPTH:
            raise InvalidArgument(f"{descriptor.digest}: indexes are nested more than {_MAX_DEPTH} deep")
        data = await self._document(descriptor, parent)
        if len(data) != descriptor.size:
            raise InvalidArgument(f"{descriptor.digest} has {len(data)} bytes, its descriptor says {descriptor.size}")
        document = image_spec.parse_document(data, descriptor.media_type)
        node = Node(descriptor, document, data, parent=parent)
        if isinstance(document, Index):
            node = replace(node, children=await self._children(descriptor, document, node.ref, depth))
        else:
            node = replace(node, config=await self._config(document, node.ref))
        self._known[descriptor.digest] = node
        return node

    async def _document(self, descriptor: image_spec.Descriptor, parent: str) -> bytes:
        data = await self._fetch(descriptor, parent)
        self._size += len(data)
        if self._size > _MAX_DOCUMENTS:
            raise InvalidArgument(f"{parent}: its documents have more than {_MAX_DOCUMENTS} bytes together")
        return data

    async def _config(self, manifest: Manifest, parent: str) -> ImageConfig | None:
        data = await self._document(manifest.config, parent)
        return image_spec.parse_config(data) if manifest.config.media_type in image_spec.CONFIGS else None

    async def _children(
        self, descriptor: image_spec.Descriptor, index: Index, parent: str, depth: int
    ) -> tuple[Node, ...]:
        candidates = [child for child in index.manifests if image_spec.is_document(child.media_type)]
        nodes: dict[str, Node] = {}
        platforms: list[Platform | None] = []
        for child in candidates:
            if child.platform is None:  # only the documents below can tell
                nodes |= await self._try(child, parent, depth)
                node = nodes.get(child.digest)
                platforms.append(node.platform if node else None)
            else:
                platforms.append(platform_of(child.platform))
        chosen = choose(platforms, self._selection.platforms, self._selection.limit)
        for number in chosen if not self._selection.all_metadata else range(len(candidates)):
            child = candidates[number]
            if child.digest not in nodes:
                nodes |= await self._try(child, parent, depth)
        wanted = {candidates[number].digest for number in chosen}
        found = tuple(
            node if digest in wanted else replace(node, wants_layers=False)
            for digest, node in nodes.items()
            if digest in wanted or self._selection.all_metadata
        )
        if not any(node.descriptor.digest in wanted for node in found) and candidates:
            raise NotFound(f"no match for platform in manifest {descriptor.digest}")
        return found

    async def _try(self, child: image_spec.Descriptor, parent: str, depth: int) -> dict[str, Node]:
        """Read a child; {} if it is not to be had and need not be."""
        try:
            return {child.digest: await self._read(child, parent, depth + 1)}
        except NotFound:
            if not self._selection.tolerant:
                raise
            return {}


def _walk(node: Node, seen: set[object]) -> Iterator[Node]:
    # A few levels of indexes that each list all of the next level are a small image with millions of ways down.
    listed_for = node.descriptor.platform if isinstance(node.document, Manifest) else None
    key = node.descriptor.digest, listed_for, node.wants_layers
    if key in seen:
        return
    seen.add(key)
    for child in node.children:
        yield from _walk(child, seen)
    yield node


def choose(platforms: Sequence[Platform | None], wanted: Sequence[Platform], limit: int = 0) -> list[int]:
    """Return which of `platforms` to take: the best for each one wanted, in that order; all if none is wanted.

    None is something without a platform, such as a nested index: it is taken if nothing better is known of it.
    """
    if not wanted:
        return list(range(len(platforms)))[: limit or None]
    chosen: list[int] = []
    for one in wanted:
        rank = matcher(one)
        ranked = [(rank(platform), n) for n, platform in enumerate(platforms) if platform is not None]
        fitting = sorted((place, n) for place, n in ranked if place is not None)
        if fitting and fitting[0][1] not in chosen:
            chosen.append(fitting[0][1])
    if not chosen:
        chosen = [n for n, platform in enumerate(platforms) if platform is None]
    return chosen[: limit or None]


def misfits(tree: Node, wanted: Iterable[Platform]) -> Iterator[str]:
    """Say what the images of `tree` are for instead, for each of the platforms that none of them suits."""
    images = [image for image in tree.images() if image.config is not None]
    platforms = [image.platform for image in images]
    for one in dict.fromkeys(wanted):
        if images and not choose(platforms, [one], 1):
            written = ", ".join(dict.fromkeys(map(str, platforms)))
            yield f"{WARNING}{tree.parent or 'the image'} is for {written}, not for {one}"


def platform_of(written: image_spec.Platform) -> Platform:
    """Return the platform that a document names."""
    return Platform(written.os, written.architecture, written.variant, written.os_version, written.os_features)


def core_descriptor(descriptor: image_spec.Descriptor) -> Descriptor:
    """Return the descriptor as the stores know it."""
    return Descriptor(descriptor.media_type, descriptor.digest, descriptor.size, dict(descriptor.annotations))


def spec_descriptor(descriptor: Descriptor) -> image_spec.Descriptor:
    """Return a stored descriptor as documents write it; raises InvalidArgument for a malformed digest."""
    digest = image_spec.check_digest(descriptor.digest)
    return image_spec.Descriptor(descriptor.media_type, digest, descriptor.size, dict(descriptor.annotations))


def ref_of(descriptor: image_spec.Descriptor | Descriptor) -> str:
    """Return the ref under which a blob is written: clients know these names from progress reports."""
    media_type = descriptor.media_type
    if media_type in image_spec.MANIFESTS:
        kind = "manifest"
    elif media_type in image_spec.INDEXES:
        kind = "index"
    elif media_type in image_spec.CONFIGS:
        kind = "config"
    elif image_spec.is_layer(media_type):
        kind = "layer"
    elif media_type.startswith("application/vnd.in-toto"):
        kind = "attestation"
    else:
        kind = "unknown"
    return f"{kind}-{descriptor.digest}"
