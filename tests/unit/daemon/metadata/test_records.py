"""Namespaces, containers, images and leases: what clients rely on, texts included."""

import re
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest

from pyctr_wire.errors import AlreadyExists, ApiError, FailedPrecondition, InvalidArgument, NotFound
from pyctrd.core import events
from pyctrd.core.anys import AnyValue
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.digests import digest_of
from pyctrd.core.images import Image
from pyctrd.core.leases import Lease, Resource
from pyctrd.core.namespaces import Namespace
from pyctrd.core.sandboxes import Sandbox
from support.stores import NS, Stores, container

TARGET = Descriptor("application/vnd.oci.image.index.v1+json", digest_of(b"index"), 5, {"note": "x"})


def message(error: type[ApiError], text: str) -> AbstractContextManager[object]:
    """Expect an error and its whole text."""
    return pytest.raises(error, match=f"^{re.escape(text)}$")


class TestNamespaces:
    def test_a_missing_one_has_no_labels(self, stores: Stores) -> None:
        assert stores.namespaces.get("nobody") == Namespace("nobody")
        assert stores.namespaces.list() == []

    def test_any_write_makes_one(self, stores: Stores) -> None:
        stores.leases.create("by-lease", Lease("l"))
        stores.containers.create("by-container", container())
        assert [found.name for found in stores.namespaces.list()] == ["by-container", "by-lease"]
        with message(AlreadyExists, 'namespace "by-lease": already exists'):
            stores.namespaces.create(Namespace("by-lease"))

    def test_create_and_update(self, stores: Stores) -> None:
        stores.namespaces.create(Namespace("n", {"a": "1", "b": ""}))
        assert stores.namespaces.get("n").labels == {"a": "1"}
        stores.namespaces.update(Namespace("n", {"x.y": "2", "a": "9"}), ("labels.x.y",))
        assert stores.namespaces.get("n").labels == {"a": "1", "x.y": "2"}
        stores.namespaces.update(Namespace("n"), ("labels.a",))
        assert stores.namespaces.get("n").labels == {"x.y": "2"}
        stores.namespaces.update(Namespace("n", {"z": "3"}))
        assert stores.namespaces.get("n").labels == {"z": "3"}
        with message(InvalidArgument, 'cannot update "labels" field: invalid argument'):
            stores.namespaces.update(Namespace("n"), ("labels",))
        assert [type(event) for ns, event in stores.events if ns == "n"] == [
            events.NamespaceCreate,
            *[events.NamespaceUpdate] * 3,
        ]

    def test_a_bad_name_is_refused(self, stores: Stores) -> None:
        with pytest.raises(InvalidArgument, match=r"^namespace validation: "):
            stores.namespaces.create(Namespace("a--b"))

    def test_delete_says_what_is_left(self, stores: Stores) -> None:
        stores.images.create(NS, Image("i", TARGET))
        stores.containers.create(NS, container())
        stores.content.write_blob(NS, "r", b"x")
        stores.snapshots.named("overlayfs").prepare(NS, "k")
        stores.leases.create(NS, Lease("l"))
        with message(
            FailedPrecondition,
            f'namespace "{NS}" must be empty, but it still has images, blobs, containers,'
            ' snapshots on "overlayfs" snapshotter: failed precondition',
        ):
            stores.namespaces.delete(NS)
        with message(NotFound, 'namespace "nobody": not found'):
            stores.namespaces.delete("nobody")

    def test_leases_and_ingests_do_not_keep_one(self, stores: Stores) -> None:
        stores.leases.create(NS, Lease("l"))
        stores.content.open_writer(NS, "ref", lease="l").close()
        stores.namespaces.delete(NS)
        assert stores.namespaces.list() == []
        assert stores.leases.list(NS) == []
        assert stores.content.list_statuses(NS) == []


class TestContainers:
    FULL = container(
        "full",
        labels={"a": "1", "empty": ""},
        image="img",
        runtime_options=AnyValue("options", b"\x00\xff"),
        spec=AnyValue("spec", b'{"b": 1, "a": 2}'),
        snapshotter="overlayfs",
        snapshot_key="key",
        extensions={"x": AnyValue("ext", b"\x01\x02")},
        sandbox_id="pod",
    )

    def test_what_comes_back_is_what_was_stored(self, stores: Stores) -> None:
        created = stores.containers.create(NS, self.FULL)
        now = stores.clock.now
        assert created == replace(self.FULL, labels={"a": "1"}, created_at=now, updated_at=now)
        assert stores.containers.get(NS, "full") == created
        assert stores.containers.list(NS) == [created]
        event = events.ContainerCreate("full", "img", "io.containerd.runc.v2", AnyValue("options", b"\x00\xff"))
        assert stores.events == [(NS, event)]

    def test_options_of_null_and_of_nothing_differ(self, stores: Stores) -> None:
        stores.containers.create(NS, container("null"))
        stores.containers.create(NS, container("nothing", runtime_options=AnyValue("", b"")))
        assert stores.containers.get(NS, "null").runtime_options is None
        assert stores.containers.get(NS, "nothing").runtime_options == AnyValue("", b"")

    def test_names_are_taken_per_namespace(self, stores: Stores) -> None:
        stores.containers.create("a", container())
        stores.containers.create("b", container())
        with message(AlreadyExists, 'container "c1": already exists'):
            stores.containers.create("a", container())
        with message(NotFound, 'container "c1" in namespace "c": not found'):
            stores.containers.get("c", "c1")

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"runtime_name": ""}, "container.Runtime.Name must be set"),
            ({"spec": None}, "container.Spec must be set"),
            ({"snapshot_key": "k"}, "container.Snapshotter must be set if container.SnapshotKey is set"),
            ({"extensions": {"": AnyValue("", b"")}}, "container.Extensions keys must not be zero-length"),
            ({"labels": {"k": "v" * 4096}}, "containers.Labels: label key and value length"),
            ({"id": "a/b"}, "container.ID: identifier"),
        ],
    )
    def test_what_is_invalid(self, stores: Stores, changes: dict[str, object], text: str) -> None:
        with pytest.raises(InvalidArgument, match=text):
            stores.containers.create(NS, replace(container(), **changes))  # type: ignore[arg-type]

    def test_update_by_mask(self, stores: Stores) -> None:
        stores.containers.create(NS, self.FULL)
        new = container("full", labels={"a": "2", "b": "3"}, image="other", extensions={"y": AnyValue("e", b"")})
        result = stores.containers.update(NS, new, ("labels.b", "image", "extensions.y", "extensions.x"))
        assert (result.labels, result.image) == ({"a": "1", "b": "3"}, "other")
        assert result.extensions == {"y": AnyValue("e", b"")}
        assert result.spec == self.FULL.spec
        assert stores.containers.update(NS, new, ("labels", "spec")).labels == {"a": "2", "b": "3"}
        with message(InvalidArgument, 'cannot update "runtime" field on "full": invalid argument'):
            stores.containers.update(NS, new, ("runtime",))
        with pytest.raises(NotFound):
            stores.containers.update(NS, container("nobody"), ("image",))

    def test_update_of_everything(self, stores: Stores) -> None:
        stores.containers.create(NS, self.FULL)
        same = container("full", snapshotter="overlayfs", snapshot_key="k2")
        result = stores.containers.update(NS, same)
        assert (result.labels, result.snapshot_key, result.sandbox_id) == ({}, "k2", "pod")
        for changes, field in (({"snapshotter": "native"}, "Snapshotter"), ({"runtime_name": "x"}, "Runtime.Name")):
            with message(InvalidArgument, f"container.{field} field is immutable: invalid argument"):
                stores.containers.update(NS, replace(same, **changes))  # type: ignore[arg-type]
        assert stores.events[-1][1] == events.ContainerUpdate("full", "", {}, "k2")

    def test_list_is_sorted_and_filtered(self, stores: Stores) -> None:
        for name in ("b", "a", "C"):
            stores.containers.create(NS, container(name, image=f"image-{name}"))
        assert [found.id for found in stores.containers.list(NS)] == ["C", "a", "b"]
        assert [found.id for found in stores.containers.list(NS, ["id==a", "image==image-b"])] == ["a", "b"]
        with pytest.raises(InvalidArgument, match="parse error"):
            stores.containers.list(NS, ["=="])

    def test_delete(self, stores: Stores) -> None:
        stores.containers.create(NS, container())
        stores.containers.delete(NS, "c1")
        assert stores.events[-1] == (NS, events.ContainerDelete("c1"))
        with message(NotFound, f'container "c1" in namespace "{NS}": not found'):
            stores.containers.delete(NS, "c1")


def sandbox(**changes: Any) -> Sandbox:
    return replace(
        Sandbox(
            id="s1",
            runtime_name="io.containerd.runc.v2",
            runtime_options=AnyValue("options", b"\x00"),
            spec=AnyValue("spec", b"{}"),
            labels={"a": "1", "dropped": ""},
            extensions={"x": AnyValue("url", b"\xff")},
            sandboxer="shim",
        ),
        **changes,
    )


class TestSandboxes:
    def test_what_comes_back_is_what_was_stored(self, stores: Stores) -> None:
        now = stores.clock.now
        stored = replace(sandbox(), labels={"a": "1"}, created_at=now, updated_at=now)
        assert stores.sandboxes.create(NS, sandbox()) == stored
        assert stores.sandboxes.get(NS, "s1") == stored
        bare = stores.sandboxes.create(NS, Sandbox("bare"))
        assert stores.sandboxes.list(NS) == [bare, stored]
        assert stores.sandboxes.list(NS, ["labels.a==1"]) == stores.sandboxes.list(NS, ["id==s1"]) == [stored]
        assert stores.sandboxes.list("elsewhere") == []
        with message(AlreadyExists, 'sandbox bucket "s1" already exists: already exists'):
            stores.sandboxes.create(NS, sandbox())
        assert stores.events == []

    def test_what_is_invalid(self, stores: Stores) -> None:
        with pytest.raises(InvalidArgument, match=r"^invalid sandbox ID: "):
            stores.sandboxes.create(NS, Sandbox("a--b"))
        with pytest.raises(InvalidArgument, match="Extensions"):
            stores.sandboxes.create(NS, sandbox(extensions={"": AnyValue("", b"")}))
        with pytest.raises(InvalidArgument, match="parse error"):
            stores.sandboxes.list(NS, ["=="])

    def test_update(self, stores: Stores) -> None:
        created = stores.sandboxes.create(NS, sandbox(extensions={"x": AnyValue("x", b""), "y": AnyValue("y", b"")}))
        stores.clock.advance(seconds=1)
        other = Sandbox("s1", "other", labels={"b": "2"}, extensions={"x": AnyValue("new", b"")}, sandboxer="ignored")
        result = stores.sandboxes.update(NS, other, ("labels.b", "extensions.x", "extensions.y"))
        assert (result.labels, result.extensions) == ({"a": "1", "b": "2"}, other.extensions)
        assert (result.created_at, result.updated_at) == (created.created_at, stores.clock.now)
        with message(InvalidArgument, "sandbox.Runtime.Name field is immutable: invalid argument"):
            stores.sandboxes.update(NS, other)
        assert stores.sandboxes.update(NS, other, ("runtime", "spec")).runtime_name == "other"
        result = stores.sandboxes.update(NS, other)
        assert (result.labels, result.spec, result.sandboxer) == ({"b": "2"}, None, "shim")
        assert stores.sandboxes.get(NS, "s1") == result
        with message(InvalidArgument, 'cannot update "sandboxer" field on sandbox "s1": invalid argument'):
            stores.sandboxes.update(NS, other, ("sandboxer",))
        with message(NotFound, 'sandbox "s2": not found'):
            stores.sandboxes.update(NS, Sandbox("s2"))

    def test_delete(self, stores: Stores) -> None:
        stores.sandboxes.create(NS, sandbox())
        stores.sandboxes.delete(NS, "s1")
        for forgotten in (stores.sandboxes.get, stores.sandboxes.delete):
            with message(NotFound, 'sandbox "s1": not found'):
                forgotten(NS, "s1")

    def test_they_keep_what_they_refer_to_but_not_their_namespace(self, stores: Stores) -> None:
        digest = stores.content.write_blob(NS, "ref", b"x")
        stores.sandboxes.create(NS, sandbox(labels={"containerd.io/gc.ref.content": digest}))
        stores.collector.collect()
        assert stores.digests() == [digest]
        stores.sandboxes.update(NS, sandbox(labels={}), ("labels",))
        stores.collector.collect()
        assert stores.digests() == []
        stores.namespaces.delete(NS)
        assert stores.sandboxes.list(NS) == []


class TestImages:
    def test_what_comes_back_is_what_was_stored(self, stores: Stores) -> None:
        created = stores.images.create(NS, Image("any name, even this", TARGET, {"a": "1"}))
        assert stores.images.get(NS, created.name) == created
        assert stores.images.list(NS) == [created]
        with message(AlreadyExists, f'image "{created.name}": already exists'):
            stores.images.create(NS, created)
        with message(NotFound, 'image "nobody": not found'):
            stores.images.get(NS, "nobody")

    @pytest.mark.parametrize(
        ("image", "text"),
        [
            (Image("", TARGET), "Image.Name required"),
            (Image("i", replace(TARGET, size=0)), "greater than zero"),
            (Image("i", replace(TARGET, digest="x")), "Digest"),
            (Image("i", replace(TARGET, media_type="")), "MediaType"),
            (Image("i", TARGET, {"k": "v" * 4096}), "^image.Labels: "),
        ],
    )
    def test_what_is_invalid(self, stores: Stores, image: Image, text: str) -> None:
        with pytest.raises(InvalidArgument, match=text):
            stores.images.create(NS, image)

    def test_update(self, stores: Stores) -> None:
        stores.images.create(NS, Image("i", TARGET, {"a": "1"}))
        other = Image("i", replace(TARGET, digest=digest_of(b"other"), annotations={"new": "y"}), {"b": "2"})
        assert stores.images.update(NS, other, ("labels.b",)).labels == {"a": "1", "b": "2"}
        annotated = stores.images.update(NS, other, ("annotations.new", "annotations.note"))
        assert annotated.target == replace(TARGET, annotations={"new": "y"})
        assert stores.images.update(NS, other).target == other.target
        with pytest.raises(InvalidArgument, match='cannot update "name" field'):
            stores.images.update(NS, other, ("name",))

    def test_delete_by_target(self, stores: Stores) -> None:
        stores.images.create(NS, Image("i", TARGET))
        wrong = digest_of(b"wrong")
        with message(NotFound, f'image "i" has target {TARGET.digest}, not {wrong}: not found'):
            stores.images.delete(NS, "i", wrong)
        stores.images.delete(NS, "i", TARGET.digest)
        with message(NotFound, 'image "i": not found'):
            stores.images.delete(NS, "i")

    def test_one_that_expires_is_leased(self, stores: Stores) -> None:
        stores.leases.create(NS, Lease("l"))
        stores.images.create(NS, Image("kept", TARGET, {"containerd.io/gc.expire": "2030-01-01T00:00:00Z"}), lease="l")
        stores.images.create(NS, Image("plain", TARGET), lease="l")
        assert stores.leases.list_resources(NS, "l") == [Resource("kept", "images")]
        with message(NotFound, "lease does not exist: not found"):
            image = Image("x", TARGET, {"containerd.io/gc.expire": "2030-01-01T00:00:00Z"})
            stores.images.create(NS, image, lease="nobody")
        with pytest.raises(NotFound):
            stores.images.get(NS, "x")


class TestLeases:
    def test_an_id_is_made_if_none_is_given(self, stores: Stores) -> None:
        lease = stores.leases.create(NS, Lease("", {"k": "v"}))
        assert re.fullmatch(r"\d{9}-[A-Za-z0-9_-]{4}", lease.id)
        assert stores.leases.list(NS, ["labels.k==v"]) == [lease]
        with message(AlreadyExists, f'lease "{lease.id}": already exists'):
            stores.leases.create(NS, lease)

    def test_resources(self, stores: Stores) -> None:
        stores.leases.create(NS, Lease("l"))
        blob, snapshot = Resource(digest_of(b"x"), "content"), Resource("key with space", "snapshots/overlayfs")
        for resource in (blob, snapshot, blob):
            stores.leases.add_resource(NS, "l", resource)
        assert stores.leases.list_resources(NS, "l") == [blob, snapshot]
        stores.leases.delete_resource(NS, "l", blob)
        stores.leases.delete_resource(NS, "l", blob)
        assert stores.leases.list_resources(NS, "l") == [snapshot]
        stores.leases.delete(NS, "l")
        for call in (stores.leases.list_resources, stores.leases.delete):
            with message(NotFound, 'lease "l": not found'):
                call(NS, "l")
        for resource in (blob, Resource("x", "wood")):
            with message(NotFound, 'lease "l": not found'):
                stores.leases.add_resource(NS, "l", resource)
