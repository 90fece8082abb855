"""Finds the image that a user means, and what in it a container needs: manifest, configuration, layers."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from pyctr_wire.errors import FailedPrecondition, InvalidArgument, NotFound
from pyctr_wire.oci import image_spec
from pyctr_wire.oci.image_spec import ImageConfig, Index, Manifest
from pyctrd.core.digests import chain_ids
from pyctrd.core.images import Image
from pyctrd.core.platforms import Platform, best_first, matcher
from pyctrd.core.references import normalize_reference
from pyctrd.core.values import dataclass

_SAVED: Final = "org.criu.checkpoint.container.name"  # as containerd, CRI-O and Podman annotate them
_MAX_DEPTH: Final = 4  # indexes inside indexes
_DIGEST_START: Final = re.compile(r"(?:sha256:)?([0-9a-f]{4,64})")
_UNKNOWN: Final = Platform("unknown", "unknown")


class ImageRows(Protocol):
    """The images of a namespace."""

    def get(self, ns: str, name: str, /) -> Image: ...
    def list(self, ns: str, filters: Sequence[str] = (), /) -> Sequence[Image]: ...


class Blobs(Protocol):
    """The content of a namespace."""

    def open_blob(self, ns: str, digest: str, /) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image that is here; `chain_id` names the snapshot of its uppermost layer, "" without layers.

    `size` counts the bytes of its manifest, its configuration and its layers, as they are written there. `saved` is the
    digest of its only layer if that is a checkpoint of a pod's container, else "".
    """

    image: Image
    config: ImageConfig
    chain_id: str
    config_digest: str
    size: int
    saved: str


def find_image(images: ImageRows, ns: str, name: str) -> Image:
    """Return the image called `name`: exactly, as docker completes names, or by the start of its digest.

    Raises NotFound if there is none, InvalidArgument if several have a digest that starts so.
    """
    for candidate in _names(name):
        try:
            return images.get(ns, candidate)
        except NotFound:
            continue
    match = _DIGEST_START.fullmatch(name)
    if match:
        starts = [one for one in images.list(ns) if one.target.digest.startswith(f"sha256:{match.group(1)}")]
        if len({one.target.digest for one in starts}) > 1:
            raise InvalidArgument(f"{name} is the beginning of several images' digests")
        if starts:
            return starts[0]
    raise NotFound(f'image "{name}"')


def _names(name: str) -> Iterator[str]:
    yield name
    try:
        yield str(normalize_reference(name))
    except InvalidArgument:
        return


def read_image(blobs: Blobs, ns: str, image: Image, platform: Platform) -> FoundImage:
    """Return what a container of `image` on `platform` needs. Raises FailedPrecondition if that is not here."""
    target = image.target
    root = image_spec.Descriptor(target.media_type, image_spec.check_digest(target.digest), target.size)
    for descriptor, manifest in _manifests(blobs, ns, root, platform, 0, set()):
        if manifest.config.media_type not in image_spec.CONFIGS:
            raise FailedPrecondition(f"{image.name} is not an image of a container ({manifest.config.media_type})")
        config = image_spec.parse_config(_read(blobs, ns, manifest.config))
        if root.media_type in image_spec.MANIFESTS and not _suits(config.platform, platform):
            raise FailedPrecondition(f"{image.name} is for {_written(config.platform)}, not for {platform}")
        chain = chain_ids(list(config.diff_ids))
        size = descriptor.size + manifest.config.size + sum(layer.size for layer in manifest.layers)
        is_saved = bool(manifest.annotations.get(_SAVED)) and len(manifest.layers) == 1
        saved = manifest.layers[0].digest if is_saved else ""
        return FoundImage(image, config, chain[-1] if chain else "", manifest.config.digest, size, saved)
    raise FailedPrecondition(f"{image.name} has nothing for {platform}: pyctr image pull --platform {platform}")


def _suits(written: image_spec.Platform, platform: Platform) -> bool:
    """Tell whether an image that no index describes runs on `platform`; what it leaves out, it does not mind."""
    its_own = Platform(written.os or platform.os, written.architecture or platform.architecture, written.variant)
    return matcher(platform)(its_own) is not None


def _manifests(
    blobs: Blobs, ns: str, descriptor: image_spec.Descriptor, platform: Platform, depth: int, seen: set[str]
) -> Iterator[tuple[image_spec.Descriptor, Manifest]]:
    """Yield the manifests that suit and are here, the best first, each once, with what points at it."""
    if descriptor.digest in seen:  # else, indexes that all list each other and have nothing for us take for ever
        return
    seen.add(descriptor.digest)
    try:
        document = image_spec.parse_document(_read(blobs, ns, descriptor), descriptor.media_type)
    except NotFound:
        return
    if isinstance(document, Manifest):
        yield descriptor, document
        return
    if depth >= _MAX_DEPTH:
        raise FailedPrecondition(f"{descriptor.digest}: indexes are nested more than {_MAX_DEPTH} deep")
    for child in _suitable(document, platform):
        yield from _manifests(blobs, ns, child, platform, depth + 1, seen)


def _suitable(index: Index, platform: Platform) -> list[image_spec.Descriptor]:
    """Return an index's entries for `platform`, the best first, then those that do not say what they are for."""
    kinds = image_spec.MANIFESTS | image_spec.INDEXES
    children = [child for child in index.manifests if child.media_type in kinds]
    silent = [child for child in children if child.platform is None]
    return [*best_first([child for child in children if child.platform], _platform, platform), *silent]


def _platform(child: image_spec.Descriptor) -> Platform:
    return _written(child.platform) if child.platform else _UNKNOWN


def _written(platform: image_spec.Platform) -> Platform:
    return Platform(platform.os, platform.architecture, platform.variant)


def _read(blobs: Blobs, ns: str, descriptor: image_spec.Descriptor) -> bytes:
    image_spec.check_size(descriptor.size, descriptor.digest)
    fd, size = blobs.open_blob(ns, descriptor.digest)
    with os.fdopen(fd, "rb") as file:
        image_spec.check_size(size, descriptor.digest)
        return file.read(size)
