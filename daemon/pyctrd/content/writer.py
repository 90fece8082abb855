"""A writer turns an ingest into a blob.

Opened for a blob that another namespace has, it is complete from the start and holds no file: its
commit makes that blob visible here too. Written to nevertheless, it becomes an ordinary one.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final, Self

from pyctr_wire.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from pyctrd.content.blobs import Blobs
from pyctrd.content.ingests import IngestFile, Ingests
from pyctrd.content.remote_blobs import RemoteBlobs
from pyctrd.core.digests import Digest, validate_digest
from pyctrd.core.events import ContentCreate
from pyctrd.core.labels import Labels, stored, validate_labels
from pyctrd.core.leases import Resource
from pyctrd.core.times import from_microseconds
from pyctrd.metadata import content as rows
from pyctrd.metadata.database import Database
from pyctrd.metadata.durable import naming_full_disk
from pyctrd.metadata.leases import attach

_CHUNK: Final = 1 << 20


class Writer:
    """The one writer of a ref, locked until `close`; thread-safe, so that `close` may come at any time."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs | RemoteBlobs,
        ingests: Ingests,
        ingest: rows.IngestRow,
        shared_size: int | None,
        lease: str,
        unlock: Callable[[], None],
    ) -> None:
        """Go on with `ingest`, or stand for the blob of `shared_size` bytes that is already there."""
        self._database = database
        self._blobs = blobs
        self._ingests = ingests
        self._ingest = ingest
        self._lease = lease
        self._unlock = unlock
        self._lock = threading.Lock()
        self._closed = False
        self._shared_size = shared_size or 0
        self.total = ingest.total
        """Bytes that there will be, 0 if that is not known; the caller may set it."""
        self.expected = ingest.expected
        self._file = None if shared_size is not None else self._open_file()

    @property
    def started_at(self) -> datetime:
        """When the ingest was begun."""
        return from_microseconds(self._ingest.started_at)

    @property
    def updated_at(self) -> datetime:
        """When it was last written to."""
        # A file system's clock is behind ours by up to one tick of the kernel's.
        return max(self._file.updated_at(), self.started_at) if self._file else self.started_at

    @property
    def offset(self) -> int:
        """Bytes that are there."""
        return self._file.offset if self._file else self._shared_size

    def digest(self) -> Digest:
        """Return the digest of the bytes that are there."""
        return self._file.digest() if self._file else Digest(self.expected)

    def expect(self, digest: str) -> None:
        """Change the expected digest. Raises AlreadyExists if the namespace has it.

        Then the ingest is gone, and the lease has the blob.
        """
        validate_digest(digest)
        with self._using():
            self.expected = digest
            if rows.blob(self._database.read(), self._ingest.ns, digest) is None or not self._yield_to(digest):
                return
        raise AlreadyExists(f"blob with expected digest {digest} exists")

    def truncate(self, size: int) -> None:
        """Start over: `size` must be 0. Raises InvalidArgument."""
        if size:
            raise InvalidArgument(f"cannot truncate an ingest to {size} bytes")
        with self._using():
            self._file = self._file or self._open_file()
            self._file.truncate()

    def write(self, data: bytes) -> None:
        """Append. Raises ResourceExhausted if the disk is full: the bytes that fitted stay."""
        with self._using():
            if self._file is None:
                self._file = self._copy_of_shared()
            self._file.append(data)

    def commit(self, total: int = 0, expected: str = "", labels: Labels | None = None) -> Digest:
        """Make the ingest a blob of the namespace, with `labels`, and close the writer, also on failure.

        Raises FailedPrecondition if it is not `total` bytes long or its digest is not `expected`
        (both fall back to what is known from before): the ingest stays for the next writer. Raises
        AlreadyExists if the namespace has the blob: then the ingest is gone, and the lease has the blob.
        """
        labels = stored(labels or {})
        validate_labels("info.Labels", labels)
        try:
            with self._using():
                digest = self._verified(total or self.total, expected or self.expected)
                # A crash after the file has its name leaves a blob without a row: the next collection removes it.
                with self._blobs.arriving(digest):
                    self._place(digest)
                    is_new = self._store(digest, labels)
        finally:
            self.close()
        if not is_new:
            raise AlreadyExists(f"content {digest}")
        return digest

    def close(self) -> None:
        """Unlock the ref; an ingest that was not committed stays to be resumed. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._file is not None:
                self._file.close()
        self._unlock()

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _verified(self, total: int, expected: str) -> Digest:
        if total and self.offset != total:
            raise FailedPrecondition(f'"{self._ingest.ref}" failed size validation: {self.offset} != {total}')
        algorithm = validate_digest(expected).partition(":")[0] if expected else ""
        digest = self._file.digest(algorithm) if self._file else Digest(self.expected)
        if expected and digest != expected:
            raise FailedPrecondition(f"unexpected commit digest {digest}, expected {expected}")
        return digest

    def _place(self, digest: Digest) -> None:
        try:
            if self._file is not None:
                self._file.seal()
                self._blobs.place(self._file.path, digest)
        except FileNotFoundError:
            raise NotFound(f'ingest "{self._ingest.ref}"') from None  # aborted meanwhile

    def _store(self, digest: Digest, labels: Labels) -> bool:
        ns, size = self._ingest.ns, self.offset
        with self._database.transaction() as transaction:
            is_new = rows.blob(transaction, ns, digest) is None
            if is_new:
                rows.add_blob(transaction, ns, digest, size, labels)
                transaction.publish(ns, ContentCreate(digest, size))
            rows.delete_ingest(transaction, ns, self._ingest.ref)
            attach(transaction, ns, self._lease, Resource(digest, "content"))
        self._ingests.remove(self._ingests.directory(ns, self._ingest.ref))
        return is_new

    def _yield_to(self, digest: str) -> bool:
        """Give the ingest up for a blob that the lease has then; return False if that has just been collected."""
        with self._database.freeing() as transaction:
            if rows.blob(transaction, self._ingest.ns, digest) is None:
                return False
            rows.delete_ingest(transaction, self._ingest.ns, self._ingest.ref)
            attach(transaction, self._ingest.ns, self._lease, Resource(digest, "content"))
        self._ingests.remove(self._ingests.directory(self._ingest.ns, self._ingest.ref))
        return True

    def _open_file(self) -> IngestFile:
        algorithm = self.expected.partition(":")[0] or "sha256"
        return self._ingests.open(self._ingest.ns, self._ingest.ref, algorithm)

    def _copy_of_shared(self) -> IngestFile:
        file, blob_fd = self._open_file(), self._blobs.open(self.expected)
        try:
            file.truncate()
            while chunk := os.read(blob_fd, _CHUNK):
                file.append(chunk)
        finally:
            os.close(blob_fd)
        return file

    @contextmanager
    def _using(self) -> Iterator[None]:
        """Keep `close` out, and say what a full disk means."""
        with self._lock:
            if self._closed:
                raise FailedPrecondition(f'writer of "{self._ingest.ref}" is closed')
            with naming_full_disk(f'ingest "{self._ingest.ref}"'):
                yield
