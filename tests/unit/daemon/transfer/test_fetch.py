"""Blobs from a registry: resumed, refetched, fetched once, and never stored wrong."""

import asyncio

import pytest

from pyctr_wire.errors import DataLoss, InvalidArgument, NotFound
from pyctr_wire.oci import image_spec
from pyctrd.registry.errors import Interrupted
from pyctrd.transfer.fetch import Fetcher
from pyctrd.transfer.progress import Progress
from pyctrd.transfer.stores import Session, Stores, session
from support.images import LAYER, MANIFEST, digest, image
from support.stores import NS
from support.stores import Stores as RealStores
from support.transfers import FakeRepository, sending

BLOB = bytes(range(256)) * 100
DESCRIPTOR = image_spec.Descriptor(LAYER, digest(BLOB), len(BLOB))
REF = f"layer-{DESCRIPTOR.digest}"


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def fetcher(opened: Session, repository: FakeRepository, progress: Progress, pauses: list[float]) -> Fetcher:
    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    repository.blobs[DESCRIPTOR.digest] = BLOB
    return Fetcher(opened, repository, progress, sleep)


def stored(real: RealStores) -> bytes:
    return real.blob_file(DESCRIPTOR.digest).read_bytes()


async def test_a_blob_arrives_with_its_source(fetcher: Fetcher, real: RealStores, progress: Progress) -> None:
    await fetcher.blob(DESCRIPTOR, "image")

    assert stored(real) == BLOB
    labels = real.content.info(NS, DESCRIPTOR.digest).labels
    assert labels == {"containerd.io/distribution.source.registry.example": "some/image"}
    [report] = progress.take()
    assert (report.event, report.name, report.parents) == ("complete", REF, ("image",))


async def test_a_transfer_that_breaks_off_goes_on_where_it_was(
    fetcher: Fetcher, repository: FakeRepository, real: RealStores
) -> None:
    repository.scripts[DESCRIPTOR.digest] = [sending(BLOB, 1000), sending(BLOB, 2000)]

    await fetcher.blob(DESCRIPTOR, "image")

    assert stored(real) == BLOB
    assert [offset for _, offset, _ in repository.asked] == [0, 1000, 3000]


async def test_a_transfer_that_brings_nothing_is_given_up(
    fetcher: Fetcher, repository: FakeRepository, pauses: list[float], real: RealStores
) -> None:
    repository.scripts[DESCRIPTOR.digest] = [sending(BLOB, 1000), *[sending(BLOB, 0)] * 5]

    with pytest.raises(Interrupted):
        await fetcher.blob(DESCRIPTOR, "image")

    assert pauses == sorted(pauses)
    assert real.content.status(NS, REF).offset == 1000


async def test_what_an_earlier_pull_left_is_used(
    fetcher: Fetcher, repository: FakeRepository, real: RealStores
) -> None:
    with real.content.open_writer(NS, REF, len(BLOB), DESCRIPTOR.digest) as writer:
        writer.write(BLOB[:5000])

    await fetcher.blob(DESCRIPTOR, "image")

    assert stored(real) == BLOB
    assert repository.asked == [(DESCRIPTOR.digest, 5000, 0)]


async def test_a_damaged_ingest_is_fetched_anew(fetcher: Fetcher, repository: FakeRepository, real: RealStores) -> None:
    with real.content.open_writer(NS, REF, len(BLOB), DESCRIPTOR.digest) as writer:
        writer.write(bytes(5000))

    await fetcher.blob(DESCRIPTOR, "image")

    assert stored(real) == BLOB
    assert [offset for _, offset, _ in repository.asked] == [5000, 0]


async def test_an_ingest_that_is_too_long_is_fetched_anew(fetcher: Fetcher, real: RealStores) -> None:
    with real.content.open_writer(NS, REF) as writer:
        writer.write(BLOB + b"more")

    await fetcher.blob(DESCRIPTOR, "image")

    assert stored(real) == BLOB


async def test_wrong_bytes_are_asked_for_elsewhere(
    fetcher: Fetcher, repository: FakeRepository, real: RealStores
) -> None:
    repository.scripts[DESCRIPTOR.digest] = [sending(bytes(len(BLOB)))]

    await fetcher.blob(DESCRIPTOR, "image")

    assert stored(real) == BLOB
    assert [skip for _, _, skip in repository.asked] == [0, 1]


async def test_nothing_but_wrong_bytes_is_an_error(
    fetcher: Fetcher, repository: FakeRepository, real: RealStores
) -> None:
    repository.scripts[DESCRIPTOR.digest] = [sending(bytes(len(BLOB)))] * 3

    with pytest.raises(DataLoss, match="wrong bytes"):
        await fetcher.blob(DESCRIPTOR, "image")

    assert real.digests() == []
    assert real.content.status(NS, REF).offset == 0


async def test_a_blob_that_is_there_is_not_fetched(
    fetcher: Fetcher, repository: FakeRepository, real: RealStores, progress: Progress
) -> None:
    real.content.write_blob(NS, "any", BLOB)

    await fetcher.blob(DESCRIPTOR, "image")

    assert repository.asked == []
    assert [report.event for report in progress.take()] == ["already exists"]


async def test_a_blob_whose_file_was_cut_is_fetched(
    fetcher: Fetcher, repository: FakeRepository, real: RealStores
) -> None:
    real.content.write_blob(NS, "any", BLOB)
    file = real.blob_file(DESCRIPTOR.digest)
    file.chmod(0o600)
    file.write_bytes(BLOB[:100])

    await fetcher.blob(DESCRIPTOR, "image")

    assert stored(real) == BLOB


async def test_two_who_want_a_blob_fetch_it_once(fetcher: Fetcher, repository: FakeRepository) -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(fetcher.blob(DESCRIPTOR, "image"))

    assert len(repository.asked) == 1


async def test_two_pulls_of_a_blob_fetch_it_once(
    fetcher: Fetcher, repository: FakeRepository, stores: Stores, real: RealStores
) -> None:
    async with session(stores, NS, "") as another, asyncio.TaskGroup() as tasks:
        tasks.create_task(fetcher.blob(DESCRIPTOR, "image"))
        tasks.create_task(Fetcher(another, repository, Progress()).blob(DESCRIPTOR, "image"))

    assert len(repository.asked) == 1
    assert stored(real) == BLOB


async def test_another_namespaces_blob_needs_no_fetch(
    fetcher: Fetcher, repository: FakeRepository, real: RealStores
) -> None:
    real.content.write_blob("another", "any", BLOB)

    await fetcher.blob(DESCRIPTOR, "image")

    assert repository.asked == []
    assert real.digests() == [DESCRIPTOR.digest]


async def test_an_empty_blob(fetcher: Fetcher, repository: FakeRepository, real: RealStores) -> None:
    await fetcher.blob(image_spec.Descriptor(LAYER, digest(b""), 0), "image")

    assert repository.asked == []
    assert real.digests() == [digest(b"")]


async def test_documents_are_stored_and_capped(fetcher: Fetcher, repository: FakeRepository, real: RealStores) -> None:
    built = image({"a": b"b"})
    repository.add(built)
    target = image_spec.Descriptor(MANIFEST, built.digest, len(built.manifest))

    assert await fetcher.document(target, "image") == built.manifest
    assert await fetcher.document(target, "image") == built.manifest
    assert len(repository.asked) == 1
    with pytest.raises(InvalidArgument):
        await fetcher.document(image_spec.Descriptor(MANIFEST, digest(b"x"), image_spec.MAX_DOCUMENT + 1), "image")
    with pytest.raises(NotFound):
        await fetcher.document(image_spec.Descriptor(MANIFEST, digest(b"x"), 1), "image")


async def test_every_source_is_remembered_once(
    opened: Session, progress: Progress, repository: FakeRepository, real: RealStores
) -> None:
    repository.blobs[DESCRIPTOR.digest] = BLOB
    for path in ("some/image", "other/image", "some/image"):
        repository.reference = type(repository.reference)("registry.example", path, "v1")
        await Fetcher(opened, repository, progress).blob(DESCRIPTOR, "image")

    labels = real.content.info(NS, DESCRIPTOR.digest).labels
    assert labels["containerd.io/distribution.source.registry.example"] == "some/image,other/image"
