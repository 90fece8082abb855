"""Collections over real stores: what goes, what stays, what is told."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyctr_wire.errors import NotFound
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.digests import Digest
from pyctrd.core.events import ImageDelete, SnapshotRemove
from pyctrd.core.images import Image
from pyctrd.core.leases import Lease, Resource, for_a_call
from pyctrd.core.sandboxes import Sandbox
from pyctrd.gc.collector import Collected
from pyctrd.metadata import references
from support.stores import NS, Stores, container, infos, names, open_stores

PAST, FUTURE = "2025-01-01T00:00:00Z", "2030-01-01T00:00:00Z"


def write(stores: Stores, text: str, **labels: str) -> Digest:
    """Store a blob whose labels are gc.ref ones by their last part."""
    prefixed = {f"containerd.io/gc.{key.replace('__', '.')}": value for key, value in labels.items()}
    return stores.content.write_blob(NS, text, text.encode(), labels=prefixed)


def image(stores: Stores, name: str, target: str, **labels: str) -> None:
    prefixed = {f"containerd.io/gc.{key}": value for key, value in labels.items()}
    stores.images.create(NS, Image(name, Descriptor("type", target, 1), prefixed))


def chain(stores: Stores, *committed: str) -> None:
    """Commit snapshots, each on top of the one before."""
    overlay, parent = stores.snapshots.named("overlayfs"), ""
    for name in committed:
        overlay.prepare(NS, f"making {name}", parent)
        overlay.commit(NS, name, f"making {name}")
        parent = name


def directories(stores: Stores) -> list[str]:
    return sorted(path.name for path in (stores.root / "snapshots" / "overlayfs").iterdir())


def test_an_image_keeps_what_its_labels_reach(stores: Stores) -> None:
    layer, other = write(stores, "layer"), write(stores, "other")
    chain(stores, "one", "two")
    config = write(stores, "config", ref__snapshot__overlayfs="two")
    manifest = write(stores, "manifest", ref__content__config=config, ref__content__l__0=layer)
    image(stores, "image", manifest)
    collected = stores.collector.collect()
    assert collected == Collected((other,), {"overlayfs": 0, "native": 0}, 5)
    assert set(stores.digests()) == {layer, config, manifest}
    assert names(stores.snapshots.named("overlayfs")) == ["one", "two"]
    stores.images.delete(NS, "image")
    stores.events.clear()
    collected = stores.collector.collect()
    assert set(collected.content) == {layer, config, manifest}
    assert collected.snapshots["overlayfs"] == 2
    assert directories(stores) == []
    assert {event for _, event in stores.events} == {
        SnapshotRemove("one", "overlayfs"),
        SnapshotRemove("two", "overlayfs"),
    }
    assert not any(stores.blob_file(digest).exists() for digest in collected.content)


def test_a_container_keeps_its_snapshot_and_all_below(stores: Stores) -> None:
    chain(stores, "one", "two", "unused")
    overlay = stores.snapshots.named("overlayfs")
    overlay.prepare(NS, "rootfs", "two")
    stores.containers.create(NS, container(snapshotter="overlayfs", snapshot_key="rootfs"))
    stores.collector.collect()
    assert names(overlay) == ["one", "rootfs", "two"]
    stores.containers.delete(NS, "c1")
    stores.collector.collect()
    assert infos(overlay) == []


def test_leases(stores: Stores) -> None:
    child = write(stores, "child")
    parent = write(stores, "parent", ref__content=child)
    for name, labels in (
        ("plain", {}),
        ("flat", {"containerd.io/gc.flat": "1"}),
        ("late", {"containerd.io/gc.expire": FUTURE}),
    ):
        stores.leases.create(NS, Lease(name, labels))
    stores.leases.add_resource(NS, "plain", Resource(parent, "content"))
    stores.collector.collect()
    assert set(stores.digests()) == {parent, child}
    stores.leases.add_resource(NS, "flat", Resource(parent, "content"))
    stores.leases.delete(NS, "plain")
    stores.collector.collect()
    assert stores.digests() == [parent]
    stores.leases.add_resource(NS, "late", Resource(parent, "content"))
    stores.leases.delete(NS, "flat")
    stores.collector.collect()
    assert stores.digests() == [parent]
    stores.clock.advance(days=5000)
    stores.collector.collect()
    assert stores.digests() == []
    assert stores.leases.list(NS) == []


def test_a_flat_lease_keeps_a_snapshot_with_its_parents(stores: Stores) -> None:
    chain(stores, "one", "two", "three")
    stores.leases.create(NS, Lease("flat", {"containerd.io/gc.flat": "1"}))
    stores.leases.add_resource(NS, "flat", Resource("two", "snapshots/overlayfs"))
    stores.collector.collect()
    assert names(stores.snapshots.named("overlayfs")) == ["one", "two"]


def test_an_expired_image_goes_and_that_is_told(stores: Stores) -> None:
    target = write(stores, "target")
    image(stores, "expired", target, expire=PAST)
    image(stores, "kept", target, expire="no time")
    stores.events.clear()
    stores.collector.collect()
    assert [found.name for found in stores.images.list(NS)] == ["kept"]
    assert stores.events == [(NS, ImageDelete("expired"))]
    assert stores.digests() == [target]


def test_root_labels_and_back_references(stores: Stores) -> None:
    root = write(stores, "root", root="x")
    stores.containers.create(NS, container())
    log = write(stores, "log", bref__container="c1")
    stores.collector.collect()
    assert set(stores.digests()) == {root, log}
    stores.containers.delete(NS, "c1")
    stores.collector.collect()
    assert stores.digests() == [root]


def test_a_recently_used_snapshot_is_kept_by_what_asks_for_it(stores: Stores) -> None:
    overlay = stores.snapshots.named("overlayfs")
    for name, used_at in (("fresh", "2026-01-02T03:00:00Z"), ("stale", "2026-01-01T03:00:00Z")):
        overlay.prepare(NS, name, "", {"containerd.io/gc.cond.value-usedat": used_at})
        write(stores, name, root="x", cond__snapshot__overlayfs=f"usedat<1h|{name}")
    stores.collector.collect()
    assert names(overlay) == ["fresh"]
    stores.clock.advance(hours=1)
    stores.collector.collect()
    assert names(overlay) == []


def test_an_expired_lease_goes_whatever_its_labels_say(stores: Stores) -> None:
    image(stores, "kept", write(stores, "target"))
    labels = {"containerd.io/gc.expire": PAST, "containerd.io/gc.root": "x", "containerd.io/gc.bref.image": "kept"}
    stores.leases.create(NS, Lease("over", labels))
    stores.collector.collect()
    assert stores.leases.list(NS) == []


def test_references_do_not_cross_namespaces(stores: Stores) -> None:
    digest = write(stores, "shared")
    stores.images.create("other", Image("i", Descriptor("type", digest, 1)))
    stores.collector.collect()
    assert stores.digests() == []


def test_a_blob_stays_on_disk_while_any_namespace_sees_it(stores: Stores) -> None:
    digest = write(stores, "shared")
    stores.content.write_blob("other", "ref", b"shared", labels={"containerd.io/gc.root": "x"})
    assert stores.collector.collect().content == ()
    assert stores.digests("other") == [digest]
    assert stores.content.verify(digest)


def test_ingests_last_a_day_unless_a_lease_or_a_writer_has_them(stores: Stores) -> None:
    stores.leases.create(NS, Lease("l"))
    for ref, lease in (("free", ""), ("leased", "l")):
        with stores.content.open_writer(NS, ref, lease=lease) as writer:
            writer.write(b"x")
    with stores.content.open_writer(NS, "open"):
        stores.collector.collect()
        assert len(stores.content.list_statuses(NS)) == 3
        stores.clock.advance(hours=25)
        stores.collector.collect()
        assert [status.ref for status in stores.content.list_statuses(NS)] == ["leased", "open"]
    stores.leases.delete(NS, "l")
    stores.collector.collect()
    assert stores.content.list_statuses(NS) == []
    assert list((stores.root / "content" / "ingest").iterdir()) == []


def test_what_is_claimed_while_it_is_marked_stays(tmp_path: Path) -> None:
    """A client may refer to an object between the marking and the sweep."""
    with open_stores(tmp_path) as stores:
        digest, gone = write(stores, "claimed"), write(stores, "gone")

        find = references.find_garbage
        calls: list[int] = []

        def find_and_claim(*args: Any) -> references.Garbage:
            garbage = find(*args)
            if not calls:
                calls.append(1)
                image(stores, "claim", digest)
            return garbage

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(references, "find_garbage", find_and_claim)
            stores.collector.collect()
        assert stores.digests() == [digest]
        with pytest.raises(NotFound):
            stores.content.info(NS, gone)


def test_many_objects_are_collected_in_one_go(stores: Stores) -> None:
    with stores.database.transaction() as transaction:
        transaction.execute("INSERT OR IGNORE INTO namespaces (name) VALUES (?)", (NS,))
        for number in range(2000):
            transaction.execute(
                "INSERT INTO snapshots (id, ns, snapshotter, name, parent_id, kind, labels, created_at, updated_at)"
                " VALUES (?, ?, 'overlayfs', ?, ?, 3, '{}', 0, 0)",
                (number + 1, NS, f"s{number:04}", number or None),
            )
    stores.leases.create(NS, Lease("l"))
    stores.leases.add_resource(NS, "l", Resource("s0999", "snapshots/overlayfs"))
    stores.collector.collect()
    assert names(stores.snapshots.named("overlayfs")) == [f"s{number:04}" for number in range(1000)]


@pytest.mark.parametrize(
    ("labels", "is_due"), [({"mine": "1"}, False), ({"containerd.io/gc.ref.content.x": "sha256:" + 64 * "0"}, True)]
)
def test_only_a_change_of_what_is_kept_is_a_reason_to_collect(
    stores: Stores, labels: dict[str, str], is_due: bool
) -> None:
    digest = write(stores, "one")
    image(stores, "image", digest)
    stores.containers.create(NS, container())
    stores.sandboxes.create(NS, Sandbox("pod"))
    overlay = stores.snapshots.named("overlayfs")
    overlay.prepare(NS, "active", "")
    seen = [stores.database.garbage]
    changes: list[Callable[[], object]] = [
        lambda: stores.content.update(NS, replace(stores.content.info(NS, digest), labels=labels)),
        lambda: stores.images.update(NS, Image("image", Descriptor("type", digest, 1), labels)),
        lambda: stores.containers.update(NS, container(labels=labels)),
        lambda: stores.sandboxes.update(NS, Sandbox("pod", labels=labels), ("labels",)),
        lambda: overlay.update(NS, replace(overlay.stat(NS, "active"), labels=labels)),
    ]
    for change in changes:
        change()
        seen.append(stores.database.garbage)

    assert seen == [seen[0] + number * is_due for number in range(len(changes) + 1)]


def test_another_target_or_root_is_a_reason_to_collect(stores: Stores) -> None:
    image(stores, "image", write(stores, "one"))
    stores.containers.create(NS, container(snapshotter="overlayfs", snapshot_key="one"))
    before = stores.database.garbage

    stores.images.update(NS, Image("image", Descriptor("type", write(stores, "two"), 1)), ("target",))
    stores.containers.update(NS, container(snapshotter="overlayfs", snapshot_key="two"))

    assert stores.database.garbage == before + 2


def test_what_was_held_for_calls_goes_at_the_next_start(stores: Stores) -> None:
    made, kept = write(stores, "made"), write(stores, "kept")
    stores.leases.create(NS, for_a_call("call"))
    stores.leases.create(NS, Lease("client's"))
    stores.leases.add_resource(NS, "call", Resource(made, "content"))
    stores.leases.add_resource(NS, "client's", Resource(kept, "content"))

    stores.leases.end_calls()

    assert [lease.id for lease in stores.leases.list(NS)] == ["client's"]
    stores.collector.collect()
    assert stores.digests() == [kept]
