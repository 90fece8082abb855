"""What runs gets its record back from its bundle."""

from pathlib import Path

import pytest

from pyctr_wire.errors import NotFound
from pyctrd.core.anys import AnyValue
from pyctrd.runtime.bundle import Bundle, Bundles, Manifest
from pyctrd.runtime.creation import SPEC_URL
from pyctrd.runtime.rebuilt_records import rebuild_records
from support.stores import NS, Stores, container

SPEC = b'{"ociVersion":   "1.2.0"}'


@pytest.fixture
def bundles(tmp_path: Path) -> Bundles:
    (tmp_path / "state").mkdir()
    return Bundles(tmp_path / "state")


def add(bundles: Bundles, id: str) -> Bundle:
    return bundles.create(Manifest(NS, id, "io.containerd.runc.v2", "instance", 1), SPEC)


def rebuild(bundles: Bundles, stores: Stores) -> None:
    rebuild_records(bundles, stores.containers, stores.snapshots)


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_a_record_has_the_spec_and_the_snapshot(bundles: Bundles, stores: Stores, snapshotter: str) -> None:
    """And so keeps the snapshot from being collected."""
    add(bundles, "web")
    stores.snapshots.named(snapshotter).prepare(NS, "web", "", {})

    rebuild(bundles, stores)

    record = stores.containers.get(NS, "web")
    assert (record.runtime_name, record.spec) == ("io.containerd.runc.v2", AnyValue(SPEC_URL, SPEC))
    assert (record.snapshotter, record.snapshot_key) == (snapshotter, "web")
    stores.collector.collect()
    assert stores.snapshots.named(snapshotter).stat(NS, "web").name == "web"


def test_a_container_may_have_no_snapshot(bundles: Bundles, stores: Stores) -> None:
    """A committed one of its name is something else."""
    add(bundles, "web")
    overlayfs = stores.snapshots.named("overlayfs")
    overlayfs.prepare(NS, "key", "", {})
    overlayfs.commit(NS, "web", "key", {})

    rebuild(bundles, stores)

    record = stores.containers.get(NS, "web")
    assert (record.snapshotter, record.snapshot_key) == ("", "")


def test_a_record_that_is_there_stays(bundles: Bundles, stores: Stores) -> None:
    add(bundles, "web")
    stores.containers.create(NS, container("web", labels={"a": "b"}))

    rebuild(bundles, stores)

    assert stores.containers.get(NS, "web").labels == {"a": "b"}


def test_a_bundle_that_cannot_be_read_is_passed_over(bundles: Bundles, stores: Stores) -> None:
    (add(bundles, "broken").path / "config.json").unlink()
    bundles.retire(add(bundles, "deleted"))
    add(bundles, "web")

    rebuild(bundles, stores)

    assert [one.id for one in stores.containers.list(NS)] == ["web"]
    with pytest.raises(NotFound):
        stores.containers.get(NS, "deleted")
