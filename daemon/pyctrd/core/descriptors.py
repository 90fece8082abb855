"""A descriptor points at content."""

from collections.abc import Mapping
from dataclasses import field

from pyctrd.core.values import dataclass


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Media type, digest and size in bytes of a blob. Source: OCI image-spec, descriptor.md."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
