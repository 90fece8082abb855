"""Namespaces: tenants of the API, made explicitly or by the first write in them."""

from collections.abc import Sequence
from typing import Final

from pyctr_wire.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from pyctrd.core.events import NamespaceCreate, NamespaceDelete, NamespaceUpdate
from pyctrd.core.identifiers import validate_namespace
from pyctrd.core.labels import stored, validate_labels
from pyctrd.core.namespaces import Namespace
from pyctrd.metadata.database import Database, Transaction
from pyctrd.metadata.rows import decode_labels, encode_labels, ensure_namespace

# What blocks a deletion, as the message names it; leases, ingests and sandboxes go with their namespace.
_BLOCKING: Final = (("images", "images"), ("blobs", "blobs"), ("containers", "containers"))


class Namespaces:
    """The namespaces' rows."""

    def __init__(self, database: Database) -> None:
        """Use `database`."""
        self._database = database

    def get(self, name: str) -> Namespace:
        """Return the namespace; one that does not exist has no labels, which is what clients rely on."""
        row = self._database.read().execute("SELECT labels FROM namespaces WHERE name = ?", (name,)).fetchone()
        return Namespace(name, decode_labels(row[0]) if row else {})

    def list(self) -> list[Namespace]:
        """Return all namespaces by name."""
        rows = self._database.read().execute("SELECT name, labels FROM namespaces ORDER BY name")
        return [Namespace(name, decode_labels(labels)) for name, labels in rows]

    def create(self, namespace: Namespace) -> Namespace:
        """Store a namespace. Raises AlreadyExists, InvalidArgument."""
        validate_namespace(namespace.name)
        validate_labels("namespace.Labels", namespace.labels)
        labels = stored(namespace.labels)
        with self._database.transaction() as transaction:
            row = (namespace.name, encode_labels(labels))
            cursor = transaction.execute("INSERT OR IGNORE INTO namespaces (name, labels) VALUES (?, ?)", row)
            if not cursor.rowcount:
                raise AlreadyExists(f'namespace "{namespace.name}"')
            transaction.publish(namespace.name, NamespaceCreate(namespace.name, labels))
        return Namespace(namespace.name, labels)

    def update(self, namespace: Namespace, mask: Sequence[str] = ()) -> Namespace:
        """Replace all labels, or those that paths `labels.KEY` name. Raises InvalidArgument."""
        name = validate_namespace(namespace.name)
        for path in mask:
            if not path.startswith("labels."):
                raise InvalidArgument(f'cannot update "{path}" field')
        with self._database.transaction() as transaction:
            ensure_namespace(transaction, name)
            labels = stored(namespace.labels)
            if mask:
                (old,) = transaction.execute("SELECT labels FROM namespaces WHERE name = ?", (name,)).fetchone()
                keys = [path.removeprefix("labels.") for path in mask]
                labels = stored(decode_labels(old) | {key: namespace.labels.get(key, "") for key in keys})
            validate_labels("namespace.Labels", labels)
            transaction.execute("UPDATE namespaces SET labels = ? WHERE name = ?", (encode_labels(labels), name))
            transaction.publish(name, NamespaceUpdate(name, labels))
        return Namespace(name, labels)

    def delete(self, name: str) -> None:
        """Delete an empty namespace. Raises NotFound, and FailedPrecondition that lists what it still has."""
        with self._database.freeing() as transaction:
            if remaining := _remaining(transaction, name):
                raise FailedPrecondition(f'namespace "{name}" must be empty, but it still has {", ".join(remaining)}')
            if not transaction.execute("DELETE FROM namespaces WHERE name = ?", (name,)).rowcount:
                raise NotFound(f'namespace "{name}"')
            transaction.execute("DELETE FROM lease_resources WHERE ns = ?", (name,))
            transaction.execute("DELETE FROM leases WHERE ns = ?", (name,))
            transaction.execute("DELETE FROM ingests WHERE ns = ?", (name,))
            transaction.execute("DELETE FROM sandboxes WHERE ns = ?", (name,))
            transaction.leaves_garbage()
            transaction.publish(name, NamespaceDelete(name))


def _remaining(transaction: Transaction, name: str) -> list[str]:
    remaining = [
        noun
        for table, noun in _BLOCKING
        if transaction.execute(f"SELECT 1 FROM {table} WHERE ns = ? LIMIT 1", (name,)).fetchone()  # noqa: S608 - from the table above
    ]
    snapshotters = transaction.execute(
        "SELECT DISTINCT snapshotter FROM snapshots WHERE ns = ? ORDER BY snapshotter", (name,)
    )
    return remaining + [f'snapshots on "{snapshotter}" snapshotter' for (snapshotter,) in snapshotters]
