"""Media types of layers, and what they are compressed with.

Source: OCI image-spec, layer.md and media-types.md; Docker image manifest version 2, schema 2.
"""

from typing import Final

from pyctr_wire.errors import Unimplemented, UnknownError
from pyctrd.diff.compression import Compression

LAYER: Final = "application/vnd.oci.image.layer.v1.tar"

_SUFFIXES: Final = {"": Compression.NONE, ".gzip": Compression.GZIP, ".zstd": Compression.ZSTD}
_DOCKER: Final = "application/vnd.docker.image.rootfs.diff.tar"
_DOCKER_FOREIGN: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar"
_OCI: Final = (LAYER, "application/vnd.oci.image.layer.nondistributable.v1.tar")


def compression_of(media_type: str) -> Compression:
    """Return the compression of a layer to unpack. Raises UnknownError, as containerd does, for what is no layer.

    Images exist whose types do not tell what their layers are compressed with, or that they are at all. Their first
    bytes do; only OCI's plain type is taken at its word.
    """
    for base in (_DOCKER, _DOCKER_FOREIGN):
        if media_type.startswith(base) and media_type.removeprefix(base) in _SUFFIXES:
            return Compression.SNIFF
    for base in _OCI:
        suffix = media_type.removeprefix(base).replace("+", ".", 1)
        if media_type.startswith(base) and suffix in _SUFFIXES:
            return Compression.SNIFF if suffix else Compression.NONE
    raise UnknownError(f"failed to get stream processor for {media_type}: no processor for media-type")


def compression_for(media_type: str) -> Compression:
    """Return the compression of a layer to make. Raises Unimplemented for other types than OCI's three."""
    suffix = media_type.removeprefix(LAYER).replace("+", ".", 1)
    if not media_type.startswith(LAYER) or suffix not in _SUFFIXES:
        raise Unimplemented(f"unsupported diff media type: {media_type}")
    return _SUFFIXES[suffix]
