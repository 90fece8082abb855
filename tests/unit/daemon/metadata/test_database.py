"""The database: shared commits, failed ones, damage, copies."""

import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pyctr_wire.errors import AlreadyExists, DataLoss, Internal, NotFound, ResourceExhausted, Unavailable
from pyctrd.core.events import ContainerCreate
from pyctrd.core.sandboxes import Sandbox
from pyctrd.metadata.database import Database
from pyctrd.metadata.lock import StateLock
from pyctrd.metadata.schema import NewerSchemaError
from support.stores import NS, Clock, Stores, container, open_stores


class FailingConnection:
    """A connection that fails one kind of statement once, or holds it up until it is told to go on."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.fail_on = ""
        self.error = sqlite3.OperationalError("disk I/O error")
        self.rolls_back = False
        self.before_commit: Callable[[], None] = lambda: None

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if sql == "COMMIT":
            self.before_commit()
        if self.fail_on and sql.startswith(self.fail_on):
            self.fail_on = ""
            if self.rolls_back:
                self._connection.execute("ROLLBACK")
            raise self.error
        return self._connection.execute(sql, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@pytest.fixture
def failing(stores: Stores) -> FailingConnection:
    connection = FailingConnection(stores.database._writer)
    stores.database._writer = connection  # type: ignore[assignment]
    return connection


def ids(stores: Stores) -> list[str]:
    return [found.id for found in stores.containers.list(NS)]


def in_threads(*calls: Callable[[], object]) -> list[BaseException | None]:
    """Run the calls at the same time and return what each raised."""
    results: list[BaseException | None] = [None] * len(calls)

    def run(number: int) -> None:
        try:
            calls[number]()
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return results


def together(stores: Stores, *calls: Callable[[], object]) -> list[BaseException | None]:
    """Run the calls so that all share one COMMIT: nobody has a turn before all wait for theirs."""
    database = stores.database
    everybody_waits = threading.Event()

    def watch() -> None:
        while database._waiting < len(calls):
            threading.Event().wait(0.001)
        everybody_waits.set()

    database._turn.acquire()
    watcher = threading.Thread(target=watch)
    watcher.start()

    def release() -> None:
        assert everybody_waits.wait(30)
        database._turn.release()

    results = in_threads(*calls, release)
    watcher.join()
    return results[:-1]


def creates(stores: Stores, *names: str) -> list[Callable[[], object]]:
    return [lambda name=name: stores.containers.create(NS, container(name)) for name in names]  # type: ignore[misc]


def test_writers_share_a_commit(stores: Stores, failing: FailingConnection) -> None:
    commits: list[int] = []
    before = stores.database.mutations
    failing.before_commit = lambda: commits.append(1)
    assert together(stores, *creates(stores, "a", "b", "c", "d")) == [None] * 4
    assert ids(stores) == ["a", "b", "c", "d"]
    assert len(commits) == 1
    assert stores.database.mutations == before + 4


def test_an_error_undoes_one_member_only(stores: Stores) -> None:
    results = together(stores, *creates(stores, "a", "b", "a", "c"))
    assert sorted(type(result).__name__ for result in results) == ["AlreadyExists", "NoneType", "NoneType", "NoneType"]
    assert ids(stores) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("message", "code", "expected"),
    [
        ("database or disk is full", sqlite3.SQLITE_FULL, ResourceExhausted),
        ("disk I/O error", sqlite3.SQLITE_IOERR, Internal),
        ("database disk image is malformed", sqlite3.SQLITE_CORRUPT, DataLoss),
    ],
)
def test_a_failed_commit_fails_every_member_and_sends_nothing(
    stores: Stores, failing: FailingConnection, message: str, code: int, expected: type[Exception]
) -> None:
    failing.fail_on, failing.error = "COMMIT", sqlite3.OperationalError(message)
    failing.error.sqlite_errorcode = code
    results = together(stores, *creates(stores, "a", "b", "c"))
    assert [type(result) for result in results] == [expected] * 3
    assert ids(stores) == []
    assert stores.events == []
    stores.containers.create(NS, container("a"))
    assert ids(stores) == ["a"]


def test_a_rollback_of_everything_fails_every_member(stores: Stores, failing: FailingConnection) -> None:
    """SQLite undoes the whole transaction on a full disk, not the statement: no member may believe to be stored."""
    failing.fail_on, failing.rolls_back = "INSERT OR IGNORE INTO containers", True
    results = together(stores, *creates(stores, "a", "b", "c"))
    stored = ids(stores)
    for name, result in zip("abc", results, strict=True):
        assert (result is None) == (name in stored)
    assert len(stores.events) == len(stored)
    stores.containers.create(NS, container("d"))


@pytest.mark.parametrize("statement", ["SAVEPOINT", "RELEASE", "ROLLBACK TO", "BEGIN"])
def test_any_failing_statement_leaves_the_database_usable(
    stores: Stores, failing: FailingConnection, statement: str
) -> None:
    stores.containers.create(NS, container("a"))
    failing.fail_on = statement
    with pytest.raises((Internal, AlreadyExists)):
        stores.containers.create(NS, container("a" if statement.startswith("ROLLBACK") else "b"))
    stores.containers.create(NS, container("c"))
    assert ids(stores) == ["a", "c"]


def test_events_follow_the_commit_in_order(tmp_path: Path) -> None:
    seen: list[tuple[str, list[str]]] = []
    database = Database(tmp_path / "metadata.db", lambda ns, event: seen.append((event.id, stored())))  # type: ignore[union-attr]

    def stored() -> list[str]:
        with sqlite3.connect(tmp_path / "metadata.db") as reader:
            result = [row[0] for row in reader.execute("SELECT id FROM containers ORDER BY rowid")]
        reader.close()
        return result

    with database.transaction() as transaction:
        transaction.execute("INSERT INTO namespaces (name) VALUES ('x')")
        for name in ("a", "b"):
            transaction.execute(
                "INSERT INTO containers VALUES ('x', ?, '{}', '', '', NULL, NULL, '', x'', '', '', 0, 0, '{}', '')",
                (name,),
            )
            transaction.publish("x", ContainerCreate(name, "", ""))
        assert seen == []
    assert seen == [("a", ["a", "b"]), ("b", ["a", "b"])]
    database.close()


def test_an_exception_undoes_the_block(stores: Stores) -> None:
    with pytest.raises(ZeroDivisionError), stores.database.transaction() as transaction:  # noqa: PT012 - the block is the test
        transaction.execute("INSERT INTO namespaces (name) VALUES ('x')")
        transaction.publish("x", ContainerCreate("a", "", ""))
        raise ZeroDivisionError
    assert stores.namespaces.list() == []
    assert stores.events == []


def test_many_threads(stores: Stores) -> None:
    def churn(number: int) -> None:
        for turn in range(5):
            stores.containers.create(NS, container(f"c{number}-{turn}"))
            assert stores.containers.get(NS, f"c{number}-{turn}")
            if turn % 2:
                stores.containers.delete(NS, f"c{number}-{turn}")

    assert in_threads(*(lambda number=number: churn(number) for number in range(8))) == [None] * 8
    assert len(ids(stores)) == 8 * 3


def test_changes_tell_whether_an_answer_may_differ(stores: Stores) -> None:
    before = stores.database.changes
    stores.containers.list(NS)
    with pytest.raises(NotFound):
        stores.containers.delete(NS, "nobody")
    assert stores.database.changes == before
    stores.containers.create(NS, container())
    assert stores.database.changes > before


def _damage_junk(path: Path) -> None:
    path.write_bytes(b"junk" * 5000)


def _damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def _damage_truncated(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2 + 100)


def _damage_pages(path: Path) -> None:
    with path.open("r+b") as file:
        for page in range(1, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(b"\xa5" * 64)


def _damage_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"SQLite format 4")


def _damage_schema(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE leases")
    connection.close()


def _damage_gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    "damage",
    [_damage_junk, _damage_empty, _damage_truncated, _damage_pages, _damage_header, _damage_schema, _damage_gone],
)
def test_a_damaged_database_is_put_aside_and_restored(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    with open_stores(tmp_path) as stores:
        stores.containers.create(NS, container("a", labels={"k": "v" * 3000}))
        expected = stores.containers.get(NS, "a")
    damage(tmp_path / "metadata.db")
    with open_stores(tmp_path) as stores:
        assert stores.containers.get(NS, "a") == expected
        assert not stores.database.has_gaps
    aside = [path.name for path in tmp_path.glob("metadata.db.damaged-*")]
    assert len(aside) == (0 if damage is _damage_gone else 1)


def test_the_older_copy_is_used_if_the_newest_is_damaged_too(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with open_stores(tmp_path) as stores:
            stores.containers.create(NS, container(name))
    _damage_junk(tmp_path / "metadata.db")
    _damage_junk(tmp_path / "metadata.db.copy")
    with open_stores(tmp_path) as stores:
        assert ids(stores) == ["a"]


def test_a_log_without_its_database_is_not_replayed_into_a_copy(tmp_path: Path) -> None:
    with open_stores(tmp_path) as stores:
        stores.containers.create(NS, container("a"))
    with open_stores(tmp_path) as stores:
        stores.containers.delete(NS, "a")
        stores.containers.create(NS, container("b"))
        log = (tmp_path / "metadata.db-wal").read_bytes()
    shutil.copy(tmp_path / "metadata.db.copy.older", tmp_path / "metadata.db.copy")
    (tmp_path / "metadata.db").unlink()
    (tmp_path / "metadata.db-wal").write_bytes(log)
    with open_stores(tmp_path) as stores:
        assert ids(stores) == ["a"]


def test_a_sound_database_has_no_gaps(tmp_path: Path) -> None:
    with open_stores(tmp_path) as stores:
        stores.containers.create(NS, container("a"))
    database = Database(tmp_path / "metadata.db", lambda ns, event: None)
    assert not database.has_gaps
    database.close()


def test_gaps_stay_until_they_are_filled(tmp_path: Path) -> None:
    for _ in range(2):  # a crash before the stores have adopted what they have
        database = Database(tmp_path / "metadata.db", lambda ns, event: None)
        assert database.has_gaps
        database.close()
    with open_stores(tmp_path) as stores:
        assert not stores.database.has_gaps
    database = Database(tmp_path / "metadata.db", lambda ns, event: None)
    assert not database.has_gaps
    database.close()


def test_an_older_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    with open_stores(tmp_path) as stores:
        stores.containers.create(NS, container("a"))
    path = tmp_path / "metadata.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript("DROP TABLE sandboxes; PRAGMA user_version = 1;")
    connection.close()
    with open_stores(tmp_path) as stores:
        assert [one.id for one in stores.containers.list(NS)] == ["a"]
        assert stores.sandboxes.create(NS, Sandbox("s1")) == stores.sandboxes.get(NS, "s1")
    assert not list(tmp_path.glob("*.damaged-*"))


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    with open_stores(tmp_path):
        pass
    path = tmp_path / "metadata.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 1000")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(NewerSchemaError, match=r"version 1000.*newer pyctrd"):
        Database(path, lambda ns, event: None)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.damaged-*"))


def test_a_database_in_use_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_stores(tmp_path) as stores:
        stores.containers.create(NS, container("a"))
    other = sqlite3.connect(tmp_path / "metadata.db", isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **kwargs: connect(path, **{**kwargs, "timeout": 0.0}))
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        Database(tmp_path / "metadata.db", lambda ns, event: None)
    other.close()
    assert not list(tmp_path.glob("*.damaged-*"))


def test_a_copy_is_made_when_changes_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyctrd.metadata.copies._QUIET", 0.01)
    with open_stores(tmp_path) as stores:
        stores.containers.create(NS, container("a"))
        # On a slow machine there may be one of the empty database before.
        for _ in range(3000):
            if (tmp_path / "metadata.db.copy").exists():
                with closing(sqlite3.connect(tmp_path / "metadata.db.copy")) as copy:
                    if copy.execute("SELECT id FROM containers").fetchall() == [("a",)]:
                        return
            threading.Event().wait(0.01)
        pytest.fail("there is no copy with the container")


def test_rows_are_dated_by_the_clock(tmp_path: Path) -> None:
    clock = Clock()
    with open_stores(tmp_path, clock) as stores:
        created = stores.containers.create(NS, container("a"))
        assert created.created_at == created.updated_at == clock.now
        clock.advance(hours=1)
        updated = stores.containers.update(NS, container("a", image="i"), ("image",))
        assert (updated.created_at, updated.updated_at) == (created.created_at, clock.now)
        assert stores.containers.get(NS, "a") == updated


def test_two_daemons_refuse_one_root(tmp_path: Path) -> None:
    lock = StateLock.take(tmp_path / "lock")
    with pytest.raises(Unavailable, match=rf"{tmp_path} is in use by another pyctrd, pid \d+: unavailable"):
        StateLock.take(tmp_path / "lock")
    lock.close()
    StateLock.take(tmp_path / "lock").close()
