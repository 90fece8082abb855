"""Digests: `algorithm:hex`, the names of content.

Source: OCI image-spec, descriptor.md, "Digests".
"""

import hashlib
import re
from typing import Final, NewType

from pyctr_wire.errors import InvalidArgument

Digest = NewType("Digest", str)

# Their hexadecimal lengths. We write sha256; the others are read and verified.
HEX_LENGTHS: Final = {"sha256": 64, "sha384": 96, "sha512": 128}

_HEX: Final = re.compile(r"[0-9a-f]+")


def validate_digest(text: str) -> Digest:
    """Return `text` as a Digest, or raise InvalidArgument if it is not one of an algorithm that we know."""
    algorithm, _, digits = text.partition(":")
    if len(digits) != HEX_LENGTHS.get(algorithm) or not _HEX.fullmatch(digits):
        raise InvalidArgument(f'"{text}" failed validation')
    return Digest(text)


def digest_of(data: bytes) -> Digest:
    """Return the sha256 digest of `data`."""
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


def chain_ids(diff_ids: list[str]) -> list[str]:
    """Return the chain id of each layer: the digest that names it together with all layers below it.

    Source: OCI image-spec, config.md, "Layer ChainID".
    """
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(digest_of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain
