"""Rows of snapshots: keys and names, parents, kinds, labels. The files are the snapshotters'."""

from collections.abc import Iterator
from datetime import datetime
from sqlite3 import Connection
from typing import Any, Final, NamedTuple, TypeAlias

from pyctr_wire.errors import NotFound
from pyctrd.core.labels import Labels
from pyctrd.core.snapshots import Kind, SnapshotInfo, Usage
from pyctrd.core.times import from_microseconds, to_microseconds
from pyctrd.metadata.database import Database, Transaction
from pyctrd.metadata.rows import decode_labels, encode_labels, ensure_namespace

Rows: TypeAlias = Connection | Transaction

BATCH: Final = 100

_SELECT: Final = """
    SELECT s.id, s.parent_id, s.size, s.inodes,
           s.name, coalesce(p.name, ''), s.kind, s.created_at, s.updated_at, s.labels
    FROM snapshots AS s LEFT JOIN snapshots AS p ON p.id = s.parent_id
    WHERE s.ns = ? AND s.snapshotter = ?
"""
_ANCESTORS: Final = """
    WITH RECURSIVE chain (id, parent_id, depth) AS (
        SELECT id, parent_id, 0 FROM snapshots WHERE id = ?
        UNION ALL
        SELECT s.id, s.parent_id, depth + 1 FROM snapshots AS s JOIN chain ON s.id = chain.parent_id
    )
    SELECT id FROM chain ORDER BY depth
"""


class SnapshotRow(NamedTuple):
    """A snapshot; `id` names its directory."""

    id: int
    parent_id: int | None
    usage: Usage
    info: SnapshotInfo


def find(rows: Rows, ns: str, snapshotter: str, name: str) -> SnapshotRow | None:
    """Return the snapshot of that key or name."""
    row = rows.execute(f"{_SELECT} AND s.name = ?", (ns, snapshotter, name)).fetchone()
    return _row(row) if row else None


def identify(rows: Rows, ns: str, snapshotter: str, name: str) -> tuple[int, Kind] | None:
    """Return id and kind of the snapshot of that key or name: a fraction of what `find` costs."""
    query = "SELECT id, kind FROM snapshots WHERE ns = ? AND snapshotter = ? AND name = ?"
    row = rows.execute(query, (ns, snapshotter, name)).fetchone()
    return (row[0], Kind(row[1])) if row else None


def find_id(rows: Rows, ns: str, snapshotter: str, snapshot_id: int) -> SnapshotRow | None:
    """Return the snapshot of that id."""
    row = rows.execute(f"{_SELECT} AND s.id = ?", (ns, snapshotter, snapshot_id)).fetchone()
    return _row(row) if row else None


def get(rows: Rows, ns: str, snapshotter: str, name: str) -> SnapshotRow:
    """Return the snapshot of that key or name. Raises NotFound."""
    row = find(rows, ns, snapshotter, name)
    if row is None:
        raise NotFound(f"snapshot {name} does not exist")
    return row


def batches(database: Database, ns: str, snapshotter: str) -> Iterator[list[SnapshotInfo]]:
    """Yield the snapshots of a snapshotter by name; each batch is read when it is asked for."""
    last = ""
    while True:
        query = f"{_SELECT} AND s.name > ? ORDER BY s.name LIMIT ?"
        found = [_row(row) for row in database.read().execute(query, (ns, snapshotter, last, BATCH))]
        if not found:
            return
        yield [row.info for row in found]
        last = found[-1].info.name


def chain(rows: Rows, snapshot_id: int | None) -> list[int]:
    """Return the id of a snapshot and those of all below it, in this order; [] for None."""
    return [row[0] for row in rows.execute(_ANCESTORS, (snapshot_id,))]


def has_children(transaction: Transaction, snapshot_id: int) -> bool:
    """Return whether a snapshot is the parent of another."""
    return (
        transaction.execute("SELECT 1 FROM snapshots WHERE parent_id = ? LIMIT 1", (snapshot_id,)).fetchone()
        is not None
    )


def insert(transaction: Transaction, ns: str, snapshotter: str, row: SnapshotRow) -> None:
    """Store a new snapshot."""
    ensure_namespace(transaction, ns)
    info = row.info
    transaction.execute(
        "INSERT INTO snapshots"
        " (id, ns, snapshotter, name, parent_id, kind, labels, created_at, updated_at, size, inodes)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (row.id, ns, snapshotter, info.name, row.parent_id, info.kind, encode_labels(info.labels),
         to_microseconds(info.created_at), to_microseconds(info.updated_at), row.usage.size, row.usage.inodes),
    )  # fmt: skip


def commit(
    transaction: Transaction, snapshot_id: int, name: str, parent_id: int | None, labels: Labels, usage: Usage
) -> None:
    """Turn an active snapshot into a committed one of another name, its usage frozen."""
    now = to_microseconds(transaction.now)
    transaction.execute(
        "UPDATE snapshots SET name = ?, parent_id = ?, kind = ?, labels = ?, created_at = ?, updated_at = ?,"
        " size = ?, inodes = ? WHERE id = ?",
        (name, parent_id, Kind.COMMITTED, encode_labels(labels), now, now, usage.size, usage.inodes, snapshot_id),
    )


def relabel(transaction: Transaction, snapshot_id: int, labels: Labels, updated_at: datetime) -> None:
    """Replace a snapshot's labels."""
    transaction.execute(
        "UPDATE snapshots SET labels = ?, updated_at = ? WHERE id = ?",
        (encode_labels(labels), to_microseconds(updated_at), snapshot_id),
    )


def delete(transaction: Transaction, snapshot_id: int) -> None:
    """Forget a snapshot, which must have no children."""
    transaction.execute("DELETE FROM snapshots WHERE id = ?", (snapshot_id,))


def ids(rows: Rows, snapshotter: str) -> set[int]:
    """Return the ids of all snapshots of a snapshotter, whatever their namespace."""
    return {row[0] for row in rows.execute("SELECT id FROM snapshots WHERE snapshotter = ?", (snapshotter,))}


def all_names(rows: Rows, snapshotter: str) -> set[tuple[str, str]]:
    """Return namespace and name of all snapshots of a snapshotter."""
    return set(rows.execute("SELECT ns, name FROM snapshots WHERE snapshotter = ?", (snapshotter,)))


def uncommitted(rows: Rows, snapshotter: str) -> list[tuple[int, Kind, str]]:
    """Return id, kind and namespace of all active snapshots and views of a snapshotter."""
    query = "SELECT id, kind, ns FROM snapshots WHERE snapshotter = ? AND kind != ?"
    found = rows.execute(query, (snapshotter, Kind.COMMITTED))
    return [(snapshot_id, Kind(kind), ns) for snapshot_id, kind, ns in found]


def highest_id(rows: Connection) -> int:
    """Return the highest id in use, 0 if there is none."""
    (highest,) = rows.execute("SELECT coalesce(max(id), 0) FROM snapshots").fetchone()
    return int(highest)


def _row(row: tuple[Any, ...]) -> SnapshotRow:
    snapshot_id, parent_id, size, inodes, name, parent, kind, created_at, updated_at, labels = row
    info = SnapshotInfo(
        name, parent, Kind(kind), from_microseconds(created_at), from_microseconds(updated_at), decode_labels(labels)
    )
    return SnapshotRow(snapshot_id, parent_id, Usage(size, inodes), info)
