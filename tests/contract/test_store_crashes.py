"""The daemon is killed between any two steps of its stores: rows and files still tell the same afterwards."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.dying_stores import POINTS, check_after, scenario
from support.stores import Stores, names, open_stores

TESTS = Path(__file__).parent.parent


def die(root: Path, point: str, turn: int) -> bool:
    """Run the scenario until it dies at a point; return False if it never got there."""
    command = [sys.executable, "-m", "support.dying_stores", str(root), point, str(turn)]
    result = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(TESTS)}, capture_output=True, check=False)
    assert result.returncode in (0, -signal.SIGKILL), result.stderr.decode()
    return result.returncode != 0


def check_consistent(stores: Stores) -> None:
    """No row without its files, and after a collection no file without its row."""
    stores.collector.collect()
    for digest in stores.digests():
        assert stores.content.verify(digest)
    files = {f"sha256:{path.name}" for path in (stores.root / "content" / "blobs" / "sha256").iterdir()}
    assert files == set(stores.digests())
    overlay = stores.snapshots.named("overlayfs")
    directories = [path for path in (stores.root / "snapshots" / "overlayfs").iterdir() if path.name.isdecimal()]
    assert len(directories) == len(names(overlay))
    assert all((path / "fs").is_dir() and (path / "meta.json").is_file() for path in directories)
    ingests = list((stores.root / "content" / "ingest").iterdir())
    assert len(ingests) <= len(stores.content.list_statuses("test"))


RUNNING = [point for point in POINTS if not point.startswith(("database", "content adopted"))]


def full(*turns: int) -> list[object]:
    """Return parameters for the long matrices."""
    return [pytest.param(turn, marks=pytest.mark.full) for turn in turns]


@pytest.mark.parametrize("turn", [1, *full(2, 3)])
@pytest.mark.parametrize("point", RUNNING)
def test_killed_after(tmp_path: Path, point: str, turn: int) -> None:
    died = die(tmp_path, point, turn)
    with open_stores(tmp_path) as stores:
        check_consistent(stores)
        if died:
            scenario(stores)
        check_after(stores)
        check_consistent(stores)


@pytest.mark.parametrize("turn", [4, 6, 8, 10, *full(3, 5, 7, 9, 11, 12)])
def test_killed_after_any_commit(tmp_path: Path, turn: int) -> None:
    assert die(tmp_path, "committed", turn)
    with open_stores(tmp_path) as stores:
        check_consistent(stores)
        scenario(stores)
        check_after(stores)


@pytest.mark.parametrize("damage", [b"", b"junk" * 3000])
@pytest.mark.parametrize("point", ["database put aside", "database restored", "content adopted", "committed"])
def test_killed_while_a_damaged_database_is_rebuilt(tmp_path: Path, point: str, damage: bytes) -> None:
    with open_stores(tmp_path) as stores:
        scenario(stores)
    (tmp_path / "metadata.db").write_bytes(damage)
    # The copy is as bad, so all must come from disk.
    (tmp_path / "metadata.db.copy").write_bytes(damage)
    assert die(tmp_path, point, 1)
    with open_stores(tmp_path) as stores:
        check_after(stores)
        check_consistent(stores)
        scenario(stores)
