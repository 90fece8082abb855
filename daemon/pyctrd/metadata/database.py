"""The metadata database: one writer's connection in turn, a reader per thread, events after COMMIT.

Writers share a COMMIT and so one fsync: each runs between SAVEPOINT and RELEASE, and whoever finds
nobody waiting for a turn commits for all that came before. A writer leaves `transaction()` when its
changes are on disk; a COMMIT that fails, fails all of its members.
Source: SQLite "Write-Ahead Logging", "Savepoints".
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

from pyctr_wire.errors import ApiError, DataLoss, Internal, ResourceExhausted
from pyctrd.core.events import Event
from pyctrd.metadata.copies import Copies
from pyctrd.metadata.reserve import Reserve
from pyctrd.metadata.schema import migrate

Publish: TypeAlias = Callable[[str, Event], None]
Clock: TypeAlias = Callable[[], datetime]

_BUSY_TIMEOUT: Final = 10.0  # seconds; met only while an older daemon hands over

_READER_CACHE: Final = 256  # KiB; the kernel has the pages too, and there is a reader per thread


def utc_now() -> datetime:
    """Return the time of day."""
    return datetime.now(UTC)


class _Reader(sqlite3.Connection):
    """A connection whose failures are ones that a client may be told."""

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        try:
            return super().execute(sql, parameters)
        except sqlite3.Error as error:
            raise _translated(error) from error


class Transaction:
    """One writer's statements, and the events that are due once they are on disk."""

    __slots__ = ("_connection", "events", "garbage", "now")

    def __init__(self, connection: sqlite3.Connection, now: datetime) -> None:
        """Run on `connection`; `now` is the time of everything that this transaction stores."""
        self._connection = connection
        self.now = now
        self.events: list[tuple[str, Event]] = []
        self.garbage = False

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self._connection.execute(sql, parameters)

    def publish(self, ns: str, event: Event) -> None:
        """Send `event` after the COMMIT, in the order of transactions."""
        self.events.append((ns, event))

    def leaves_garbage(self) -> None:
        """Say that something may now be unreferenced, so that a collection is worth its time."""
        self.garbage = True

    @property
    def changes(self) -> int:
        """Rows changed on this connection since it was opened, those of unfinished neighbours included."""
        return self._connection.total_changes


class _Group:
    """Transactions that share a COMMIT."""

    __slots__ = ("done", "failure", "members")

    def __init__(self) -> None:
        self.members: list[Transaction] = []
        self.done = threading.Event()
        self.failure: sqlite3.Error | None = None


class Database:
    """The metadata of one daemon; thread-safe. Owns the file at `path`, its neighbours of that name, and `reserve`."""

    def __init__(self, path: Path, publish: Publish, clock: Clock = utc_now) -> None:
        """Open or create the database, from the newest good copy if the file itself is damaged.

        `publish` is called in the committing thread and must not block. Raises NewerSchemaError.
        """
        self._path = path
        self._publish = publish
        self._clock = clock
        self._copies = Copies(path)
        self._reserve = Reserve(path.with_name("reserve"))
        self.has_gaps = self._copies.restore_if_damaged()
        """The file was lost or damaged: rows may be missing or old, and disk tells more than they do."""
        self._writer = self._connect()
        try:
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._writer.execute("PRAGMA synchronous = FULL")
            migrate(self._writer)
        except BaseException:
            self._writer.close()
            raise
        self.changes = self._writer.total_changes
        """Rows changed and committed so far: while it stays the same, so does every answer."""
        self.garbage = 0
        """How many committed transactions may have left something unreferenced."""
        self.mutations = 0
        """How many transactions have been committed."""
        self.on_commit: Callable[[], None] = lambda: None
        """Called, in the committing thread, after each commit; must not block."""
        self._turn = threading.Lock()
        self._waiting = 0
        self._waiting_lock = threading.Lock()
        self._group: _Group | None = None
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._copies.start(lambda: self.mutations)

    def now(self) -> datetime:
        """Return the time of day, by the clock that dates all rows."""
        return self._clock()

    def close(self) -> None:
        """Copy the database a last time and close it. No call may be under way."""
        self._copies.stop()
        for connection in (*self._readers, self._writer):
            connection.close()

    def gaps_filled(self) -> None:
        """Take note that the stores have adopted all that is on disk; until then, every start does it again."""
        self.has_gaps = False
        self._copies.rebuilt()

    def read(self) -> sqlite3.Connection:
        """Return the calling thread's reader: each SELECT sees everything committed before it began.

        Its `execute` raises as `transaction` does.
        """
        connection: sqlite3.Connection | None = getattr(self._local, "reader", None)
        if connection is None:
            connection = self._local.reader = self._connect(_Reader)
            connection.execute("PRAGMA query_only = ON")
            connection.execute(f"PRAGMA cache_size = -{_READER_CACHE}")
            self._readers.append(connection)
        return connection

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Yield the calling thread's reader, every SELECT inside seeing one and the same moment."""
        reader = self.read()
        reader.execute("BEGIN")
        try:
            yield reader
        finally:
            reader.execute("ROLLBACK")

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Yield a transaction; it is on disk, and its events are sent, when the block is left.

        An exception in the block undoes it, and only it. The block holds up all other writers: no
        I/O of its own, and no second transaction inside. Raises ResourceExhausted if the disk is
        full, DataLoss if the file is damaged, Internal for any other failure to write.
        """
        self._reserve.keep()
        with self._member() as transaction:
            yield transaction

    @contextmanager
    def freeing(self) -> Iterator[Transaction]:
        """Yield a transaction as `transaction` does, for what makes room or puts rows right: it may use the reserve."""
        with self._reserve.lent(), self._member() as transaction:
            yield transaction

    @contextmanager
    def _member(self) -> Iterator[Transaction]:
        group = self._take_turn()
        transaction = Transaction(self._writer, self._clock())
        try:
            try:
                self._writer.execute("SAVEPOINT member")
                yield transaction
                self._writer.execute("RELEASE member")
                group.members.append(transaction)
            except BaseException as error:
                self._undo(group, error)
                raise
            finally:
                self._pass_turn(group)
        except sqlite3.Error as error:
            raise _translated(error) from error
        # Whoever commits wakes us; it is certain to come, because it was waiting for its turn when we left ours.
        group.done.wait()
        if group.failure is not None:
            raise _translated(group.failure) from group.failure

    def _connect(self, factory: type[sqlite3.Connection] = sqlite3.Connection) -> sqlite3.Connection:
        return sqlite3.connect(
            self._path,
            timeout=_BUSY_TIMEOUT,
            isolation_level=None,
            check_same_thread=False,
            factory=factory,
            cached_statements=256,
        )

    def _take_turn(self) -> _Group:
        with self._waiting_lock:
            self._waiting += 1
        self._turn.acquire()
        with self._waiting_lock:
            self._waiting -= 1
        if self._group is None:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                self._turn.release()
                raise _translated(error) from error
            self._group = _Group()
        return self._group

    def _undo(self, group: _Group, cause: BaseException) -> None:
        if self._writer.in_transaction:
            try:
                self._writer.execute("ROLLBACK TO member")
                self._writer.execute("RELEASE member")
            except sqlite3.Error as error:
                group.failure = error
                self._writer.execute("ROLLBACK")
        else:
            # A full disk or an I/O error made SQLite roll back everything, our neighbours' work too.
            group.failure = cause if isinstance(cause, sqlite3.Error) else sqlite3.OperationalError(str(cause))

    def _pass_turn(self, group: _Group) -> None:
        """Leave the COMMIT to the next writer if one waits, else do it."""
        try:
            if group.failure is not None or not self._waiting:
                self._group = None
                self._commit(group)
        finally:
            self._turn.release()

    def _commit(self, group: _Group) -> None:
        try:
            if group.failure is None:
                self._writer.execute("COMMIT")
                self._committed(group)
        except sqlite3.Error as error:
            group.failure = error
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
        finally:
            group.done.set()

    def _committed(self, group: _Group) -> None:
        self.changes = self._writer.total_changes
        self.mutations += len(group.members)
        self.garbage += sum(member.garbage for member in group.members)
        for member in group.members:
            for ns, event in member.events:
                self._publish(ns, event)
        self.on_commit()
        self._copies.changed()


def _translated(error: sqlite3.Error) -> ApiError:
    """Return what a client is told about a database that does not do its work."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    text = f"the metadata database cannot be used: {error}"
    if code == sqlite3.SQLITE_FULL:
        return ResourceExhausted(text)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return DataLoss(f"{text} (restart pyctrd to rebuild it)")
    return Internal(text)
