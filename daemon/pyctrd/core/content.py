"""Content: blobs that digests name, and ingests, which are writes that have not finished."""

import enum
from dataclasses import field
from datetime import datetime
from typing import Final

from pyctrd.core.digests import Digest
from pyctrd.core.filters import Adaptor, label_field
from pyctrd.core.labels import Labels
from pyctrd.core.values import dataclass

# A namespace with this label, "true", lets all others have its blobs under either policy.
SHAREABLE_LABEL: Final = "containerd.io/namespace.shareable"


class Sharing(enum.StrEnum):
    """Whether a namespace may have a blob of another one by naming its digest, without bringing its bytes."""

    SHARED = "shared"
    ISOLATED = "isolated"


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A blob as one namespace sees it; `size` in bytes."""

    digest: Digest
    size: int
    created_at: datetime
    updated_at: datetime
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IngestStatus:
    """An ingest: `offset` bytes are there, of `total` (0: not known), to become `expected` ("": not known)."""

    ref: str
    offset: int
    total: int
    expected: str
    started_at: datetime
    updated_at: datetime


def blob_fields(blob: BlobInfo) -> Adaptor:
    """Return `blob` as filters see it; its size is known to them and never there."""

    def adaptor(path: tuple[str, ...]) -> tuple[str, bool]:
        match path:
            case ("digest",):
                return blob.digest, True
            case ("labels", *rest):
                return label_field(blob.labels, tuple(rest))
        return "", False

    return adaptor


def ingest_fields(ingest: IngestStatus) -> Adaptor:
    """Return `ingest` as filters see it."""
    return lambda path: (ingest.ref, True) if path == ("ref",) else ("", False)
