"""Apply and Diff: what the API calls them, done by a worker process per call."""

import os
import stat
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from typing import Final

from pyctr_wire.errors import DataLoss, Internal, InvalidArgument
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.labels import Labels
from pyctrd.core.mounts import Mount
from pyctrd.diff import media_types
from pyctrd.diff.compression import Compression
from pyctrd.diff.ingest import Content, Ingest
from pyctrd.diff.limits import Limits
from pyctrd.diff.messages import ApplyRequest, CompareRequest, PlainMount
from pyctrd.diff.mounts import overlay_of
from pyctrd.diff.workers import Workers
from pyctrd.offload import Offload

# Seconds for which a worker waits for another layer.
_KEEP_WARM: Final = 30.0
_UNCOMPRESSED: Final = "containerd.io/uncompressed"


class Differ:
    """Unpacks layers, and makes them.

    When a call is cancelled, its worker is killed; what it wrote stays for whoever owns the mounts.
    """

    def __init__(self, content: Content, offload: Offload, limits: Limits | None = None, *, workers: int = 4) -> None:
        """Read and write blobs in `content`; more than `workers` calls at once take turns."""
        self._content = content
        self._offload = offload
        self._limits = limits or Limits()
        self._workers = Workers(offload, workers, _KEEP_WARM)

    async def warm(self) -> None:
        """Get ready to unpack soon: a worker that has been started already answers in a few milliseconds."""
        await self._workers.warm()

    def close(self) -> None:
        """End what waits for more work; blocks a little."""
        self._workers.close()

    async def apply(self, ns: str, layer: Descriptor, mounts: Sequence[Mount], *, sync_fs: bool = False) -> Descriptor:
        """Unpack the blob `layer` into `mounts` and return the descriptor of the uncompressed archive.

        Its digest is the layer's diff id: callers compare it with what the image says. Raises NotFound
        if the blob is not in `ns`, InvalidArgument for what the archive says, DataLoss if it says so because the
        blob has been damaged on disk (it is dropped then, to be fetched again), ResourceExhausted for one that is
        too large or a full disk, UnknownError for a media type that nobody can read and other errors.
        """
        compression = media_types.compression_of(layer.media_type)
        blob = await self._offload.run(_Blob, self._content, ns, layer.digest)
        with closing(blob):  # also while the traceback of what follows is around
            plain = _plain(mounts)
            request = ApplyRequest(
                plain, compression.value, self._limits.budget(blob.size), self._limits.max_bytes, int(sync_fs)
            )
            marker = _Marker(plain)
            async with self._workers.worker() as worker:
                worker.send(request, blob.fd)
                try:
                    digest, size = await worker.result(f"failed to unpack layer {layer.digest}", marker)
                except InvalidArgument as error:
                    if await self._offload.run(self._content.verify, layer.digest):
                        raise
                    raise DataLoss(f"content {layer.digest} is damaged, pull it again: {error}") from error
        return Descriptor(media_types.LAYER, digest, size)

    async def diff(
        self,
        ns: str,
        left: Sequence[Mount],
        right: Sequence[Mount],
        *,
        media_type: str = "",
        ref: str = "",
        labels: Labels | None = None,
        source_date_epoch: datetime | None = None,
        lease: str = "",
    ) -> Descriptor:
        """Store a layer that turns what `left` shows into what `right` shows, and return its descriptor.

        "" as `media_type` is OCI's gzip; an ingest that `ref` names is started over. No time in the layer is
        later than `source_date_epoch`. Raises Unimplemented for other media types, Unavailable while `ref` is
        locked, ResourceExhausted for a full disk, InvalidArgument for what no layer can hold.
        """
        media_type = media_type or f"{media_types.LAYER}+gzip"
        compression = media_types.compression_for(media_type)
        epoch = -1 if source_date_epoch is None else max(0, int(source_date_epoch.timestamp()))
        request = CompareRequest(_plain(left), _plain(right), compression.value, epoch)
        ingest = Ingest(self._content, ns, ref, lease)
        try:
            async with self._workers.worker() as worker:
                read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
                try:
                    worker.send(request, write_fd)
                finally:
                    os.close(write_fd)
                # The end of the pipe comes with the end of the worker, so this always returns.
                await self._offload.run(ingest.receive, read_fd)
                diff_id, _ = await worker.result("failed to compare mounts")
            blob_labels = dict(labels or {})
            if compression is not Compression.NONE:
                blob_labels[_UNCOMPRESSED] = diff_id
            digest, size = await self._offload.run(ingest.commit, blob_labels)
        finally:
            await self._offload.run(ingest.close)
        return Descriptor(media_type, digest, size)


class _Blob:
    """An open blob; closed with its last reference at the latest: nobody may be waiting for it when it has opened."""

    fd = -1

    def __init__(self, content: Content, ns: str, digest: str) -> None:
        self.fd, self.size = content.open_blob(ns, digest)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class _Marker:
    """Marks directories of an overlay's upper directory as opaque, for a worker that may not."""

    def __init__(self, mounts: list[PlainMount]) -> None:
        """Accept directories of the file system that the upper directory of `mounts` lies on."""
        overlay = overlay_of(mounts)
        self._device = os.stat(overlay.upper).st_dev if overlay and overlay.upper else None
        self._attribute = "user.overlay.opaque" if overlay and overlay.userxattr else "trusted.overlay.opaque"

    def __call__(self, fds: Sequence[int]) -> None:
        """Mark them, and close them. Raises Internal for what cannot be a layer's, OSError."""
        try:
            for fd in fds:
                status = os.fstat(fd)
                if status.st_dev != self._device or not stat.S_ISDIR(status.st_mode):
                    raise Internal("a worker asked for a mark on what is not its layer's")
                os.setxattr(fd, self._attribute, b"y")
        finally:
            for fd in fds:
                os.close(fd)


def _plain(mounts: Sequence[Mount]) -> list[PlainMount]:
    return [(mount.type, mount.source, mount.target, tuple(mount.options)) for mount in mounts]
