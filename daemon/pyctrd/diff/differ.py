"""Apply and Diff: what the API calls them, done by a worker process per call."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from pyctrd.core.descriptors import Descriptor
from pyctrd.core.labels import Labels
from pyctrd.core.mounts import Mount
from pyctrd.diff.limits import Limits
from pyctrd.offload import Offload


class BlobWriter(Protocol):
    """An open ingest."""

    offset: int

    def truncate(self, size: int) -> None: ...
    def write(self, data: bytes) -> object: ...
    def commit(self, total: int, expected: str, labels: Labels) -> object: ...
    def close(self) -> None: ...


class Content(Protocol):
    """What is needed of the content store."""

    def open_blob(self, ns: str, digest: str) -> tuple[int, int]: ...
    def open_writer(self, ns: str, ref: str, total: int, expected: str, lease: str = "") -> BlobWriter: ...


class Differ:
    """Unpacks layers and makes them. Safe to cancel: the worker is killed, what it wrote stays."""

    def __init__(self, content: Content, offload: Offload, limits: Limits, *, workers: int = 4) -> None:
        """Read and write blobs through `content`; run at most `workers` processes at once."""

    async def apply(self, ns: str, layer: Descriptor, mounts: Sequence[Mount], *, sync_fs: bool = False) -> Descriptor:
        """Unpack the blob `layer` into `mounts` and return the descriptor of the uncompressed archive.

        Its digest is the layer's diff id: callers compare it with what the image says. Raises NotFound
        if the blob is not in `ns`, InvalidArgument if it is no archive, ResourceExhausted for
        one that is too large or a full disk, UnknownError for a media type that nobody can read.
        """
        raise AssertionError

    async def diff(
        self,
        ns: str,
        left: Sequence[Mount],
        right: Sequence[Mount],
        *,
        media_type: str = "",
        ref: str = "",
        labels: Mapping[str, str] | None = None,
        source_date_epoch: datetime | None = None,
        lease: str = "",
    ) -> Descriptor:
        """Store a layer that turns what `left` shows into what `right` shows, and return its descriptor."""
        raise AssertionError
