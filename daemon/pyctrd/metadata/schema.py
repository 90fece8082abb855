"""Bring a database's tables up to date: migrations/NNN_*.sql in order, each in a transaction."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

_MIGRATIONS: Final = Path(__file__).with_name("migrations")


def _count() -> int:
    return len(list(_MIGRATIONS.glob("*.sql")))


_KNOWN: Final = _count()  # while this program runs, another one may be put in its place


class NewerSchemaError(Exception):
    """The database was written by a newer pyctrd; opening it with this one could lose what it does not know."""


def why_not_installed() -> str:
    """Return why the program that is installed now could not open the database of this one, "" if it could."""
    installed = _count()
    if not 0 < installed < _KNOWN:
        return ""
    return (
        f"what is installed now knows schemas up to version {installed}, the database has version {_KNOWN}:"
        " install the newer pyctr again"
    )


def migrate(connection: sqlite3.Connection) -> None:
    """Apply the migrations that `connection`'s database has not seen. Raises NewerSchemaError.

    A crash between two leaves the older version, complete; the next start goes on from there.
    """
    scripts, version = _scripts(), _version(connection)
    if version > len(scripts):
        raise NewerSchemaError(
            f"the database has schema version {version}, this pyctrd knows versions up to {len(scripts)}:"
            " start the newer pyctrd again, or put back a copy of the database from before the upgrade"
        )
    _apply(connection, scripts, version)


def is_ours(connection: sqlite3.Connection) -> bool:
    """Return whether the tables are those of the version that the database claims; a newer one is believed."""
    scripts, version = _scripts(), _version(connection)
    if not 0 < version <= len(scripts):
        return version > len(scripts)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as ideal:
        _apply(ideal, scripts[:version], 0)
        return _tables(ideal) == _tables(connection)


def _scripts() -> list[str]:
    return [file.read_text() for file in sorted(_MIGRATIONS.glob("*.sql"))]


def _apply(connection: sqlite3.Connection, scripts: list[str], version: int) -> None:
    for number, script in enumerate(scripts[version:], start=version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _tables(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    return connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
