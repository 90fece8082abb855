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
    """Return the compression of a layer to unpack. Raises UnknownError, as containerd does, for what is no layer."""
    for base in (_DOCKER, _DOCKER_FOREIGN):
        if media_type.startswith(base):
            compression = _SUFFIXES.get(media_type.removeprefix(base))
            if compression is not None:
                # Docker's type without a suffix has been used for compressed layers too.
                return Compression.SNIFF if compression is Compression.NONE else compression
    for base in _OCI:
        if media_type.startswith(base):
            compression = _SUFFIXES.get(media_type.removeprefix(base).replace("+", ".", 1))
            if compression is not None:
                return compression
    raise UnknownError(f"failed to get stream processor for {media_type}: no processor for media-type")


def compression_for(media_type: str) -> Compression:
    """Return the compression of a layer to make. Raises Unimplemented for other types than OCI's three."""
    suffix = media_type.removeprefix(LAYER).replace("+", ".", 1)
    if not media_type.startswith(LAYER) or suffix not in _SUFFIXES:
        raise Unimplemented(f"unsupported diff media type: {media_type}")
    return _SUFFIXES[suffix]
