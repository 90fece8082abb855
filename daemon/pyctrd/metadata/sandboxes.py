"""Sandboxes: records of what groups of containers share. No change of one is an event, as in containerd."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from pyctr_wire.errors import AlreadyExists, NotFound
from pyctrd.core.filters import compile_filters
from pyctrd.core.labels import stored
from pyctrd.core.reachability import keep_otherwise
from pyctrd.core.sandboxes import Sandbox, fields, updated, validate
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
    "id, labels, runtime_name, options_url, options, spec_url, spec, sandboxer, created_at, updated_at, extensions"
)
_SELECT: Final = f"SELECT {_COLUMNS} FROM sandboxes WHERE ns = ?"  # noqa: S608 - a constant
_INTO: Final = f"INTO sandboxes (ns, {_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)"


class Sandboxes:
    """The sandboxes' rows."""

    def __init__(self, database: Database) -> None:
        """Use `database`."""
        self._database = database

    def get(self, ns: str, sandbox_id: str) -> Sandbox:
        """Return a sandbox. Raises NotFound."""
        row = self._database.read().execute(f"{_SELECT} AND id = ?", (ns, sandbox_id)).fetchone()
        if row is None:
            raise _missing(sandbox_id)
        return _from_row(row)

    def list(self, ns: str, filters: Sequence[str] = ()) -> list[Sandbox]:
        """Return the sandboxes that pass, by id. Raises InvalidArgument for a bad filter."""
        passes = compile_filters(filters)
        rows = self._database.read().execute(f"{_SELECT} ORDER BY id", (ns,))
        return [sandbox for row in rows if passes(fields(sandbox := _from_row(row)))]

    def create(self, ns: str, sandbox: Sandbox) -> Sandbox:
        """Store a sandbox; both its times are now. Raises AlreadyExists, InvalidArgument."""
        validate(sandbox)
        with self._database.transaction() as transaction:
            now = transaction.now
            sandbox = replace(sandbox, labels=stored(sandbox.labels), created_at=now, updated_at=now)
            ensure_namespace(transaction, ns)
            if not transaction.execute(f"INSERT OR IGNORE {_INTO}", _to_row(ns, sandbox)).rowcount:
                raise AlreadyExists(f'sandbox bucket "{sandbox.id}" already exists')
        return sandbox

    def update(self, ns: str, sandbox: Sandbox, paths: Sequence[str] = ()) -> Sandbox:
        """Change the fields that `paths` name and return the result. Raises NotFound, InvalidArgument."""
        with self._database.transaction() as transaction:
            row = transaction.execute(f"{_SELECT} AND id = ?", (ns, sandbox.id)).fetchone()
            if row is None:
                raise _missing(sandbox.id)
            old = _from_row(row)
            result = updated(old, sandbox, tuple(paths), transaction.now)
            transaction.execute(f"REPLACE {_INTO}", _to_row(ns, result))
            if keep_otherwise(old.labels, result.labels):
                transaction.leaves_garbage()
        return result

    def delete(self, ns: str, sandbox_id: str) -> None:
        """Forget a sandbox. Raises NotFound."""
        with self._database.freeing() as transaction:
            key = (ns, sandbox_id)
            if not transaction.execute("DELETE FROM sandboxes WHERE ns = ? AND id = ?", key).rowcount:
                raise _missing(sandbox_id)
            transaction.leaves_garbage()


def _missing(sandbox_id: str) -> NotFound:
    return NotFound(f'sandbox "{sandbox_id}"')


def _to_row(ns: str, sandbox: Sandbox) -> tuple[Any, ...]:
    return (
        ns,
        sandbox.id,
        encode_labels(sandbox.labels),
        sandbox.runtime_name,
        *columns_of(sandbox.runtime_options),
        *columns_of(sandbox.spec),
        sandbox.sandboxer,
        to_microseconds(sandbox.created_at),
        to_microseconds(sandbox.updated_at),
        encode_extensions(sandbox.extensions),
    )


def _from_row(row: tuple[Any, ...]) -> Sandbox:
    (sandbox_id, labels, runtime_name, options_url, options, spec_url, spec, sandboxer,
     created_at, updated_at, extensions) = row  # fmt: skip
    return Sandbox(
        id=sandbox_id,
        runtime_name=runtime_name,
        runtime_options=any_of(options_url, options),
        spec=any_of(spec_url, spec),
        labels=decode_labels(labels),
        created_at=from_microseconds(created_at),
        updated_at=from_microseconds(updated_at),
        extensions=decode_extensions(extensions),
        sandboxer=sandboxer,
    )
