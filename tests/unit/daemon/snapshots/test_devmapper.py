"""Whose a thin pool is and what its options do, as far as that can be told without the device mapper."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pyctr_wire.errors import ResourceExhausted
from pyctrd.core.snapshots import Kind
from pyctrd.core.snapshotter_settings import Devmapper as Settings
from pyctrd.core.snapshotter_settings import Snapshotters
from pyctrd.snapshots.devmapper import Devmapper
from pyctrd.snapshots.directories import Note
from pyctrd.snapshots.driver import Unusable
from pyctrd.snapshots.drivers import built_in

Fill = Callable[..., None]
NOTE = Note("", "key", None, Kind.ACTIVE, {}, 0, 0)
BLOCKS, METADATA_BLOCKS = 16384, 4096  # of the pool


@pytest.fixture
def fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fill:
    """Have a `dmsetup` that knows of one pool, and say how many blocks of it are in use.

    It writes down how it is called, as mkfs and blkdiscard do.
    """
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    record = f'#!/bin/sh\necho "${{0##*/}} $*" >>{tmp_path}/calls\n'
    for program in ("mkfs.ext4", "mkfs.xfs", "blkdiscard"):
        (programs / program).write_text(record)

    def use(blocks: int, metadata: int = 12) -> None:
        status = f"0 2097152 thin-pool 1 {metadata}/{METADATA_BLOCKS} {blocks}/{BLOCKS} - rw"
        (programs / "dmsetup").write_text(f"{record}echo {status}\n")
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


# What the options do.


def calls(tmp_path: Path) -> list[str]:
    """Return the commands but those that only ask, and forget them."""
    record = tmp_path / "calls"
    lines = record.read_text().splitlines()
    record.unlink()
    return [line for line in lines if not line.startswith("dmsetup status")]


def directory(root: Path, number: int) -> Path:
    path = root / str(number)
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("data", "metadata", "least", "free"),
    [
        (BLOCKS - 300, 12, "10%", "1 % of its data"),
        (0, METADATA_BLOCKS - 300, "10%", "7 % of its metadata"),
        (BLOCKS // 2 + 1, 12, "50%", "49 % of its data"),
        (BLOCKS, 12, "1%", "0 % of its data"),
    ],
)
def test_less_than_the_least_free_space_makes_nothing_new(
    fill: Fill, root: Path, tmp_path: Path, data: int, metadata: int, least: str, free: str
) -> None:
    """What is there works on, and goes: also with a daemon that finds the pool so."""
    settings = Settings("pool", min_free_space=least)
    before = directory(root, 1)
    Devmapper(root, settings).create(before, (), NOTE)
    fill(data, metadata)
    driver = Devmapper(root, settings)
    calls(tmp_path)

    for parents in ((), (before,)):
        with pytest.raises(ResourceExhausted) as refused:
            driver.create(root / "2", parents, NOTE)
        assert str(refused.value) == (
            f"the pool pool has {free} free, less than the {least[:-1]} % of"
            " snapshotters.devmapper.min_free_space: remove snapshots, or enlarge it: resource exhausted"
        )

    assert calls(tmp_path) == []
    assert [mount.source for mount in driver.mounts(before, (), Kind.ACTIVE)] == ["/dev/mapper/pool-snap-1"]
    driver.remove(before)
    assert "dmsetup message pool 0 delete 1" in calls(tmp_path)


@pytest.mark.parametrize(("data", "least"), [(BLOCKS // 2, "50%"), (BLOCKS, "0%"), (BLOCKS * 9 // 10, "10%")])
def test_no_less_than_the_least_free_space_is_enough(fill: Fill, root: Path, data: int, least: str) -> None:
    driver = Devmapper(root, Settings("pool", min_free_space=least))
    fill(data)

    assert driver.create(directory(root, 1), (), NOTE)


@pytest.mark.parametrize(
    ("size", "sectors"), [("64MB", 1 << 17), ("1 GiB", 1 << 21), ("512k", 1 << 10), ("10GB", 10 << 21)]
)
def test_the_size_of_a_device(fill: Fill, root: Path, tmp_path: Path, size: str, sectors: int) -> None:
    """Of one without a parent; others have their parent's, whatever is configured now."""
    first, second = directory(root, 1), directory(root, 2)
    Devmapper(root, Settings("pool", base_image_size=size)).create(first, (), NOTE)
    Devmapper(root, Settings("pool", base_image_size="2MB")).create(second, (first,), NOTE)

    made = dict.fromkeys(line for line in calls(tmp_path) if line.startswith("dmsetup create"))
    assert list(made) == [  # each more than once, as none is there afterwards
        f"dmsetup create pool-snap-{number} --table 0 {sectors} thin /dev/mapper/pool {number}" for number in (1, 2)
    ]


@pytest.mark.parametrize(
    ("fs_type", "options", "command", "mounted_with"),
    [
        ("ext4", "", "mkfs.ext4 -q -E nodiscard,lazy_itable_init=0,lazy_journal_init=0", ("rw",)),
        ("ext4", " -L  a ", "mkfs.ext4 -q -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 -L a", ("rw",)),
        ("xfs", "-m crc=0", "mkfs.xfs -q -K -m crc=0", ("rw", "nouuid")),
    ],
)
def test_the_file_system_of_a_device(
    fill: Fill, root: Path, tmp_path: Path, fs_type: str, options: str, command: str, mounted_with: tuple[str, ...]
) -> None:
    """It is made once: what is on top of it is a copy."""
    driver = Devmapper(root, Settings("pool", fs_type=fs_type, fs_options=options))
    first = directory(root, 1)

    driver.create(first, (), NOTE)
    made = driver.create(directory(root, 2), (first,), NOTE)

    assert [line for line in calls(tmp_path) if line.startswith("mkfs")] == [f"{command} /dev/mapper/pool-snap-1"]
    assert not isinstance(made, Note)
    assert [(mount.type, mount.options) for mount in made] == [(fs_type, mounted_with)]


def test_a_file_system_that_cannot_be_made_is_told(fill: Fill, root: Path) -> None:
    with pytest.raises(Unusable, match=r"there is no mkfs\.zzfs in \$PATH"):
        Devmapper(root, Settings("pool", fs_type="zzfs"))


@pytest.mark.parametrize("discards", [True, False])
def test_blocks_are_discarded_before_the_device_goes(fill: Fill, root: Path, tmp_path: Path, *, discards: bool) -> None:
    driver = Devmapper(root, Settings("pool", discard_blocks=discards))
    made = directory(root, 1)
    driver.create(made, (), NOTE)
    calls(tmp_path)

    driver.remove(made)

    *before, last = calls(tmp_path)
    assert last == "dmsetup message pool 0 delete 1"
    assert ("blkdiscard /dev/mapper/pool-snap-1" in before) is discards
    assert not made.exists()


def test_another_root_path(fill: Fill, tmp_path: Path) -> None:
    """What the pool holds is noted there."""
    place = tmp_path / "elsewhere"

    usable, _ = built_in(tmp_path / "own", Snapshotters(devmapper=Settings("pool", root_path=str(place))))

    assert {driver.name: driver.root for driver in usable}["devmapper"] == place
    assert (place / "pool").read_text() == "pool"
    assert not (tmp_path / "own/devmapper").exists()
