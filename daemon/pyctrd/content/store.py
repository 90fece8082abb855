"""The content store: blobs and ingests by namespace, their files below one directory.

    <root>/blobs/<algorithm>/<hex>      see blobs.py; or another program keeps them: remote_blobs.py
    <root>/ingest/<hash>/data           see ingests.py

A blob is stored once. Any namespace that proves to know its digest, by expecting it, may share it.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from pyctr_wire.errors import AlreadyExists, DataLoss, DeadlineExceeded, InvalidArgument, NotFound, Unavailable
from pyctrd.content.blobs import Blobs
from pyctrd.content.ingests import Ingests, hash_file
from pyctrd.content.remote_blobs import RemoteBlobs, Service
from pyctrd.content.writer import Writer
from pyctrd.core.content import BlobInfo, IngestStatus, Sharing, blob_fields, ingest_fields
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.digests import Digest, validate_digest
from pyctrd.core.events import ContentDelete
from pyctrd.core.filters import compile_filters
from pyctrd.core.labels import Labels, changed, validate_labels
from pyctrd.core.leases import Resource
from pyctrd.core.reachability import keep_otherwise
from pyctrd.core.times import from_microseconds, to_microseconds
from pyctrd.log import Logger
from pyctrd.metadata import content as rows
from pyctrd.metadata.database import Database, utc_now
from pyctrd.metadata.leases import attach, detach
from pyctrd.metadata.rebuilt import rebuilt_lease

_log = Logger(__name__)


class ContentStore:
    """Content of all namespaces; thread-safe. Owns everything below its root."""

    def __init__(
        self, root: Path, database: Database, sharing: Sharing = Sharing.SHARED, remote: Service | None = None
    ) -> None:
        """Use `root` (made 0700 if it is not there) and the rows of `database`; `remote`, if given, keeps the blobs."""
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        root.chmod(0o700)
        self._database = database
        self._blobs: Blobs | RemoteBlobs = Blobs(root) if remote is None else RemoteBlobs(root, remote)
        self._ingests = Ingests(root)
        self._sharing = sharing
        self._locked: dict[tuple[str, str], datetime] = {}
        self._lock = threading.Lock()

    def info(self, ns: str, digest: str) -> BlobInfo:
        """Return a blob that `ns` sees. Raises NotFound, InvalidArgument."""
        blob = rows.blob(self._database.read(), ns, validate_digest(digest))
        if blob is None:
            raise NotFound(f"content {digest}")
        return blob

    def list(self, ns: str, filters: Sequence[str] = ()) -> Iterator[list[BlobInfo]]:
        """Return batches of the blobs that pass, by digest. Raises InvalidArgument for a bad filter at once."""
        passes = compile_filters(filters)
        batches = rows.blob_batches(self._database, ns)
        found = ([blob for blob in batch if passes(blob_fields(blob))] for batch in batches)
        return (batch for batch in found if batch)

    def update(self, ns: str, info: BlobInfo, mask: Iterable[str] = ()) -> BlobInfo:
        """Change a blob's labels. Raises NotFound, InvalidArgument."""
        validate_digest(info.digest)
        with self._database.transaction() as transaction:
            old = rows.blob(transaction, ns, info.digest)
            if old is None:
                raise NotFound(f"content {info.digest}")
            labels = changed(old.labels, info.labels, mask, f'content info "{info.digest}"')
            validate_labels("info.Labels", labels)
            result = replace(old, labels=labels, updated_at=transaction.now)
            rows.relabel_blob(transaction, ns, result)
            if keep_otherwise(old.labels, labels):
                transaction.leaves_garbage()
        return result

    def delete(self, ns: str, digest: str, lease: str = "") -> None:
        """Take a blob out of `ns`; its file goes with the next collection. Raises NotFound, InvalidArgument."""
        validate_digest(digest)
        with self._database.freeing() as transaction:
            if not rows.delete_blob(transaction, ns, digest):
                raise NotFound(f"content {digest}")
            detach(transaction, ns, lease, Resource(digest, "content"))
            transaction.leaves_garbage()
            transaction.publish(ns, ContentDelete(digest))

    def open_blob(self, ns: str, digest: str) -> tuple[int, int]:
        """Return a descriptor, the caller's to close, and the size in bytes of a blob that `ns` sees.

        Raises NotFound, InvalidArgument, and DataLoss if the file is not as long as it was.
        """
        info = self.info(ns, digest)
        self._check_size(info)
        return self._blobs.open(digest), info.size

    def read_path(self, ns: str, digest: str) -> Path:
        """Return the file of a blob that `ns` sees, if it is we who keep it. Raises as `open_blob` does."""
        assert isinstance(self._blobs, Blobs)
        self._check_size(self.info(ns, digest))
        return self._blobs.path(digest)

    def status(self, ns: str, ref: str) -> IngestStatus:
        """Return how far an ingest got. Raises NotFound."""
        ingest = rows.ingest(self._database.read(), ns, ref)
        if ingest is None:
            raise NotFound(f'ingest "{ref}"')
        return self._status(ingest)

    def list_statuses(self, ns: str, filters: Sequence[str] = ()) -> Sequence[IngestStatus]:
        """Return the ingests that pass, by ref, those without a writer too. Raises InvalidArgument."""
        passes = compile_filters(filters)
        statuses = [self._status(ingest) for ingest in rows.ingests(self._database.read(), ns)]
        return [status for status in statuses if passes(ingest_fields(status))]

    def abort(self, ns: str, ref: str) -> None:
        """Delete an ingest; an open writer keeps its ref locked. Raises NotFound."""
        with self._database.freeing() as transaction:
            if not rows.delete_ingest(transaction, ns, ref):
                raise NotFound(f'ingest "{ref}"')
        self._ingests.remove(self._ingests.directory(ns, ref))

    def open_writer(self, ns: str, ref: str, total: int = 0, expected: str = "", lease: str = "") -> Writer:
        """Lock `ref` and return its writer, which goes on where an earlier one stopped.

        Raises AlreadyExists if `ns` has the `expected` blob (the lease then has it too), Unavailable
        while another writer has the ref, NotFound for an unknown lease, InvalidArgument.
        """
        if not ref:
            raise InvalidArgument("a writer needs a reference")
        if expected and self._is_whole(ns, digest := validate_digest(expected)):
            with self._database.transaction() as transaction:
                attach(transaction, ns, lease, Resource(expected, "content"))
            if self._is_whole(ns, digest):  # still: it may have been collected before the lease had it
                raise AlreadyExists(f"content {expected}")
        self._lock_ref(ns, ref)
        try:
            ingest, shared_size, restarts = self._begin(ns, ref, total, expected, lease)
            writer = Writer(
                self._database,
                self._blobs,
                self._ingests,
                ingest,
                shared_size,
                lease,
                lambda: self._unlock_ref(ns, ref),
            )
        except BaseException:
            self._unlock_ref(ns, ref)
            raise
        if restarts:
            writer.truncate(0)
        return writer

    def write_blob(
        self,
        ns: str,
        ref: str,
        data: bytes | Iterable[bytes],
        expected: Descriptor | None = None,
        labels: Labels | None = None,
        lease: str = "",
    ) -> Digest:
        """Store a blob as a whole and return its digest; one that is there already is a success.

        Raises FailedPrecondition if it is not what `expected` says, Unavailable while `ref` is locked.
        """
        total, digest = (expected.size, expected.digest) if expected else (0, "")
        try:
            with self.open_writer(ns, ref, total, digest, lease) as writer:
                if not (digest and writer.offset == total and writer.digest() == digest):
                    writer.truncate(0)
                    for chunk in (data,) if isinstance(data, bytes) else data:
                        writer.write(chunk)
                digest = digest or writer.digest()
                return writer.commit(total, digest, labels)
        except AlreadyExists:
            return Digest(digest)

    def verify(self, digest: str) -> bool:
        """Read the whole blob and return whether it is what its name says.

        If not, the file and every namespace's row for it are dropped, so that it can be fetched again.
        """
        algorithm = validate_digest(digest).partition(":")[0]
        try:
            fd = self._blobs.open(digest)
        except NotFound:
            is_whole = False
        else:
            with open(fd, "rb", buffering=0) as file:
                is_whole = hash_file(file.fileno(), algorithm).hexdigest() == digest.partition(":")[2]
        if not is_whole:
            self._drop(digest)
        return is_whole

    def locked_refs(self) -> set[tuple[str, str]]:
        """Return namespace and ref of every open writer: a collection leaves these alone."""
        with self._lock:
            return set(self._locked)

    def adopt(self) -> None:
        """Make the rows say what the files say, after the database was lost.

        Rows without a whole file go. Nobody knows any more who saw a file without a row: every
        namespace gets it, under a lease of 24 hours, or none where they are isolated from each other.
        """
        digests = set(self._blobs)
        with self._database.freeing() as transaction:
            known = rows.used_digests(transaction)
            for digest in known - digests:
                rows.delete_blob_everywhere(transaction, digest)
            for ns in rows.namespaces(transaction) if self._sharing is Sharing.SHARED else ():
                for digest in digests - known:
                    lease = rebuilt_lease(transaction, ns)
                    rows.add_blob(transaction, ns, digest, self._blobs.size(digest) or 0, {})
                    attach(transaction, ns, lease, Resource(digest, "content"))
        if digests != known:
            _log.warning("content adopted", known=len(known), found=len(digests))

    def sweep(self) -> tuple[Sequence[Digest], int]:
        """Delete the files and ingests that no row names; return the digests and the bytes freed."""
        # Listed first, then compared with rows: an ingest's row is older than its directory.
        directories = list(self._ingests)
        try:
            digests = list(self._blobs)
        except (Unavailable, DeadlineExceeded) as error:
            _log.warning("content not collected", error=str(error))  # it stays until whoever keeps it is back
            digests = []
        reader = self._database.read()
        used = {self._ingests.directory(ingest.ns, ingest.ref) for ingest in rows.ingests(reader)}
        with self._lock:  # so that no writer opens an ingest that was aborted, and is being removed, again
            used |= {self._ingests.directory(ns, ref) for ns, ref in self._locked}
            for directory in directories:
                if directory not in used:
                    self._ingests.remove(directory)
        known = rows.used_digests(reader)
        removed: dict[Digest, int] = {}
        for digest in digests:
            if digest in known:
                continue
            try:
                size = self._blobs.remove_unless(digest, self._is_used)
            except (Unavailable, DeadlineExceeded):
                break
            if size is not None:
                removed[digest] = size
        return tuple(removed), sum(removed.values())

    def _is_used(self, digest: str) -> bool:
        return rows.is_used(self._database.read(), digest)

    def _begin(
        self, ns: str, ref: str, total: int, expected: str, lease: str
    ) -> tuple[rows.IngestRow, int | None, bool]:
        """Store the ingest's row; return it, the size of a shared blob, and whether older bytes are void."""
        with self._database.transaction() as transaction:
            old = rows.ingest(transaction, ns, ref)
            restarts = old is not None and bool(old.total and total and old.total != total)
            started = old.started_at if old and not restarts else to_microseconds(transaction.now)
            known_total, known_expected = (old.total, old.expected) if old and not restarts else (0, "")
            ingest = rows.IngestRow(ns, ref, total or known_total, expected or known_expected, started)
            # From here on the row keeps a shared blob's file from collection, whoever else drops it.
            shared_size = rows.shared_size(transaction, expected, self._sharing) if expected else None
            rows.put_ingest(transaction, ingest, leased=bool(lease))
            attach(transaction, ns, lease, Resource(ref, "ingests"))
        if shared_size is None or total not in (0, shared_size) or self._blobs.size(expected) != shared_size:
            return ingest, None, restarts
        return ingest, shared_size, False

    def _status(self, ingest: rows.IngestRow) -> IngestStatus:
        started_at = from_microseconds(ingest.started_at)
        offset, updated_at = self._ingests.progress(ingest.ns, ingest.ref)
        updated_at = max(updated_at or started_at, started_at)  # as the writer's
        return IngestStatus(ingest.ref, offset, ingest.total, ingest.expected, started_at, updated_at)

    def _is_whole(self, ns: str, digest: Digest) -> bool:
        """Return whether `ns` sees the blob; a row whose file is gone or cut is dropped, to be fetched again."""
        blob = rows.blob(self._database.read(), ns, digest)
        if blob is None:
            return False
        if self._blobs.size(digest) == blob.size:
            return True
        self._drop(digest)
        return False

    def _check_size(self, info: BlobInfo) -> None:
        size = self._blobs.size(info.digest)
        if size != info.size:
            raise DataLoss(f"content {info.digest}: {size or 0} of {info.size} bytes are on disk; pull it again")

    def _drop(self, digest: str) -> None:
        with self._database.freeing() as transaction:
            rows.delete_blob_everywhere(transaction, digest)
        self._blobs.remove_unless(digest, lambda _: False)

    def _lock_ref(self, ns: str, ref: str) -> None:
        now = utc_now()
        with self._lock:
            since = self._locked.setdefault((ns, ref), now)
        if since is not now:
            age = (now - since).total_seconds()
            raise Unavailable(f"ref {ns}/{ref} locked for {age:.3f}s (since {since.isoformat()})")

    def _unlock_ref(self, ns: str, ref: str) -> None:
        with self._lock:
            del self._locked[ns, ref]
