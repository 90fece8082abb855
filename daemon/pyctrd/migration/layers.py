"""Which snapshot is which layer of an image: those need not be copied, the target unpacks them from content."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from pyctr_wire.containerd.types import descriptor_pb2
from pyctr_wire.errors import InvalidArgument, NotFound, OutOfRange
from pyctr_wire.oci import image_spec
from pyctrd.core.digests import chain_ids
from pyctrd.migration import content
from pyctrd.migration.side import Side


class Layer(NamedTuple):
    """A layer's blob, the digest that it has unpacked, and the chain id of what lies below it ("" for nothing)."""

    blob: descriptor_pb2.Descriptor
    diff_id: str
    parent: str


def by_chain_id(source: Side, targets: Iterable[descriptor_pb2.Descriptor]) -> Mapping[str, Layer]:
    """Return the layers of the images that `targets` point at, by the names that their snapshots have."""
    layers: dict[str, Layer] = {}
    for manifest in _manifests(source, [(target.digest, target.media_type) for target in targets]):
        try:
            config = image_spec.parse_config(content.read(source, manifest.config.digest, image_spec.MAX_DOCUMENT))
        except (NotFound, InvalidArgument, OutOfRange):  # of another platform, or no image
            continue
        chain = chain_ids(list(config.diff_ids))
        if len(chain) == len(manifest.layers):
            for blob, diff_id, name, parent in zip(
                manifest.layers, config.diff_ids, chain, ["", *chain[:-1]], strict=True
            ):
                described = descriptor_pb2.Descriptor(media_type=blob.media_type, digest=blob.digest, size=blob.size)
                layers[name] = Layer(described, diff_id, parent)
    return layers


def _manifests(source: Side, waiting: list[tuple[str, str]]) -> Iterator[image_spec.Manifest]:
    """Yield the manifests that are there among documents given as digest and media type, and below them."""
    seen = set()
    while waiting:
        digest, media_type = waiting.pop()
        if digest in seen or not image_spec.is_document(media_type):
            continue
        seen.add(digest)
        try:
            document = image_spec.parse_document(content.read(source, digest, image_spec.MAX_DOCUMENT), media_type)
        except (NotFound, InvalidArgument, OutOfRange):
            continue
        if isinstance(document, image_spec.Manifest):
            yield document
        else:
            waiting += [(child.digest, child.media_type) for child in document.manifests]
