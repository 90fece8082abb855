"""The content store: writers, namespaces, leases, damage."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyctr_wire.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from pyctrd.content.ingests import IngestFile
from pyctrd.content.store import ContentStore
from pyctrd.core.content import BlobInfo, Sharing
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.digests import digest_of
from pyctrd.core.events import ContentCreate, ContentDelete
from pyctrd.core.leases import Lease, Resource
from pyctrd.core.namespaces import Namespace
from pyctrd.metadata.database import Database, Transaction
from support.stores import NS, Stores, open_stores

DATA = b"some bytes"
DIGEST = digest_of(DATA)


def test_a_blob_from_write_to_read(stores: Stores) -> None:
    with stores.content.open_writer(NS, "ref", total=len(DATA)) as writer:
        writer.write(DATA[:4])
        writer.write(DATA[4:])
        assert (writer.offset, writer.total, writer.digest()) == (len(DATA), len(DATA), DIGEST)
        assert writer.commit(expected=DIGEST, labels={"a": "1", "b": ""}) == DIGEST
    info = stores.content.info(NS, DIGEST)
    assert info == BlobInfo(DIGEST, len(DATA), stores.clock.now, stores.clock.now, {"a": "1"})
    fd, size = stores.content.open_blob(NS, DIGEST)
    assert (os.read(fd, 100), size) == (DATA, len(DATA))
    os.close(fd)
    assert stores.events == [(NS, ContentCreate(DIGEST, len(DATA)))]
    assert stores.content.list_statuses(NS) == []
    assert stores.blob_file(DIGEST).stat().st_mode & 0o7777 == 0o444
    assert not list((stores.root / "content" / "ingest").iterdir())


def test_an_empty_blob(stores: Stores) -> None:
    with stores.content.open_writer(NS, "ref") as writer:
        assert writer.commit() == digest_of(b"")
    assert stores.content.info(NS, digest_of(b"")).size == 0


def test_directories_are_private(stores: Stores) -> None:
    assert (stores.root / "content").stat().st_mode & 0o777 == 0o700


@settings(max_examples=15)
@given(st.lists(st.binary(max_size=5000), max_size=5), st.sampled_from(["sha256", "sha384", "sha512"]), st.data())
def test_an_interrupted_write_is_resumed(
    stores: Stores, parts: list[bytes], algorithm: str, data: st.DataObject
) -> None:
    """Whatever was written before each interruption counts, and the hash is that of the whole."""
    whole = b"".join(parts)
    digest = f"{algorithm}:{hashlib.new(algorithm, whole).hexdigest()}"
    expect_at_open = data.draw(st.booleans())
    try:
        for part in parts:
            with stores.content.open_writer(NS, "ref", expected=digest if expect_at_open else "") as writer:
                writer.write(part)
        with stores.content.open_writer(NS, "ref") as writer:
            assert writer.offset == len(whole)
            writer.commit(len(whole), digest)
    except AlreadyExists:
        assert stores.content.info(NS, digest).size == len(whole)
    assert stores.content.verify(digest)
    for batch in list(stores.content.list(NS)):
        for blob in batch:
            stores.content.delete(NS, blob.digest)
    for status in stores.content.list_statuses(NS):
        stores.content.abort(NS, status.ref)


def test_a_write_survives_the_daemon(tmp_path: Path) -> None:
    with open_stores(tmp_path) as stores:
        writer = stores.content.open_writer(NS, "ref", total=len(DATA), expected=DIGEST)
        writer.write(DATA[:4])
        started_at = writer.started_at
        assert writer.updated_at >= started_at
    with open_stores(tmp_path) as stores:
        status = stores.content.status(NS, "ref")
        assert (status.offset, status.total, status.expected, status.started_at) == (4, 10, DIGEST, started_at)
        assert status.updated_at >= started_at
        with stores.content.open_writer(NS, "ref") as resumed:
            resumed.write(DATA[4:])
            assert resumed.commit() == DIGEST
    writer.close()


@pytest.mark.parametrize("late", [False, True])
def test_a_blob_that_is_collected_while_a_writer_looks_for_it_is_written_again(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, *, late: bool
) -> None:
    stores.leases.create(NS, Lease("l"))
    stores.content.write_blob(NS, "old", DATA)
    kind = "freeing" if late else "transaction"
    begin = getattr(Database, kind)

    @contextmanager
    def begin_too_late(database: Database) -> Iterator[Transaction]:
        monkeypatch.undo()
        stores.collector.collect()
        with begin(database) as transaction:
            yield transaction

    writer = stores.content.open_writer(NS, "ref", lease="l") if late else None
    monkeypatch.setattr(Database, kind, begin_too_late)
    if writer is None:
        writer = stores.content.open_writer(NS, "ref", expected=DIGEST, lease="l")
    else:
        writer.expect(DIGEST)

    writer.write(DATA)
    writer.commit()
    stores.collector.collect()
    assert stores.content.verify(DIGEST)
    assert stores.content.info(NS, DIGEST).size == len(DATA)


def test_an_ingest_that_was_cut_fails_at_commit_and_is_written_again(stores: Stores) -> None:
    with stores.content.open_writer(NS, "ref", len(DATA), DIGEST) as writer:
        writer.write(DATA[:6])
    file = next((stores.root / "content" / "ingest").glob("*/data"))
    os.truncate(file, 2)
    with stores.content.open_writer(NS, "ref", len(DATA), DIGEST) as writer:
        assert writer.offset == 2
        writer.write(DATA[6:])
        with pytest.raises(FailedPrecondition, match=r'^"ref" failed size validation: 6 != 10: failed precondition$'):
            writer.commit()
    with stores.content.open_writer(NS, "ref", len(DATA), DIGEST) as writer:
        writer.truncate(0)
        writer.write(DATA)
        writer.commit()


def test_a_wrong_digest_keeps_the_ingest_and_unlocks_the_ref(stores: Stores) -> None:
    writer = stores.content.open_writer(NS, "ref")
    writer.write(b"wrong")
    text = f"unexpected commit digest {digest_of(b'wrong')}, expected {DIGEST}: failed precondition"
    with pytest.raises(FailedPrecondition, match=f"^{re.escape(text)}$"):
        writer.commit(expected=DIGEST)
    assert stores.content.status(NS, "ref").offset == 5
    with stores.content.open_writer(NS, "ref") as again:
        assert again.offset == 5
    assert stores.digests() == []


def test_another_total_starts_over(stores: Stores) -> None:
    with stores.content.open_writer(NS, "ref", total=100) as writer:
        writer.write(b"old")
    with stores.content.open_writer(NS, "ref", total=len(DATA)) as writer:
        assert writer.offset == 0
        writer.write(DATA)
        assert writer.commit() == DIGEST


def test_a_ref_has_one_writer(stores: Stores) -> None:
    with stores.content.open_writer(NS, "ref") as writer:
        with pytest.raises(Unavailable, match=rf"^ref {NS}/ref locked for .*s \(since .*\): unavailable$"):
            stores.content.open_writer(NS, "ref")
        stores.content.open_writer("other", "ref").close()
        stores.content.abort(NS, "ref")
        with pytest.raises(Unavailable):
            stores.content.open_writer(NS, "ref")
        writer.write(DATA)
        with pytest.raises(NotFound):
            writer.commit()
    stores.content.open_writer(NS, "ref").close()
    with pytest.raises(FailedPrecondition, match="closed"):
        writer.write(DATA)


def test_a_failed_open_leaves_nothing_locked(stores: Stores) -> None:
    with pytest.raises(NotFound, match=r"^lease does not exist: not found$"):
        stores.content.open_writer(NS, "ref", lease="nobody")
    assert stores.content.locked_refs() == set()
    assert stores.content.list_statuses(NS) == []


def test_what_is_there_already(stores: Stores) -> None:
    stores.leases.create(NS, Lease("l"))
    stores.content.write_blob(NS, "ref", DATA)
    text = f"^content {DIGEST}: already exists$"
    with pytest.raises(AlreadyExists, match=text):
        stores.content.open_writer(NS, "other", expected=DIGEST, lease="l")
    assert stores.leases.list_resources(NS, "l") == [Resource(DIGEST, "content")]
    with stores.content.open_writer(NS, "late") as writer:
        writer.write(DATA)
        with pytest.raises(AlreadyExists, match=text):
            writer.commit(expected=DIGEST)
    stores.leases.create(NS, Lease("late"))
    with (
        stores.content.open_writer(NS, "later", lease="late") as writer,
        pytest.raises(AlreadyExists, match="expected digest"),
    ):
        writer.expect(DIGEST)
    assert stores.leases.list_resources(NS, "late") == [Resource(DIGEST, "content")]
    assert stores.content.list_statuses(NS) == []
    assert stores.content.write_blob(NS, "ref", DATA, Descriptor("x", DIGEST, len(DATA))) == DIGEST


def test_leases_hold_ingests_then_content(stores: Stores) -> None:
    stores.leases.create(NS, Lease("l"))
    with stores.content.open_writer(NS, "ref", lease="l") as writer:
        assert stores.leases.list_resources(NS, "l") == [Resource("ref", "ingests")]
        writer.write(DATA)
        writer.commit()
    assert stores.leases.list_resources(NS, "l") == [Resource(DIGEST, "content")]
    stores.content.delete(NS, DIGEST, lease="l")
    assert stores.leases.list_resources(NS, "l") == []
    assert stores.events[-1] == (NS, ContentDelete(DIGEST))


def test_a_namespace_sees_its_own_and_shares_what_it_can_name(stores: Stores) -> None:
    stores.content.write_blob("a", "ref", DATA)
    with pytest.raises(NotFound, match=f"^content {DIGEST}: not found$"):
        stores.content.info("b", DIGEST)
    with stores.content.open_writer("b", "ref", expected=DIGEST) as writer:
        assert (writer.offset, writer.digest()) == (len(DATA), DIGEST)
        # Whoever had it lets go, but it has been promised.
        stores.content.delete("a", DIGEST)
        stores.collector.collect()
        writer.commit(labels={"mine": "1"})
    assert stores.content.info("b", DIGEST).labels == {"mine": "1"}
    assert stores.content.verify(DIGEST)
    with stores.content.open_writer("c", "ref", total=3, expected=DIGEST) as writer:
        assert writer.offset == 0


@pytest.fixture
def isolated(stores: Stores) -> ContentStore:
    """The content of the same namespaces, which have nothing of each other."""
    return ContentStore(stores.root / "content", stores.database, Sharing.ISOLATED)


def test_isolated_namespaces_bring_their_own_bytes(stores: Stores, isolated: ContentStore) -> None:
    stores.content.write_blob("a", "ref", DATA)
    with isolated.open_writer("b", "ref", total=len(DATA), expected=DIGEST) as writer:
        assert writer.offset == 0
        with pytest.raises(FailedPrecondition):
            writer.commit()
    with isolated.open_writer("b", "ref", expected=DIGEST) as writer:
        writer.write(DATA)
        writer.commit()
    assert isolated.info("b", DIGEST).size == len(DATA)
    with pytest.raises(AlreadyExists):
        isolated.open_writer("b", "again", expected=DIGEST)
    assert len(list((stores.root / "content/blobs/sha256").iterdir())) == 1


@pytest.mark.parametrize(("label", "offset"), [("true", len(DATA)), ("True", 0), ("1", 0), ("", 0)])
def test_a_namespace_may_be_shareable(stores: Stores, isolated: ContentStore, label: str, offset: int) -> None:
    stores.namespaces.create(Namespace("common", {"containerd.io/namespace.shareable": label, "other": "true"}))
    for ns in ("private", "common"):
        isolated.write_blob(ns, "ref", DATA)
    with isolated.open_writer("b", "ref", expected=DIGEST) as writer:
        assert writer.offset == offset
    isolated.delete("common", DIGEST)
    with isolated.open_writer("c", "ref", expected=DIGEST) as writer:
        assert writer.offset == 0


def test_isolated_namespaces_get_no_blob_of_which_nobody_knows_whose_it_is(
    stores: Stores, isolated: ContentStore
) -> None:
    stores.content.write_blob("a", "ref", DATA)
    with stores.database.transaction() as transaction:
        transaction.execute("DELETE FROM blobs")
    isolated.adopt()
    assert stores.digests("a") == []
    stores.content.adopt()
    assert stores.digests("a") == [DIGEST]


def test_a_shared_writer_may_be_written_to(stores: Stores) -> None:
    stores.content.write_blob("a", "ref", DATA)
    with stores.content.open_writer("b", "append", expected=DIGEST) as writer:
        writer.write(b"!")
        assert writer.digest() == digest_of(DATA + b"!")
        with pytest.raises(FailedPrecondition):
            writer.commit()
    with stores.content.open_writer("b", "again", expected=DIGEST) as writer:
        writer.truncate(0)
        assert writer.offset == 0
        writer.write(DATA)
        assert writer.commit() == DIGEST


def test_labels(stores: Stores) -> None:
    stores.content.write_blob(NS, "ref", DATA, labels={"a": "1", "b": "2"})
    info = stores.content.info(NS, DIGEST)
    stores.clock.advance(seconds=1)
    updated = stores.content.update(NS, BlobInfo(DIGEST, 0, info.created_at, info.updated_at, {"b": ""}), ("labels.b",))
    assert (updated.labels, updated.size) == ({"a": "1"}, len(DATA))
    assert (updated.created_at, updated.updated_at) == (info.created_at, stores.clock.now)
    assert stores.content.info(NS, DIGEST) == updated
    with pytest.raises(InvalidArgument, match=r"^info\.Labels: "), stores.content.open_writer(NS, "x") as writer:
        writer.commit(labels={"k": "v" * 4096})


def test_lists_come_in_batches_of_a_hundred(stores: Stores) -> None:
    with stores.database.transaction() as transaction:
        for number in range(250):
            transaction.execute(
                "INSERT INTO blobs VALUES (?, ?, 1, ?, 0, 0)",
                (NS, digest_of(b"%d" % number), '{"odd":"yes"}' if number % 2 else "{}"),
            )
    batches = list(stores.content.list(NS))
    assert [len(batch) for batch in batches] == [100, 100, 50]
    digests = [blob.digest for batch in batches for blob in batch]
    assert digests == sorted(digests)
    assert sum(len(batch) for batch in stores.content.list(NS, ["labels.odd"])) == 125
    assert list(stores.content.list("nobody")) == []
    with pytest.raises(InvalidArgument):
        stores.content.list(NS, ["=="])


def test_statuses_are_filtered_by_ref(stores: Stores) -> None:
    for ref in ("layer-1", "layer-2", "config-1"):
        stores.content.open_writer(NS, ref).close()
    assert [status.ref for status in stores.content.list_statuses(NS)] == ["config-1", "layer-1", "layer-2"]
    assert [status.ref for status in stores.content.list_statuses(NS, ["ref~=^layer", "ref==x"])] == [
        "layer-1",
        "layer-2",
    ]
    with pytest.raises(NotFound):
        stores.content.status(NS, "nothing")
    with pytest.raises(NotFound):
        stores.content.abort(NS, "nothing")


@pytest.mark.parametrize("digest", ["", "sha256:x", "../../etc/passwd"])
def test_a_malformed_digest_is_refused_everywhere(stores: Stores, digest: str) -> None:
    for call in (stores.content.info, stores.content.open_blob, stores.content.delete, stores.content.read_path):
        with pytest.raises(InvalidArgument, match="failed validation"):
            call(NS, digest)


def test_a_cut_blob_is_noticed_and_fetched_again(stores: Stores) -> None:
    stores.content.write_blob(NS, "ref", DATA)
    stores.blob_file(DIGEST).chmod(0o600)
    os.truncate(stores.blob_file(DIGEST), 3)
    with pytest.raises(DataLoss, match="3 of 10 bytes"):
        stores.content.open_blob(NS, DIGEST)
    with stores.content.open_writer(NS, "ref", len(DATA), DIGEST) as writer:
        writer.write(DATA)
        writer.commit()
    assert stores.content.verify(DIGEST)


def test_a_missing_blob_is_noticed_and_fetched_again(stores: Stores) -> None:
    stores.content.write_blob(NS, "ref", DATA)
    stores.blob_file(DIGEST).unlink()
    with pytest.raises(DataLoss):
        stores.content.read_path(NS, DIGEST)
    assert stores.content.write_blob(NS, "ref", DATA, Descriptor("x", DIGEST, len(DATA))) == DIGEST
    assert stores.content.read_path(NS, DIGEST).read_bytes() == DATA


def test_a_flipped_bit_is_found_by_its_digest(stores: Stores) -> None:
    stores.content.write_blob(NS, "ref", DATA)
    stores.blob_file(DIGEST).chmod(0o600)
    stores.blob_file(DIGEST).write_bytes(b"Some bytes")
    assert not stores.content.verify(DIGEST)
    with pytest.raises(NotFound):
        stores.content.info(NS, DIGEST)
    assert not stores.content.verify(DIGEST)
    stores.content.write_blob(NS, "ref", DATA)
    assert stores.content.verify(DIGEST)


def test_a_full_disk_is_named_and_what_fitted_stays(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    def append(self: IngestFile, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with stores.content.open_writer(NS, "ref") as writer:
        writer.write(DATA[:4])
        with monkeypatch.context() as patch:
            patch.setattr(IngestFile, "append", append)
            with pytest.raises(ResourceExhausted, match=r'^ingest "ref": No space left on device: resource exhausted$'):
                writer.write(DATA[4:])
        assert writer.offset == 4
        writer.write(DATA[4:])
        assert writer.commit() == DIGEST


def test_no_descriptor_is_left_open(stores: Stores) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    stores.content.write_blob(NS, "warm", b"up")
    before = count()
    for number in range(5):
        stores.content.write_blob(NS, "ref", b"%d" % number)
        stores.content.open_writer(NS, "left").close()
    assert count() == before


def test_content_of_a_lost_database_is_kept_for_a_day(tmp_path: Path) -> None:
    with open_stores(tmp_path) as stores:
        stores.content.write_blob(NS, "ref", DATA)
        stores.snapshots.named("overlayfs").prepare(NS, "key")
    for file in tmp_path.glob("metadata.db*"):
        file.unlink()
    with open_stores(tmp_path) as stores:
        assert stores.digests() == [DIGEST]
        stores.collector.collect()
        assert stores.digests() == [DIGEST]
        stores.clock.advance(hours=25)
        stores.collector.collect()
        assert stores.digests() == []
        assert not stores.blob_file(DIGEST).exists()


def test_rows_of_an_old_copy_without_files_are_dropped(tmp_path: Path) -> None:
    with open_stores(tmp_path) as stores:
        stores.content.write_blob(NS, "ref", DATA)
    (tmp_path / "metadata.db").unlink()
    stores.blob_file(DIGEST).unlink()
    with open_stores(tmp_path) as stores:
        assert stores.digests() == []
