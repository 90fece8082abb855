"""Copies of the database, and what is done with them when the database is damaged.

metadata.db              the database (with -wal and -shm)
metadata.db.copy         how it was some seconds after its last change, or at the last stop
metadata.db.copy.older   the one before
metadata.db.damaged-*    put aside for a person to look at, never read again
"""

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pyctrd.log import Logger
from pyctrd.metadata.durable import fsync, replacing
from pyctrd.metadata.schema import is_ours

_QUIET: Final = 5.0  # seconds without a change before a copy is made
_LATEST: Final = 60.0  # seconds between copies while changes do not stop

_log = Logger(__name__)


class Copies:
    """Keeps two copies of the database at `path`, made by a thread of its own."""

    def __init__(self, path: Path) -> None:
        """Know the names; nothing is touched yet."""
        self._path = path
        self._copy = path.with_name(f"{path.name}.copy")
        self._older = path.with_name(f"{path.name}.copy.older")
        self._rebuilding = path.with_name(f"{path.name}.rebuilding")
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._count: Callable[[], int] = lambda: 0

    def restore_if_damaged(self) -> bool:
        """Put a damaged database aside and the newest good copy in its place; return whether it has gaps.

        It has until `rebuilt` is called, at a later start too. A missing or empty file counts as
        damaged: on a fresh root there is then simply nothing to restore. A database with a newer
        schema is not damaged.
        """
        if not _is_good(self._path):
            self._rebuilding.touch(mode=0o600)
            fsync(self._path.parent)
            self._quarantine()
            self._restore()
        return self._rebuilding.exists()

    def rebuilt(self) -> None:
        """Take note that everything on disk has a row again."""
        self._rebuilding.unlink(missing_ok=True)

    def start(self, count: Callable[[], int]) -> None:
        """Start the thread that copies; `count` tells how many changes there have been."""
        self._count = count
        self._thread = threading.Thread(target=self._run, name="database-copies", daemon=True)
        self._thread.start()

    def changed(self) -> None:
        """Take note of a change."""
        self._changed.set()

    def stop(self) -> None:
        """Make a last copy, if one is due, and end the thread."""
        self._stopping.set()
        self._changed.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        copied = self._count()
        while True:
            self._changed.wait()
            self._changed.clear()
            self._wait_until_quiet()
            # Read before the copy: what changes while it is made wakes us again.
            stopping, count = self._stopping.is_set(), self._count()
            if count != copied:
                copied = count
                self._make()
            if stopping:
                return

    def _wait_until_quiet(self) -> None:
        waited, seen = 0.0, -1
        while waited < _LATEST and self._count() != seen and not self._stopping.is_set():
            seen = self._count()
            self._stopping.wait(_QUIET)
            waited += _QUIET

    def _make(self) -> None:
        try:
            with replacing(self._copy) as temporary:
                with closing(sqlite3.connect(self._path)) as source, closing(sqlite3.connect(temporary)) as target:
                    # The file as a whole is fsynced afterwards, so SQLite need not care in between.
                    target.execute("PRAGMA synchronous = OFF")
                    source.backup(target)
                if self._copy.exists():
                    self._copy.replace(self._older)
        except (OSError, sqlite3.Error) as error:
            # The database itself is fine; the next change tries again.
            _log.warning("database not copied", error=str(error))

    def _restore(self) -> None:
        for copy in (self._copy, self._older):
            if _is_good(copy):
                with replacing(self._path) as temporary:
                    temporary.write_bytes(copy.read_bytes())
                _log.warning("database restored", copy=copy.name)
                return

    def _quarantine(self) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        # A log without its database would be replayed into the copy: it goes too.
        aside = self._path.with_name(f"{self._path.name}.damaged-{stamp}")
        for suffix in ("-wal", "-shm", ""):  # the file itself last: until then the next start finds it again
            part = self._path.with_name(self._path.name + suffix)
            if part.exists():
                part.replace(aside.with_name(aside.name + suffix))
                _log.error("database damaged", aside=aside.name + suffix)


def _is_good(path: Path) -> bool:
    """Return whether `path` is a whole SQLite database with a schema of ours.

    Raises OSError or sqlite3.Error if that cannot be found out: an unreadable disk or another
    process's lock is no damage.
    """
    if not path.exists() or path.stat().st_size == 0:
        return False
    try:
        with closing(sqlite3.connect(path)) as connection:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            return verdict == "ok" and is_ours(connection)
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return False
        if error.sqlite_errorcode == sqlite3.SQLITE_IOERR_SHORT_READ:
            return False
        raise
