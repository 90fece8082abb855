"""The images of a node: what others bring, what is removed, and what an image may say of itself."""

import asyncio
import json

import pytest

from pyctr_wire.errors import DataLoss, InvalidArgument, NotFound
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.digests import digest_of
from pyctrd.core.events import ImageDelete
from pyctrd.core.leases import EXPIRE_LABEL
from pyctrd.cri.image_index import MANAGED, MANAGED_LABEL, Ambiguous
from pyctrd.cri.images import NAMESPACE, Images
from support.image_node import Node, running
from support.images import CONFIG, INDEX, MANIFEST, image, index

ONE = image({"a": b"1"}, {"b": b"2"}, config={"User": "web:www", "Env": ["A=b"]})
TWO = image({"a": b"2"})
ID = digest_of(ONE.config)
# Enough of them for two ids to begin with the same four digits.
MANY = [image(config={"Cmd": [str(number)]}) for number in range(1000)]
MANAGED_LABELS = {MANAGED_LABEL: MANAGED}


async def until(condition: object) -> None:
    """Wait for what other tasks do."""
    async with asyncio.timeout(30):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


async def test_what_is_brought_is_seen_at_once(node: Node, images_of: Images) -> None:
    assert await images_of.list() == ()

    node.bring(ONE, "docker.io/library/one:1")

    [found] = await images_of.list()
    assert (found.id, found.tags, found.user) == (ID, ("docker.io/library/one:1",), "web:www")
    assert found.size == sum(map(len, ONE.blobs.values()))
    assert (await images_of.config(found)).process.env == ("A=b",)
    assert await images_of.document(found) == json.loads(ONE.config)
    node.store.delete(NAMESPACE, "docker.io/library/one:1")
    assert await images_of.list() == ()


async def test_what_was_there_before_is_seen(node: Node) -> None:
    node.bring(ONE, "docker.io/library/one:1", MANAGED_LABELS)

    assert (await node.new_images().resolve("one:1")).id == ID


async def test_other_namespaces_are_not_ours(node: Node, images_of: Images) -> None:
    node.store.create("default", node.bring(ONE, "docker.io/library/one:1"))
    node.store.delete(NAMESPACE, "docker.io/library/one:1")

    assert await images_of.list() == ()


async def test_what_others_bring_becomes_ours(node: Node, images_of: Images) -> None:
    """Beside the label, the image gets a name that stays when the foreign one moves on to another image."""
    async with running(images_of):
        node.bring(ONE, "docker.io/library/one:1", {"their": "label"})
        await until(lambda: len(node.names()) == 2)
        assert node.store.get(NAMESPACE, ID).labels == MANAGED_LABELS
        assert node.store.get(NAMESPACE, "docker.io/library/one:1").labels == {**MANAGED_LABELS, "their": "label"}

        node.bring(TWO, "docker.io/library/one:1")
        await until(lambda: len(node.names()) == 3)

    assert (await images_of.resolve("one:1")).id == digest_of(TWO.config)
    assert (await images_of.resolve(ID)).tags == ()


async def test_what_will_be_gone_is_left_alone(node: Node, images_of: Images) -> None:
    node.bring(ONE, "docker.io/library/one:1", {EXPIRE_LABEL: "2030-01-01T00:00:00Z"})
    node.bring(TWO, "docker.io/library/two:1")

    async with running(images_of):
        await until(lambda: len(node.names()) == 3)

    assert ID not in node.names()


async def test_what_is_removed_while_it_is_adopted_does_not_come_back(node: Node, images_of: Images) -> None:
    image_of_theirs = node.bring(ONE, "docker.io/library/one:1")
    create = node.store.create

    def removed_meanwhile(ns: str, one: object, *rest: object) -> object:
        node.store.delete(NAMESPACE, image_of_theirs.name)
        return create(ns, one, *rest)  # type: ignore[arg-type]

    node.store.create = removed_meanwhile  # type: ignore[method-assign, assignment]
    async with running(images_of):
        await until(lambda: ImageDelete(ID) in node.events)

    assert node.names() == []


async def test_an_image_that_is_not_all_here_is_not_seen_until_it_is(node: Node, images_of: Images) -> None:
    node.bring(ONE, "docker.io/library/one:1", without=ID)
    assert await images_of.list() == ()

    node.content.write_blob(NAMESPACE, "x", ONE.config, Descriptor(CONFIG, ID, len(ONE.config)))
    node.bring(TWO, "docker.io/library/two:1")

    assert [one.tags for one in await images_of.list()]
    assert (await images_of.resolve("one:1")).id == ID


async def test_an_image_for_another_platform_is_not_seen(node: Node, images_of: Images) -> None:
    node.bring(image({"a": b"arm"}, architecture="arm64"), "docker.io/library/arm:1")

    assert await images_of.list() == ()


async def test_of_an_index_our_platform_counts(node: Node, images_of: Images) -> None:
    node.bring(ONE, "docker.io/library/one:1")
    data = index((image({}, architecture="arm64"), "arm64"), (ONE, "amd64"))
    target = Descriptor(INDEX, node.content.write_blob(NAMESPACE, "index", data), len(data))
    node.name(target, "docker.io/library/multi:1")

    [found] = await images_of.list()
    assert found.tags == ("docker.io/library/multi:1", "docker.io/library/one:1")


async def test_removing_takes_all_names_and_the_space(node: Node, images_of: Images) -> None:
    first = node.bring(ONE, "docker.io/library/one:1")
    node.name(first.target, "docker.io/library/one:2")
    node.name(first.target, ID)
    node.bring(TWO, "docker.io/library/two:1")

    await asyncio.gather(*(images_of.remove(text) for text in ("one:1", "one:2", ID, ID[7:20], "one:1")))

    assert node.names() == ["docker.io/library/two:1"]
    assert node.blobs() == set(TWO.blobs)
    assert [found.tags for found in await images_of.list()] == [("docker.io/library/two:1",)]


async def test_a_name_that_has_moved_on_is_not_removed_with_its_old_image(node: Node, images_of: Images) -> None:
    node.bring(ONE, "docker.io/library/one:1")
    delete = node.store.delete
    moved: list[str] = []

    def moved_meanwhile(ns: str, name: str, digest: str = "", **more: str) -> None:
        if not moved:
            moved.append(name)
            node.bring(TWO, name)
        delete(ns, name, digest, **more)

    node.store.delete = moved_meanwhile  # type: ignore[method-assign, assignment]
    await images_of.remove("one:1")

    assert (await images_of.resolve("one:1")).id == digest_of(TWO.config)


async def test_an_ambiguous_id_removes_nothing(node: Node, images_of: Images) -> None:
    by_start = {digest_of(built.config)[7:11]: built for built in MANY}
    first, second = next(
        (built, by_start[start]) for built in MANY if by_start[start := digest_of(built.config)[7:11]] is not built
    )
    node.bring(first, "docker.io/library/a:1")
    node.bring(second, "docker.io/library/b:1")

    with pytest.raises(Ambiguous):
        await images_of.remove(digest_of(first.config)[7:11])
    assert len(await images_of.list()) == 2


async def test_unpacking_is_made_up_for(node: Node, images_of: Images) -> None:
    node.bring(ONE, "docker.io/library/one:1")
    found = await images_of.resolve("one:1")
    native = node.snapshots.named("native")
    with pytest.raises(NotFound):
        native.stat(NAMESPACE, found.chain_id)

    await images_of.ensure_unpacked(found, "native")
    assert native.stat(NAMESPACE, found.chain_id)
    applied = list(node.differ.applied)
    await images_of.ensure_unpacked(found, "native")
    assert node.differ.applied == applied

    with pytest.raises(InvalidArgument):
        await images_of.ensure_unpacked(found, "nosuch")
    await images_of.remove("one:1")
    with pytest.raises(NotFound):
        await images_of.ensure_unpacked(found, "native")


async def test_a_damaged_configuration_is_noticed(node: Node, images_of: Images) -> None:
    node.bring(ONE, "docker.io/library/one:1")
    found = await images_of.resolve("one:1")
    blob = node.root / "content/blobs/sha256" / ID[7:]
    blob.chmod(0o600)
    blob.write_bytes(ONE.config.replace(b"A=b", b"A=c"))

    with pytest.raises(DataLoss, match="pull the image again"):
        await images_of.config(found)


# -- what an image may say of itself


async def test_sizes_are_capped(node: Node, images_of: Images) -> None:
    """Ten thousand layers of 2^62 bytes each are no number that a list could carry."""
    manifest = json.loads(ONE.manifest)
    manifest["layers"] = [{**manifest["layers"][0], "size": (1 << 63) - 1}] * 3
    data = json.dumps(manifest).encode()
    node.bring(ONE, "docker.io/library/one:1")
    digest = node.content.write_blob(NAMESPACE, "manifest", data)
    node.name(Descriptor(MANIFEST, digest, len(data)), "docker.io/library/one:1")

    assert (await images_of.resolve("one:1")).size == (1 << 63) - 1


async def test_users_are_capped(node: Node, images_of: Images) -> None:
    node.bring(image(config={"User": "x" * 1_000_000}), "docker.io/library/one:1")

    assert (await images_of.resolve("one:1")).user == "x" * 256


async def test_half_a_character_hides_one_image_and_no_other(node: Node, images_of: Images) -> None:
    """A list with such a text could not be sent, nor an error."""
    node.bring(ONE, "docker.io/library/one:1")
    for number, half in enumerate(("\ud800", "x\udfffy")):
        node.bring(image({"n": b"%d" % number}, config={"User": half}), f"docker.io/library/user:{number}")
        node.bring(image({"n": b"%d" % number}, architecture=half), f"docker.io/library/machine:{number}")
    node.bring(image(config={"User": "\U0001f40b"}), "docker.io/library/whale:1")

    found = await images_of.list()
    assert {one.tags for one in found} == {("docker.io/library/one:1",), ("docker.io/library/whale:1",)}


async def test_bad_documents_hide_one_image_and_no_other(node: Node, images_of: Images) -> None:
    node.bring(ONE, "docker.io/library/one:1")
    for number, data in enumerate(
        (b"not JSON", b"[" * 100_000, b"{}", b'{"config":{}}', b'{"manifests":[],"layers":[]}')
    ):
        digest = node.content.write_blob(NAMESPACE, f"bad-{number}", data)
        node.name(Descriptor(MANIFEST, digest, len(data)), f"docker.io/library/bad:{number}")
    node.name(Descriptor(MANIFEST, digest_of(b"huge"), 1 << 40), "docker.io/library/huge:1")
    node.name(Descriptor("text/plain", ONE.digest, len(ONE.manifest)), "docker.io/library/odd:1")

    assert [found.tags for found in await images_of.list()] == [("docker.io/library/one:1",)]
