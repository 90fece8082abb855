"""F19: the database is damaged, lost or too new; containers run on, and are managed again by the next daemon."""

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pyctr_wire.containerd.types.task import task_pb2 as types
from support.containers import Containers
from support.daemon_process import DaemonProcess

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("leaving_nothing")]

PAGE = 4096


@pytest.fixture
def daemon() -> Iterator[DaemonProcess]:
    with DaemonProcess() as process:
        yield process


def truncated(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2 // PAGE * PAGE)


def torn(path: Path) -> None:
    """Pages of which only the first half was written."""
    data = bytearray(path.read_bytes())
    for start in range(PAGE, len(data), PAGE):
        data[start + PAGE // 2 : start + PAGE] = bytes(PAGE // 2)
    path.write_bytes(data)


def flipped(path: Path) -> None:
    """A bit in each page is wrong, in the byte that says what it is: in most others it could pass for data."""
    data = bytearray(path.read_bytes())
    for start in range(PAGE, len(data), PAGE):
        data[start] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def missing(path: Path) -> None:
    path.unlink()


def of_something_else(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE recipes (name TEXT)")


DAMAGES = (truncated, torn, flipped, empty, missing, of_something_else)


def damage_database(daemon: DaemonProcess, damage: Callable[[Path], None]) -> None:
    """Damage the file that holds everything; what a killed daemon left in the log is moved there before."""
    path = daemon.root / "metadata.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damage(path)


def run_two(containers: Containers) -> dict[str, int]:
    pids = {id: containers.run(id, "sleep", "1000") for id in ("one", "two")}
    containers.exec("one", "probe", "sleep", "1000")
    return pids


def check_works(containers: Containers, pids: dict[str, int]) -> None:
    """Everything that one does with a container: it is listed, runs with the same pid, execs, ends, goes."""
    assert sorted(containers.ids()) == sorted(pids)
    assert sorted(containers.task_ids()) == sorted(pids)
    for id, pid in pids.items():
        assert containers.status(id) == types.RUNNING
        assert f"{id} {pid} RUNNING" in [
            " ".join(line.split()) for line in containers.daemon.ctr("tasks", "ls").splitlines()
        ]
    assert containers.status("one", "probe") == types.RUNNING
    containers.exec("two", "another", "sh", "-c", "exit 3")
    assert containers.wait("two", "another").status == 3
    containers.daemon.ctr("tasks", "kill", "--signal", "SIGKILL", "one")
    assert containers.wait("one").status == 137
    assert containers.delete("one").status == 137
    # The record is whole: another task can be made of it.
    containers.create("one")
    containers.start("one")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_restored_from_a_copy(containers: Containers, daemon: DaemonProcess, damage: Callable[[Path], None]) -> None:
    daemon.ctr("namespaces", "create", "other", "a=b")
    daemon.ctr("leases", "create", "--id", "mine")
    pids = run_two(containers)
    daemon.ctr("containers", "label", "one", "color=green")
    daemon.stop()

    damage_database(daemon, damage)
    daemon.start()

    assert "a=b" in daemon.ctr("namespaces", "ls")
    assert daemon.ctr("leases", "ls", "-q").split() == ["mine"]
    assert "green" in daemon.ctr("containers", "info", "one")
    check_works(containers, pids)
    assert len(list(daemon.root.glob("metadata.db.damaged-*"))) == (0 if damage is missing else 1)
    for id in pids:
        containers.remove(id)
    daemon.ctr("leases", "rm", "--sync", "mine")


@pytest.mark.parametrize("damage", [flipped, missing], ids=lambda damage: damage.__name__)
def test_rebuilt_without_any_copy(
    containers: Containers, daemon: DaemonProcess, damage: Callable[[Path], None]
) -> None:
    """What runs is known from its bundle."""
    pids = run_two(containers)
    daemon.kill()

    damage_database(daemon, damage)
    for path in daemon.root.glob("metadata.db.copy*"):
        path.unlink()
    daemon.start()

    check_works(containers, pids)
    daemon.restart()
    for id in pids:
        containers.remove(id)
    assert containers.ids() == []


def test_damaged_again_and_again(containers: Containers, daemon: DaemonProcess) -> None:
    """Each time from what the last rebuild had made."""
    pids = run_two(containers)
    for damage in (flipped, truncated, empty):
        daemon.kill()
        damage_database(daemon, damage)
        daemon.start()
        assert sorted(containers.ids()) == sorted(containers.task_ids()) == sorted(pids)
    check_works(containers, pids)


def test_a_newer_schema_is_refused(containers: Containers, daemon: DaemonProcess) -> None:
    """Going back to an older daemon loses nothing: it says what to do, and touches nothing."""
    pids = run_two(containers)
    daemon.stop()
    path = daemon.root / "metadata.db"
    with closing(sqlite3.connect(path)) as database:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        database.execute("PRAGMA user_version = 1000")
    before, log_before = path.read_bytes(), daemon.log_text()

    daemon.start(wait=False)
    assert daemon.wait_ended() == 1

    told = daemon.log_text().removeprefix(log_before)
    assert told.startswith("pyctrd: ")
    assert "schema version 1000" in told
    assert "start the newer pyctrd again" in told
    assert len(told.splitlines()) == 1
    assert path.read_bytes() == before
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {version}")
    daemon.start()
    check_works(containers, pids)
