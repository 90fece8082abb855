"""The reserve: blocks that deletions may use, on a disk that has no others."""

import os
from pathlib import Path

import pytest

from pyctr_wire.errors import ResourceExhausted
from pyctrd.metadata.database import Database
from pyctrd.metadata.reserve import SIZE, Reserve


class Disk:
    """What statvfs and fallocate say: a disk with so many bytes free."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 1 << 30
        monkeypatch.setattr(os, "statvfs", self._statvfs)
        monkeypatch.setattr(os, "posix_fallocate", self._fallocate)

    def _statvfs(self, _path: object) -> os.statvfs_result:
        return os.statvfs_result((4096, 4096, 0, 0, self.free // 4096, 0, 0, 0, 0, 255))

    def _fallocate(self, fd: int, offset: int, length: int) -> None:
        missing = max(0, offset + length - os.fstat(fd).st_size)
        if missing > self.free:
            raise OSError(28, "No space left on device")
        self.free -= missing
        os.ftruncate(fd, max(offset + length, os.fstat(fd).st_size))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_it_is_held_from_the_start(tmp_path: Path) -> None:
    Reserve(tmp_path / "reserve").keep()

    assert (tmp_path / "reserve").stat().st_blocks * 512 >= SIZE


def test_it_is_lent_only_on_a_full_disk(tmp_path: Path, disk: Disk) -> None:
    reserve = Reserve(tmp_path / "reserve")

    with reserve.lent():
        assert (tmp_path / "reserve").stat().st_size == SIZE

    disk.free = 0
    with reserve.lent():
        assert (tmp_path / "reserve").stat().st_size == 0


def test_what_would_grow_is_refused_until_it_is_whole_again(tmp_path: Path, disk: Disk) -> None:
    reserve = Reserve(tmp_path / "reserve")
    disk.free = 0
    reserve.keep()  # so far it is whole

    with reserve.lent():
        disk.free = SIZE // 2
        with pytest.raises(ResourceExhausted, match="no space left"):
            reserve.keep()
    assert (tmp_path / "reserve").stat().st_size == SIZE // 2
    with pytest.raises(ResourceExhausted):
        reserve.keep()

    disk.free = SIZE
    reserve.keep()
    assert (tmp_path / "reserve").stat().st_size == SIZE


def test_two_deletions_share_it(tmp_path: Path, disk: Disk) -> None:
    reserve = Reserve(tmp_path / "reserve")
    disk.free = 0

    with reserve.lent():
        disk.free = SIZE
        with reserve.lent():
            disk.free = SIZE
        assert (tmp_path / "reserve").stat().st_size == 0
    assert (tmp_path / "reserve").stat().st_size == SIZE


def test_only_a_deletion_may_use_it(tmp_path: Path, disk: Disk) -> None:
    disk.free = 0
    database = Database(tmp_path / "metadata.db", lambda ns, event: None)
    try:
        with pytest.raises(ResourceExhausted), database.transaction():
            pass
        with database.freeing() as transaction:
            transaction.execute("DELETE FROM containers")
    finally:
        database.close()
