"""Rows of blobs, one per namespace that sees them, and of ingests."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from sqlite3 import Connection
from typing import Any, Final, NamedTuple, TypeAlias

from pyctrd.core.content import SHAREABLE_LABEL, BlobInfo, Sharing
from pyctrd.core.digests import Digest
from pyctrd.core.labels import Labels
from pyctrd.core.times import from_microseconds, to_microseconds
from pyctrd.metadata.database import Database, Transaction
from pyctrd.metadata.rows import decode_labels, encode_labels, ensure_namespace

Rows: TypeAlias = Connection | Transaction

BATCH: Final = 100
INGEST_LIFETIME: Final = timedelta(hours=24)  # of an ingest without a lease

_BLOB: Final = "SELECT digest, size, created_at, updated_at, labels FROM blobs WHERE ns = ?"
_INGEST: Final = "SELECT ns, ref, total, expected, started_at FROM ingests"


class IngestRow(NamedTuple):
    """An ingest as the database knows it; its bytes know how far it got."""

    ns: str
    ref: str
    total: int
    expected: str
    started_at: int


def blob(rows: Rows, ns: str, digest: str) -> BlobInfo | None:
    """Return a blob that `ns` sees."""
    row = rows.execute(f"{_BLOB} AND digest = ?", (ns, digest)).fetchone()
    return _blob(row) if row else None


def blob_batches(database: Database, ns: str) -> Iterator[list[BlobInfo]]:
    """Yield the blobs that `ns` sees, by digest; each batch is read when it is asked for."""
    last = ""
    while True:
        rows = database.read().execute(f"{_BLOB} AND digest > ? ORDER BY digest LIMIT ?", (ns, last, BATCH)).fetchall()
        if not rows:
            return
        yield [_blob(row) for row in rows]
        last = rows[-1][0]


def shared_size(rows: Rows, digest: str, policy: Sharing) -> int | None:
    """Return the size of a blob that any namespace may have for its name, None if there is none."""
    if policy is Sharing.SHARED:
        row = rows.execute("SELECT size FROM blobs WHERE digest = ? LIMIT 1", (digest,)).fetchone()
        return row[0] if row else None
    owners = rows.execute(
        "SELECT blobs.size, namespaces.labels FROM blobs JOIN namespaces ON namespaces.name = blobs.ns"
        " WHERE blobs.digest = ?",
        (digest,),
    )
    return next((size for size, labels in owners if decode_labels(labels).get(SHAREABLE_LABEL) == "true"), None)


def is_used(rows: Rows, digest: str) -> bool:
    """Return whether any namespace sees the blob, or an ingest counts on its being there."""
    found = rows.execute(
        "SELECT 1 FROM blobs WHERE digest = ? UNION ALL SELECT 1 FROM ingests WHERE expected = ?", (digest, digest)
    )
    return found.fetchone() is not None


def add_blob(transaction: Transaction, ns: str, digest: str, size: int, labels: Labels) -> None:
    """Let `ns` see a blob from now on."""
    ensure_namespace(transaction, ns)
    now = to_microseconds(transaction.now)
    transaction.execute(
        "INSERT INTO blobs (ns, digest, size, labels, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?)",
        (ns, digest, size, encode_labels(labels), now, now),
    )


def delete_blob(transaction: Transaction, ns: str, digest: str) -> bool:
    """Let `ns` see a blob no longer; return whether it did."""
    return bool(transaction.execute("DELETE FROM blobs WHERE ns = ? AND digest = ?", (ns, digest)).rowcount)


def delete_blob_everywhere(transaction: Transaction, digest: str) -> None:
    """Let no namespace see a blob any more."""
    transaction.execute("DELETE FROM blobs WHERE digest = ?", (digest,))


def used_digests(rows: Rows) -> set[str]:
    """Return all digests that `is_used` is true of."""
    return {
        digest
        for (digest,) in rows.execute(
            "SELECT digest FROM blobs UNION SELECT expected FROM ingests WHERE expected != ''"
        )
    }


def relabel_blob(transaction: Transaction, ns: str, info: BlobInfo) -> None:
    """Store the labels and the update time of `info`."""
    transaction.execute(
        "UPDATE blobs SET labels = ?, updated_at = ? WHERE ns = ? AND digest = ?",
        (encode_labels(info.labels), to_microseconds(info.updated_at), ns, info.digest),
    )


def namespaces(rows: Rows) -> list[str]:
    """Return all namespaces, or the default one if there is none."""
    return [name for (name,) in rows.execute("SELECT name FROM namespaces")] or ["default"]


def ingest(rows: Rows, ns: str, ref: str) -> IngestRow | None:
    """Return an ingest."""
    row = rows.execute(f"{_INGEST} WHERE ns = ? AND ref = ?", (ns, ref)).fetchone()
    return IngestRow(*row) if row else None


def ingests(rows: Rows, ns: str | None = None) -> list[IngestRow]:
    """Return the ingests of `ns` by ref, or all there are."""
    where: tuple[str, Sequence[str]] = ("", ()) if ns is None else ("WHERE ns = ?", (ns,))
    return [IngestRow(*row) for row in rows.execute(f"{_INGEST} {where[0]} ORDER BY ns, ref", where[1])]


def put_ingest(transaction: Transaction, ingest: IngestRow, *, leased: bool) -> None:
    """Store an ingest; one without a lease lives for a day."""
    ensure_namespace(transaction, ingest.ns)
    expires_at = None if leased else to_microseconds(transaction.now + INGEST_LIFETIME)
    transaction.execute(
        "REPLACE INTO ingests (ns, ref, total, expected, started_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)",
        (*ingest, expires_at),
    )


def delete_ingest(transaction: Transaction, ns: str, ref: str) -> bool:
    """Forget an ingest, in its leases too; return whether it was there."""
    transaction.execute("DELETE FROM lease_resources WHERE ns = ? AND type = 'ingests' AND id = ?", (ns, ref))
    return bool(transaction.execute("DELETE FROM ingests WHERE ns = ? AND ref = ?", (ns, ref)).rowcount)


def _blob(row: tuple[Any, ...]) -> BlobInfo:
    digest, size, created_at, updated_at, labels = row
    return BlobInfo(
        Digest(digest), size, from_microseconds(created_at), from_microseconds(updated_at), decode_labels(labels)
    )
