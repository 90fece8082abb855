"""Pull, from the reference to the image: what is there afterwards, and what is not after a failure."""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pyctr_wire.errors import ApiError, InvalidArgument, NotFound
from pyctrd.core.digests import chain_ids
from pyctrd.core.leases import Lease
from pyctrd.core.platforms import Platform
from pyctrd.metadata.leases import Leases
from pyctrd.transfer.progress import Progress
from pyctrd.transfer.pull import pull
from pyctrd.transfer.requests import ExtraReference, ImageStore, Unpack
from pyctrd.transfer.stores import Session, Stores, session
from pyctrd.transfer.unpack import ChainLocks
from support.images import BuiltImage, digest, image, index
from support.stores import NS, names
from support.stores import Stores as RealStores
from support.transfers import FakeRepository, HashingDiffer, sending

HOST = Platform("linux", "amd64")
ARM = Platform("linux", "arm64")
IMAGE = image({"a": b"1"}, {"b": b"2"}, {"c": b"3"})
FOREIGN = image({"a": b"arm"}, architecture="arm64")
INDEX = index((IMAGE, "amd64"), (FOREIGN, "arm64"))
DESTINATION = ImageStore("name", {"label": "yes"}, (HOST,), unpacks=(Unpack(),))


async def pull_into(
    opened: Session, repository: FakeRepository, destination: ImageStore = DESTINATION, progress: Progress | None = None
) -> None:
    await pull(opened, repository, destination, HOST, ChainLocks(), progress or Progress())


def chain(built: BuiltImage) -> list[str]:
    return chain_ids(list(built.diff_ids))


async def test_an_image_is_complete_and_unpacked(
    opened: Session, repository: FakeRepository, real: RealStores, differ: HashingDiffer, progress: Progress
) -> None:
    repository.add(IMAGE)

    await pull_into(opened, repository, progress=progress)

    stored = real.images.get(NS, "name")
    assert (stored.target.digest, stored.labels) == (IMAGE.digest, {"label": "yes"})
    assert sorted(real.digests()) == sorted(IMAGE.blobs)
    assert sorted(names(real.snapshots.named("overlayfs"))) == sorted(chain(IMAGE))
    assert differ.applied == [digest(layer) for layer in IMAGE.layers]
    for layer, diff_id in zip(IMAGE.layers, IMAGE.diff_ids, strict=True):
        assert real.content.info(NS, digest(layer)).labels["containerd.io/uncompressed"] == diff_id
    events = [report.event for report in progress.take()]
    assert events[0].startswith("Resolving")
    assert events[-2:] == ["saved", "Completed pull from OCI Registry (registry.example/some/image:v1)"]


async def test_a_collection_leaves_all_of_a_pulled_image_and_nothing_of_a_removed_one(
    stores: Stores, repository: FakeRepository, real: RealStores
) -> None:
    repository.add_index(INDEX, FOREIGN, IMAGE)
    async with session(stores, NS, "") as opened:
        await pull_into(opened, repository)
    kept = sorted({digest(INDEX), *IMAGE.blobs})

    real.collector.collect()
    assert sorted(real.digests()) == kept
    assert len(names(real.snapshots.named("overlayfs"))) == 3

    real.images.delete(NS, "name")
    real.collector.collect()
    assert not any((real.digests(), names(real.snapshots.named("overlayfs")), real.leases.list(NS)))


async def test_the_platform_is_chosen(opened: Session, repository: FakeRepository, real: RealStores) -> None:
    repository.add_index(INDEX, FOREIGN, IMAGE)

    await pull_into(opened, repository, ImageStore("arm", platforms=(ARM,), unpacks=(Unpack(ARM),)))

    assert set(real.digests()) == {digest(INDEX), *FOREIGN.blobs}
    assert names(real.snapshots.named("overlayfs")) == chain(FOREIGN)


async def test_all_platforms(opened: Session, repository: FakeRepository, real: RealStores) -> None:
    repository.add_index(INDEX, FOREIGN, IMAGE)

    await pull_into(opened, repository, ImageStore("all"))

    assert set(real.digests()) == {digest(INDEX), *FOREIGN.blobs, *IMAGE.blobs}


async def test_all_metadata_has_no_layers_of_others(
    opened: Session, repository: FakeRepository, real: RealStores
) -> None:
    repository.add_index(INDEX, FOREIGN, IMAGE)

    await pull_into(opened, repository, ImageStore("meta", platforms=(HOST,), all_metadata=True))

    foreign_layers = {digest(layer) for layer in FOREIGN.layers}
    assert set(real.digests()) == {digest(INDEX), *FOREIGN.blobs, *IMAGE.blobs} - foreign_layers


async def test_no_platform_that_suits(opened: Session, repository: FakeRepository, real: RealStores) -> None:
    repository.add_index(index((FOREIGN, "arm64")), FOREIGN)

    with pytest.raises(NotFound, match=r"no match for platform in manifest sha256:"):
        await pull_into(opened, repository)

    assert real.images.list(NS) == []


@pytest.mark.parametrize(
    ("built", "destination", "warnings"),
    [
        (FOREIGN, DESTINATION, ["warning: name is for linux/arm64, not for linux/amd64"]),
        (IMAGE, ImageStore("name", platforms=(ARM,)), ["warning: name is for linux/amd64, not for linux/arm64"]),
        (FOREIGN, ImageStore("name", platforms=(ARM,), unpacks=(Unpack(ARM),)), []),
        (FOREIGN, ImageStore("name"), []),
    ],
    ids=["here", "elsewhere", "as wanted", "nothing wanted"],
)
async def test_an_image_for_another_platform_is_stored_with_a_warning(
    opened: Session,
    repository: FakeRepository,
    real: RealStores,
    progress: Progress,
    built: BuiltImage,
    destination: ImageStore,
    warnings: list[str],
) -> None:
    """As docker does: it may be all that there is, and it can be pushed elsewhere. It is unpacked if that was meant."""
    repository.add(built)

    await pull_into(opened, repository, destination, progress)

    assert [report.event for report in progress.take() if report.event.startswith("warning")] == warnings
    assert real.images.get(NS, "name").target.digest == built.digest
    assert bool(names(real.snapshots.named("overlayfs"))) == bool(destination.unpacks and not warnings)


async def test_what_is_there_is_neither_fetched_nor_unpacked_again(
    opened: Session, repository: FakeRepository, differ: HashingDiffer
) -> None:
    repository.add(IMAGE)
    await pull_into(opened, repository)
    repository.asked.clear()
    differ.applied.clear()

    await pull_into(opened, repository)

    assert not any((repository.asked, differ.applied))


async def test_many_pulls_of_one_image_do_the_work_once(
    stores: Stores, repository: FakeRepository, real: RealStores, differ: HashingDiffer
) -> None:
    repository.add(IMAGE)
    locks = ChainLocks()

    async def one() -> None:
        async with session(stores, NS, "") as opened:
            await pull(opened, repository, DESTINATION, HOST, locks, Progress())

    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(one())

    layers = sorted(digest(layer) for layer in IMAGE.layers)
    assert sorted(differ.applied) == layers
    assert sorted(asked for asked, _, _ in repository.asked if asked in layers) == layers
    assert real.leases.list(NS) == []


async def test_a_layer_that_is_not_what_the_configuration_says(
    opened: Session, repository: FakeRepository, real: RealStores
) -> None:
    lying = image({"a": b"1"})
    config = lying.config.replace(lying.diff_ids[0].encode(), digest(b"lie").encode())
    manifest = lying.manifest.replace(digest(lying.config).encode(), digest(config).encode())
    repository.add(BuiltImage(manifest, {**lying.blobs, digest(config): config, digest(manifest): manifest}, config,
                              lying.layers, lying.diff_ids))  # fmt: skip

    with pytest.raises(InvalidArgument, match="wrong diff id"):
        await pull_into(opened, repository)

    assert real.images.list(NS) == []
    assert names(real.snapshots.named("overlayfs")) == []


async def test_more_layers_than_diff_ids(opened: Session, repository: FakeRepository) -> None:
    built = image({"a": b"1"}, {"b": b"2"})
    config = built.config.replace(f', "{built.diff_ids[1]}"'.encode(), b"")
    manifest = built.manifest.replace(digest(built.config).encode(), digest(config).encode())
    manifest = manifest.replace(f'"size": {len(built.config)}'.encode(), f'"size": {len(config)}'.encode())
    repository.add(BuiltImage(manifest, {**built.blobs, digest(config): config, digest(manifest): manifest}, config,
                              built.layers, built.diff_ids))  # fmt: skip

    with pytest.raises(InvalidArgument, match="number of layers and diffIDs don't match: 2 != 1"):
        await pull_into(opened, repository)


async def test_a_stored_layer_that_was_damaged_is_fetched_again(
    opened: Session, repository: FakeRepository, real: RealStores
) -> None:
    """F20: flipped bits are found when the layer is unpacked, and only the good bytes get there."""
    repository.add(IMAGE)
    layer = IMAGE.layers[1]
    real.content.write_blob(NS, "any", layer)
    file = real.blob_file(digest(layer))
    file.chmod(0o600)
    file.write_bytes(layer[:-6] + bytes(6))

    await pull_into(opened, repository)

    assert file.read_bytes() == layer
    assert len(names(real.snapshots.named("overlayfs"))) == 3


@pytest.mark.parametrize("document", [IMAGE.manifest, IMAGE.config], ids=["manifest", "configuration"])
async def test_a_stored_document_that_was_damaged_is_fetched_again(
    opened: Session, repository: FakeRepository, real: RealStores, document: bytes
) -> None:
    repository.add(IMAGE)
    real.content.write_blob(NS, "any", document)
    file = real.blob_file(digest(document))
    file.chmod(0o600)
    file.write_bytes(document.replace(b"sha256", b"sha2$6", 1))

    await pull_into(opened, repository)

    assert file.read_bytes() == document


async def test_a_failure_leaves_no_image_and_the_next_pull_goes_on(
    stores: Stores, repository: FakeRepository, real: RealStores
) -> None:
    repository.add(IMAGE)
    missing = digest(IMAGE.layers[2])
    last = repository.blobs.pop(missing)
    async with session(stores, NS, "") as opened:
        with pytest.raises(NotFound):
            await pull_into(opened, repository)
    assert not any((real.images.list(NS), real.leases.list(NS)))

    repository.blobs[missing] = last
    async with session(stores, NS, "") as opened:
        await pull_into(opened, repository)
    assert real.images.get(NS, "name").target.digest == IMAGE.digest


async def test_a_session_that_is_cancelled_before_it_begins_leaves_no_lease(stores: Stores, real: RealStores) -> None:
    go_on, made = threading.Event(), threading.Event()

    class Slow(Leases):
        def create(self, ns: str, lease: Lease) -> Lease:
            assert go_on.wait(30)
            created = super().create(ns, lease)
            made.set()
            return created

    async def begin() -> None:
        async with session(replace(stores, leases=Slow(real.database)), NS, ""):
            raise AssertionError("it was cancelled")

    async with asyncio.TaskGroup() as group:
        beginning = group.create_task(begin())
        await asyncio.sleep(0)
        beginning.cancel()
    go_on.set()
    assert await asyncio.get_running_loop().run_in_executor(None, made.wait, 30)
    async with asyncio.timeout(5):
        while real.leases.list(NS):
            await asyncio.sleep(0)


async def test_a_pull_that_is_cancelled_leaves_only_what_can_go_on(
    stores: Stores, repository: FakeRepository, real: RealStores
) -> None:
    repository.add(IMAGE)
    arrived = asyncio.Event()

    async def stuck(offset: int) -> AsyncIterator[bytes]:
        yield IMAGE.layers[0][:10]
        arrived.set()
        await asyncio.Event().wait()

    repository.scripts[digest(IMAGE.layers[0])] = [stuck]

    async def one() -> None:
        async with session(stores, NS, "") as opened:
            await pull_into(opened, repository)

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(one())
        await arrived.wait()
        task.cancel()

    assert not any((real.leases.list(NS), real.images.list(NS), names(real.snapshots.named("overlayfs"))))
    real.collector.collect()
    ref = f"layer-{digest(IMAGE.layers[0])}"
    with real.content.open_writer(NS, ref, len(IMAGE.layers[0]), digest(IMAGE.layers[0])) as writer:
        assert writer.offset == 10


async def test_the_failure_of_a_layer_is_what_the_client_is_told(
    opened: Session, repository: FakeRepository, differ: HashingDiffer
) -> None:
    repository.add(IMAGE)
    differ.failures = [ApiError("first")]

    with pytest.raises(ApiError, match="first"):
        await pull_into(opened, repository)


async def test_another_image_takes_over_the_name(opened: Session, repository: FakeRepository, real: RealStores) -> None:
    for built in (FOREIGN, IMAGE):
        repository.add(built)
        await pull_into(opened, repository)

    assert real.images.get(NS, "name").target.digest == IMAGE.digest


async def test_extra_names_vanish_with_the_main_one(
    stores: Stores, repository: FakeRepository, real: RealStores
) -> None:
    repository.add(IMAGE)
    extra = (ExtraReference("also"), ExtraReference("by", add_digest=True), ExtraReference("pre", is_prefix=True))
    async with session(stores, NS, "") as opened:
        await pull_into(opened, repository, ImageStore("name", extra_references=extra))
    real.clock.now = datetime.now(UTC) + timedelta(days=1)

    real.collector.collect()
    assert [found.name for found in real.images.list(NS)] == ["also", f"by@{IMAGE.digest}", "name"]

    real.images.delete(NS, "name")
    real.collector.collect()
    assert real.images.list(NS) == []


async def test_a_broken_transfer_is_resumed(opened: Session, repository: FakeRepository, real: RealStores) -> None:
    repository.add(IMAGE)
    repository.scripts[digest(IMAGE.layers[0])] = [sending(IMAGE.layers[0], 20)]

    await pull_into(opened, repository)

    assert len(names(real.snapshots.named("overlayfs"))) == 3


async def test_an_index_in_an_index(opened: Session, repository: FakeRepository, real: RealStores) -> None:
    inner = index((IMAGE, "amd64"))
    outer = (
        '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json",'
        f'"digest":"{digest(inner)}","size":{len(inner)}}}]}}'
    ).encode()
    repository.add_index(inner, IMAGE)
    repository.add_index(outer)

    await pull_into(opened, repository)

    assert len(names(real.snapshots.named("overlayfs"))) == 3
