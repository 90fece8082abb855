"""Leases, and what they hold."""

import base64
import secrets
from collections.abc import Sequence
from datetime import datetime

from pyctr_wire.errors import AlreadyExists, NotFound
from pyctrd.core.filters import compile_filters
from pyctrd.core.labels import stored, validate_labels
from pyctrd.core.leases import CALL_LABEL, Lease, Resource, fields, validate_resource
from pyctrd.core.times import from_microseconds, to_microseconds
from pyctrd.metadata.database import Database, Transaction
from pyctrd.metadata.rows import decode_labels, encode_labels, ensure_namespace


def attach(transaction: Transaction, ns: str, lease: str, resource: Resource) -> None:
    """Let `lease` hold `resource`, or do nothing if `lease` is "". Raises NotFound if there is no such lease."""
    if lease:
        _require(transaction, ns, lease, "lease does not exist")
        _hold(transaction, ns, lease, resource)


def detach(transaction: Transaction, ns: str, lease: str, resource: Resource) -> None:
    """Let `lease` no longer hold `resource`; neither need be there."""
    if lease:
        transaction.execute(
            "DELETE FROM lease_resources WHERE ns = ? AND lease = ? AND type = ? AND id = ?",
            (ns, lease, resource.type, resource.id),
        )


class Leases:
    """The leases' rows."""

    def __init__(self, database: Database) -> None:
        """Use `database`."""
        self._database = database

    def create(self, ns: str, lease: Lease) -> Lease:
        """Store a lease, with an id of its own if it brings none. Raises AlreadyExists, InvalidArgument."""
        validate_labels("lease.Labels", lease.labels)
        with self._database.transaction() as transaction:
            lease_id = lease.id or _generate_id(transaction.now)
            lease = Lease(lease_id, stored(lease.labels), transaction.now)
            ensure_namespace(transaction, ns)
            row = (ns, lease.id, encode_labels(lease.labels), to_microseconds(lease.created_at))
            cursor = transaction.execute(
                "INSERT OR IGNORE INTO leases (ns, id, labels, created_at) VALUES (?, ?, ?, ?)", row
            )
            if not cursor.rowcount:
                raise AlreadyExists(f'lease "{lease.id}"')
        return lease

    def delete(self, ns: str, lease: str) -> None:
        """Let go of a lease and of all it holds. Raises NotFound."""
        with self._database.freeing() as transaction:
            if not transaction.execute("DELETE FROM leases WHERE ns = ? AND id = ?", (ns, lease)).rowcount:
                raise NotFound(f'lease "{lease}"')
            transaction.execute("DELETE FROM lease_resources WHERE ns = ? AND lease = ?", (ns, lease))
            transaction.leaves_garbage()

    def end_calls(self) -> None:
        """Let go of what was held for calls of a daemon that has ended before they did (`for_a_call`)."""
        rows = self._database.read().execute("SELECT ns, id, labels FROM leases").fetchall()
        for ns, lease, labels in rows:
            if CALL_LABEL in decode_labels(labels):
                self.delete(ns, lease)

    def add_resource(self, ns: str, lease: str, resource: Resource) -> None:
        """Let a lease hold something, which need not exist. Raises NotFound, InvalidArgument, Unimplemented."""
        with self._database.transaction() as transaction:
            _require(transaction, ns, lease, f'lease "{lease}"')
            validate_resource(resource)
            _hold(transaction, ns, lease, resource)

    def delete_resource(self, ns: str, lease: str, resource: Resource) -> None:
        """Let a lease hold something no longer. Raises NotFound, InvalidArgument, Unimplemented."""
        with self._database.freeing() as transaction:
            _require(transaction, ns, lease, f'lease "{lease}"')
            validate_resource(resource)
            detach(transaction, ns, lease, resource)
            transaction.leaves_garbage()

    def list_resources(self, ns: str, lease: str) -> list[Resource]:
        """Return what a lease holds. Raises NotFound."""
        with self._database.snapshot() as reader:
            if reader.execute("SELECT 1 FROM leases WHERE ns = ? AND id = ?", (ns, lease)).fetchone() is None:
                raise NotFound(f'lease "{lease}"')
            rows = reader.execute(
                "SELECT id, type FROM lease_resources WHERE ns = ? AND lease = ? ORDER BY type, id", (ns, lease)
            )
            return [Resource(*row) for row in rows]

    def list(self, ns: str, filters: Sequence[str] = ()) -> list[Lease]:
        """Return the leases that pass, by id. Raises InvalidArgument for a bad filter."""
        passes = compile_filters(filters)
        rows = self._database.read().execute(
            "SELECT id, labels, created_at FROM leases WHERE ns = ? ORDER BY id", (ns,)
        )
        leases = [Lease(lease, decode_labels(labels), from_microseconds(created)) for lease, labels, created in rows]
        return [lease for lease in leases if passes(fields(lease))]


def _require(transaction: Transaction, ns: str, lease: str, message: str) -> None:
    if transaction.execute("SELECT 1 FROM leases WHERE ns = ? AND id = ?", (ns, lease)).fetchone() is None:
        raise NotFound(message)


def _hold(transaction: Transaction, ns: str, lease: str, resource: Resource) -> None:
    transaction.execute(
        "INSERT OR IGNORE INTO lease_resources (ns, lease, type, id) VALUES (?, ?, ?, ?)",
        (ns, lease, resource.type, resource.id),
    )


def _generate_id(now: datetime) -> str:
    """Return nine digits of the clock and four random characters, as Go's clients make theirs."""
    random = base64.urlsafe_b64encode(secrets.token_bytes(3)).decode()
    return f"{now.microsecond * 1000:09d}-{random}"
