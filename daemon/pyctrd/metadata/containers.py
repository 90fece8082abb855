"""Containers: records of what to run."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from pyctr_wire.errors import AlreadyExists, NotFound
from pyctrd.core.containers import Container, fields, updated, validate
from pyctrd.core.events import ContainerCreate, ContainerDelete, ContainerUpdate
from pyctrd.core.filters import compile_filters
from pyctrd.core.labels import stored
from pyctrd.core.reachability import keep_otherwise
from pyctrd.core.times import from_microseconds, to_microseconds
from pyctrd.metadata.database import Database
from pyctrd.metadata.rows import (
    any_of,
    columns_of,
    decode_extensions,
    decode_labels,
    encode_extensions,
    encode_labels,
    ensure_namespace,
)

_COLUMNS: Final = (
    "id, labels, image, runtime_name, options_url, options, spec_url, spec, snapshotter, snapshot_key,"
    " created_at, updated_at, extensions, sandbox_id"
)
_SELECT: Final = f"SELECT {_COLUMNS} FROM containers WHERE ns = ?"  # noqa: S608 - a constant
_INTO: Final = f"INTO containers (ns, {_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"


class Containers:
    """The containers' rows."""

    def __init__(self, database: Database) -> None:
        """Use `database`."""
        self._database = database

    def get(self, ns: str, container_id: str) -> Container:
        """Return a container. Raises NotFound."""
        row = self._database.read().execute(f"{_SELECT} AND id = ?", (ns, container_id)).fetchone()
        if row is None:
            raise _missing(ns, container_id)
        return _from_row(row)

    def exists(self, ns: str, container_id: str) -> bool:
        """Return whether there is a container of that id."""
        query = "SELECT 1 FROM containers WHERE ns = ? AND id = ?"
        return self._database.read().execute(query, (ns, container_id)).fetchone() is not None

    def list(self, ns: str, filters: Sequence[str] = ()) -> list[Container]:
        """Return the containers that pass, by id. Raises InvalidArgument for a bad filter."""
        passes = compile_filters(filters)
        rows = self._database.read().execute(f"{_SELECT} ORDER BY id", (ns,))
        return [container for row in rows if passes(fields(container := _from_row(row)))]

    def create(self, ns: str, container: Container) -> Container:
        """Store a container; both its times are now. Raises AlreadyExists, InvalidArgument."""
        validate(container)
        with self._database.transaction() as transaction:
            now = transaction.now
            container = replace(container, labels=stored(container.labels), created_at=now, updated_at=now)
            ensure_namespace(transaction, ns)
            if not transaction.execute(f"INSERT OR IGNORE {_INTO}", _to_row(ns, container)).rowcount:
                raise AlreadyExists(f'container "{container.id}"')
            event = ContainerCreate(container.id, container.image, container.runtime_name, container.runtime_options)
            transaction.publish(ns, event)
        return container

    def update(self, ns: str, container: Container, mask: Sequence[str] = ()) -> Container:
        """Change the fields that `mask` names and return the result. Raises NotFound, InvalidArgument."""
        with self._database.transaction() as transaction:
            row = transaction.execute(f"{_SELECT} AND id = ?", (ns, container.id)).fetchone()
            if row is None:
                raise _missing(ns, container.id)
            old = _from_row(row)
            result = updated(old, container, tuple(mask), transaction.now)
            transaction.execute(f"REPLACE {_INTO}", _to_row(ns, result))
            if result.snapshot_key != old.snapshot_key or keep_otherwise(old.labels, result.labels):
                transaction.leaves_garbage()
            transaction.publish(ns, ContainerUpdate(result.id, result.image, result.labels, result.snapshot_key))
        return result

    def delete(self, ns: str, container_id: str) -> None:
        """Forget a container; its task, if it has one, is not looked at. Raises NotFound."""
        with self._database.freeing() as transaction:
            key = (ns, container_id)
            if not transaction.execute("DELETE FROM containers WHERE ns = ? AND id = ?", key).rowcount:
                raise _missing(ns, container_id)
            transaction.leaves_garbage()
            transaction.publish(ns, ContainerDelete(container_id))


def _missing(ns: str, container_id: str) -> NotFound:
    return NotFound(f'container "{container_id}" in namespace "{ns}"')


def _to_row(ns: str, container: Container) -> tuple[Any, ...]:
    return (
        ns,
        container.id,
        encode_labels(container.labels),
        container.image,
        container.runtime_name,
        *columns_of(container.runtime_options),
        *columns_of(container.spec),
        container.snapshotter,
        container.snapshot_key,
        to_microseconds(container.created_at),
        to_microseconds(container.updated_at),
        encode_extensions(container.extensions),
        container.sandbox_id,
    )


def _from_row(row: tuple[Any, ...]) -> Container:
    (container_id, labels, image, runtime_name, options_url, options, spec_url, spec, snapshotter, snapshot_key,
     created_at, updated_at, extensions, sandbox_id) = row  # fmt: skip
    return Container(
        id=container_id,
        labels=decode_labels(labels),
        image=image,
        runtime_name=runtime_name,
        runtime_options=any_of(options_url, options),
        spec=any_of(spec_url, spec),
        snapshotter=snapshotter,
        snapshot_key=snapshot_key,
        created_at=from_microseconds(created_at),
        updated_at=from_microseconds(updated_at),
        extensions=decode_extensions(extensions),
        sandbox_id=sandbox_id,
    )
