"""OCI image documents as typed values: index, manifest, configuration, layout.

What an image says is untrusted. The parsers here are the only way in: they cap the size, check every digest and
size, and refuse a document that can be read as two kinds (CVE-2021-41190). Docker's schema 2 documents have the same
shape under other media types. Source: OCI image-spec v1.1; distribution/manifest/schema2.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pyctr_wire.errors import InvalidArgument

# Bytes. No manifest, index or configuration of an honest image comes near it (CVE-2023-25153).
MAX_DOCUMENT: Final = 8 << 20
# Children of one document: more would only serve to exhaust us.
MAX_CHILDREN: Final = 10_000

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_LAYER_NONDISTRIBUTABLE: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD: Final = "application/vnd.docker.image.rootfs.diff.tar.zstd"
DOCKER_LAYER_FOREIGN: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar"

MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEXES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
CONFIGS: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
SCHEMA1: Final = frozenset(f"application/vnd.docker.distribution.manifest.v1+{kind}" for kind in ("json", "prettyjws"))

# Annotations that name an image inside an index.
ANNOTATION_REF_NAME: Final = "org.opencontainers.image.ref.name"
ANNOTATION_IMAGE_NAME: Final = "io.containerd.image.name"

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
_SURROGATE: Final = re.compile(rb"\\u[dD][89A-Fa-f]")
_LAYER_PREFIXES: Final = (
    OCI_LAYER,
    OCI_LAYER_NONDISTRIBUTABLE,
    DOCKER_LAYER,
    DOCKER_LAYER_FOREIGN,
)


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image was built for, as written in the document: not normalised."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Points at a blob: media type, checked digest, size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    urls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Index:
    """A list of manifests, or of further indexes, usually one per platform."""

    manifests: tuple[Descriptor, ...]
    media_type: str = OCI_INDEX
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image (or another artifact): a configuration, and layers from the lowest up."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = OCI_MANIFEST
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProcessConfig:
    """How an image wants its process run; what it does not say is empty."""

    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """An image's configuration; `diff_ids` are the digests of its uncompressed layers, lowest first."""

    platform: Platform
    diff_ids: tuple[str, ...]
    process: ProcessConfig = field(default_factory=ProcessConfig)


def is_document(media_type: str) -> bool:
    """Say whether a blob of this type is a manifest or an index."""
    return media_type in MANIFESTS or media_type in INDEXES


def is_layer(media_type: str) -> bool:
    """Say whether a blob of this type is a file system layer."""
    return media_type.startswith(_LAYER_PREFIXES)


def is_nondistributable(media_type: str) -> bool:
    """Say whether a layer of this type must not be pushed: it comes from its `urls`."""
    return media_type.startswith((OCI_LAYER_NONDISTRIBUTABLE, DOCKER_LAYER_FOREIGN))


def check_digest(text: Any) -> str:
    """Return `text` if it is a digest; raises InvalidArgument otherwise, before it becomes a path (CVE-2024-3727)."""
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise InvalidArgument(f"{_short(text)} is not a digest")
    return text


def digest_like(digest: str, data: bytes) -> str:
    """Return the digest of `data` by the algorithm of `digest`, by sha256 if that is ""."""
    algorithm = digest.partition(":")[0] or "sha256"
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def parse_document(data: bytes, media_type: str = "") -> Manifest | Index:
    """Read a manifest or an index of the type that its descriptor claims; "" takes the document's word.

    Raises InvalidArgument for anything that is not exactly one of the two: over MAX_DOCUMENT, not JSON, keys given
    twice, a media type that contradicts `media_type`, parts of the other kind, bad digests or sizes.
    """
    document = _load_object(data, "manifest")
    claimed = _text(document, "mediaType")
    if claimed and media_type and claimed != media_type:
        raise InvalidArgument(f"document says mediaType {_short(claimed)}, its descriptor {_short(media_type)}")
    kind = media_type or claimed
    if kind in SCHEMA1 or "fsLayers" in document:
        raise InvalidArgument(
            f'media type "{kind}" is no longer supported since containerd v2.0, please rebuild the image as '
            f'"{DOCKER_MANIFEST}" or "{OCI_MANIFEST}"'
        )
    has_children, has_layers = "manifests" in document, "layers" in document or "config" in document
    if has_children and has_layers:
        raise InvalidArgument("document is both a manifest and an index")
    if not kind:
        kind = OCI_INDEX if has_children else OCI_MANIFEST
    if kind in INDEXES and not has_layers:
        return Index(_descriptors(document, "manifests"), kind, _strings(document, "annotations"))
    if kind in MANIFESTS and not has_children:
        config = _descriptor(document.get("config"))
        return Manifest(config, _descriptors(document, "layers"), kind, _strings(document, "annotations"))
    raise InvalidArgument(f"document does not fit its media type {_short(kind)}")


def parse_config(data: bytes) -> ImageConfig:
    """Read an image configuration. Raises InvalidArgument for one over the cap or not of its form."""
    document = _load_object(data, "image configuration")
    root = _mapping(document, "rootfs")
    if root.get("type", "layers") != "layers":
        raise InvalidArgument(f"image configuration has rootfs of type {_short(root.get('type'))}")
    process = _mapping(document, "config")
    return ImageConfig(
        platform=_platform(document),
        diff_ids=tuple(check_digest(diff_id) for diff_id in _list(root, "diff_ids")),
        process=ProcessConfig(
            env=_texts(process, "Env"),
            entrypoint=_texts(process, "Entrypoint"),
            cmd=_texts(process, "Cmd"),
            working_dir=_text(process, "WorkingDir"),
            user=_text(process, "User"),
            stop_signal=_text(process, "StopSignal"),
            labels=_strings(process, "Labels"),
            volumes=tuple(_mapping(process, "Volumes")),
        ),
    )


def encode(document: Manifest | Index) -> bytes:
    """Return the document as JSON: the same value always gives the same bytes, so the same digest."""
    body: dict[str, Any] = {"schemaVersion": 2, "mediaType": document.media_type}
    if isinstance(document, Index):
        body["manifests"] = [descriptor_json(child) for child in document.manifests]
    else:
        body["config"] = descriptor_json(document.config)
        body["layers"] = [descriptor_json(layer) for layer in document.layers]
    if document.annotations:
        body["annotations"] = dict(document.annotations)
    return json.dumps(body, separators=(",", ":")).encode()


def descriptor_json(descriptor: Descriptor) -> dict[str, Any]:
    """Return the JSON object of a descriptor, without what is not set."""
    body: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if descriptor.urls:
        body["urls"] = list(descriptor.urls)
    if descriptor.annotations:
        body["annotations"] = dict(descriptor.annotations)
    if platform := descriptor.platform:
        values = {
            "architecture": platform.architecture,
            "os": platform.os,
            "os.version": platform.os_version,
            "os.features": list(platform.os_features),
            "variant": platform.variant,
        }
        body["platform"] = {key: value for key, value in values.items() if value}
    return body


def check_size(size: int, what: str) -> None:
    """Raise InvalidArgument for a document over the cap: before it is read where its size is known."""
    if size > MAX_DOCUMENT:
        raise InvalidArgument(f"{what} of {size} bytes is over the limit of {MAX_DOCUMENT}")


def load_json(data: bytes, what: str) -> Any:
    """Parse a JSON document that came from outside: capped, keys unique. Raises InvalidArgument naming `what`.

    Half a surrogate pair is refused too: a text with one cannot be sent to anybody, not even in an error.
    """
    check_size(len(data), what)
    try:
        document = json.loads(data, object_pairs_hook=_unique)
        if _SURROGATE.search(data):
            json.dumps(document, ensure_ascii=False).encode()
        return document
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what} is not valid JSON: {error}") from error


def _load_object(data: bytes, what: str) -> Mapping[str, Any]:
    document = load_json(data, what)
    if not isinstance(document, dict):
        raise InvalidArgument(f"{what} is not a JSON object")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse keys given twice: readers disagree about which one counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice in one object")
    return found


def _descriptors(document: Mapping[str, Any], key: str) -> tuple[Descriptor, ...]:
    return tuple(map(_descriptor, _list(document, key)))


def _descriptor(value: Any) -> Descriptor:
    if not isinstance(value, dict):
        raise InvalidArgument("a descriptor is missing or not a JSON object")
    size = value.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 63:
        raise InvalidArgument(f"descriptor has no valid size: {_short(size)}")
    platform = value.get("platform")
    return Descriptor(
        media_type=_text(value, "mediaType"),
        digest=check_digest(value.get("digest")),
        size=size,
        annotations=_strings(value, "annotations"),
        platform=_platform(platform) if isinstance(platform, dict) else None,
        urls=_texts(value, "urls"),
    )


def _platform(value: Mapping[str, Any]) -> Platform:
    return Platform(
        os=_text(value, "os"),
        architecture=_text(value, "architecture"),
        variant=_text(value, "variant"),
        os_version=_text(value, "os.version"),
        os_features=_texts(value, "os.features"),
    )


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidArgument(f"{key} is not a string: {_short(value)}")
    return value


def _list(document: Mapping[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MAX_CHILDREN:
        raise InvalidArgument(f"{key} is not a list of at most {MAX_CHILDREN} entries")
    return value


def _texts(document: Mapping[str, Any], key: str) -> tuple[str, ...]:
    return tuple(_all_text(_list(document, key), key))


def _mapping(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidArgument(f"{key} is not a JSON object")
    return value


def _strings(document: Mapping[str, Any], key: str) -> Mapping[str, str]:
    values = _mapping(document, key)
    return dict(zip(values, _all_text(values.values(), key), strict=True))


def _all_text(values: Iterable[Any], key: str) -> list[str]:
    found = list(values)
    if not all(isinstance(value, str) for value in found):
        raise InvalidArgument(f"{key} holds something that is not a string")
    return found


def _short(value: Any) -> str:
    """Return `value` quoted for a message, cut so that a hostile document cannot fill the log."""
    return repr(value)[:100]
