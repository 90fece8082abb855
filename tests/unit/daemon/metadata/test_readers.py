"""Reads: one moment, a thread each, and errors that a client may be told."""

import threading

import pytest

from pyctr_wire.errors import DataLoss
from support.stores import NS, Stores, container


def test_a_snapshot_shows_one_moment(stores: Stores) -> None:
    with stores.database.snapshot() as reader:
        assert reader.execute("SELECT count(*) FROM containers").fetchone() == (0,)
        writer = threading.Thread(target=stores.containers.create, args=(NS, container()))
        writer.start()
        writer.join(30)
        assert reader.execute("SELECT count(*) FROM containers").fetchone() == (0,)
    assert [found.id for found in stores.containers.list(NS)] == ["c1"]


def test_a_reader_cannot_write(stores: Stores) -> None:
    with pytest.raises(Exception, match="readonly"):
        stores.database.read().execute("DELETE FROM containers")


def test_damage_that_a_read_meets_is_told(stores: Stores) -> None:
    stores.containers.create(NS, container("c1", labels={"k": "v" * 4000}))
    stores.database._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    query = "SELECT rootpage FROM sqlite_master WHERE name = 'containers'"
    (page,) = stores.database._writer.execute(query).fetchone()
    with (stores.root / "metadata.db").open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(DataLoss, match="restart pyctrd to rebuild it"):
        stores.containers.list(NS)
