"""Whose a thin pool is, as far as that can be told without the device mapper."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pyctrd.core.snapshotter_settings import Devmapper as Settings
from pyctrd.snapshots.devmapper import Devmapper
from pyctrd.snapshots.driver import Unusable

Fill = Callable[[int], None]


@pytest.fixture
def fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fill:
    """Have a `dmsetup` that knows of one pool, and say how many blocks of it are in use."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    (programs / "mkfs.ext4").write_text("#!/bin/sh\n")

    def use(blocks: int) -> None:
        (programs / "dmsetup").write_text(f"#!/bin/sh\necho 0 2097152 thin-pool 1 12/4096 {blocks}/16384 - rw\n")
        for program in programs.iterdir():
            program.chmod(0o755)

    use(0)
    return use


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "devmapper"
    directory.mkdir()
    return directory


def test_what_it_has_filled_itself_is_its_own(fill: Fill, root: Path) -> None:
    Devmapper(root, Settings("pool"))
    fill(1)

    Devmapper(root, Settings("pool"))


def test_a_pool_that_somebody_else_has_filled_is_refused(fill: Fill, root: Path) -> None:
    """Its devices have the numbers that ours would get."""
    fill(1)
    for _ in range(2):
        with pytest.raises(Unusable, match=r"pool_name: pool holds devices that are not of .*make another one"):
            Devmapper(root, Settings("pool"))
    assert list(root.iterdir()) == []


def test_so_is_another_one_than_before(fill: Fill, root: Path) -> None:
    Devmapper(root, Settings("pool"))
    (root / "1").mkdir()
    fill(1)

    with pytest.raises(Unusable, match="pool_name: other holds devices"):
        Devmapper(root, Settings("other"))


def test_the_snapshots_of_earlier_versions_are_its_own(fill: Fill, root: Path) -> None:
    (root / "1").mkdir()
    fill(1)

    Devmapper(root, Settings("pool"))

    assert (root / "pool").read_text() == "pool"
