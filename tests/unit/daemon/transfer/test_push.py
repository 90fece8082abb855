"""Push: in an order that a registry accepts, and nothing that it has already."""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace

import pytest

from pyctr_wire.errors import InvalidArgument, NotFound
from pyctr_wire.oci import image_spec
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.images import Image
from pyctrd.core.platforms import Platform
from pyctrd.core.references import parse_reference
from pyctrd.transfer.progress import Progress
from pyctrd.transfer.push import push
from pyctrd.transfer.requests import ImageStore
from pyctrd.transfer.stores import Session
from support.images import INDEX, MANIFEST, BuiltImage, digest, image, index
from support.stores import NS
from support.stores import Stores as RealStores

HOST = Platform("linux", "amd64")
REFERENCE = parse_reference("registry.example/some/image:v1")
IMAGE = image({"a": b"1"}, {"b": b"2"})
FOREIGN = image({"a": b"arm"}, architecture="arm64")
OTHER = image({"a": b"s390"}, architecture="s390x")
ATTESTATION = image({"statement": b"{}"}, architecture="unknown")
BOTH = index((IMAGE, "amd64"), (FOREIGN, "arm64"))


@dataclass
class Registry:
    """A registry that refuses what real ones refuse: a manifest whose parts it does not have."""

    has_digests: set[str] = field(default_factory=set)
    tags: dict[str, str] = field(default_factory=dict)
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)

    async def has(self, descriptor: Descriptor, tag: str = "") -> bool:
        return self.tags.get(tag) == descriptor.digest if tag else descriptor.digest in self.has_digests

    async def blob(
        self, descriptor: Descriptor, body: Callable[[], AsyncIterator[bytes]], sources: tuple[str, ...] = ()
    ) -> None:
        assert digest(b"".join([part async for part in body()])) == descriptor.digest
        self.has_digests.add(descriptor.digest)
        self.sources[descriptor.digest] = sources
        self.sent.append(descriptor.digest)

    async def manifest(self, descriptor: Descriptor, data: bytes, tag: str = "") -> None:
        document = image_spec.parse_document(data, descriptor.media_type)
        parts = document.manifests if isinstance(document, image_spec.Index) else (document.config, *document.layers)
        assert {part.digest for part in parts} <= self.has_digests
        self.has_digests.add(descriptor.digest)
        self.sent.append(descriptor.digest)
        if tag:
            self.tags[tag] = descriptor.digest


@pytest.fixture
def registry() -> Registry:
    return Registry()


def store(real: RealStores, *blobs: Mapping[str, bytes]) -> None:
    for some in blobs:
        for name, data in some.items():
            real.content.write_blob(NS, name, data)


async def push_to(opened: Session, registry: Registry, target: Descriptor, *platforms: Platform) -> list[str]:
    """Push, and return what was warned of."""
    source, progress = ImageStore("name", platforms=platforms), Progress()
    await push(opened, source, Image("name", target), registry, REFERENCE, progress)
    return [report.event for report in progress.take() if report.event.startswith("warning")]


def target(built: BuiltImage) -> Descriptor:
    return Descriptor(MANIFEST, built.digest, len(built.manifest))


WHOLE = Descriptor(INDEX, digest(BOTH), len(BOTH))


async def test_an_image(opened: Session, real: RealStores, registry: Registry) -> None:
    store(real, IMAGE.blobs)

    await push_to(opened, registry, target(IMAGE))

    assert registry.tags == {"v1": IMAGE.digest}
    assert registry.has_digests == set(IMAGE.blobs)


async def test_what_is_there_is_not_sent(opened: Session, real: RealStores, registry: Registry) -> None:
    store(real, IMAGE.blobs)
    await push_to(opened, registry, target(IMAGE))
    registry.sent.clear()

    await push_to(opened, registry, target(IMAGE))
    assert registry.sent == []

    registry.tags.clear()
    await push_to(opened, registry, target(IMAGE))
    assert registry.sent == [IMAGE.digest]


async def test_an_index_with_all_its_images(opened: Session, real: RealStores, registry: Registry) -> None:
    store(real, IMAGE.blobs, FOREIGN.blobs, {digest(BOTH): BOTH})

    assert await push_to(opened, registry, WHOLE) == []

    assert registry.tags == {"v1": digest(BOTH)}
    assert registry.sent[-1] == digest(BOTH)


async def test_one_platform_of_an_index(opened: Session, real: RealStores, registry: Registry) -> None:
    store(real, IMAGE.blobs, {digest(BOTH): BOTH})

    assert await push_to(opened, registry, WHOLE, HOST) == []

    assert registry.tags == {"v1": IMAGE.digest}


@pytest.mark.parametrize("missing", [FOREIGN.digest, digest(FOREIGN.layers[0])], ids=["manifest", "layer"])
async def test_the_one_image_of_an_index_that_is_here(
    opened: Session, real: RealStores, registry: Registry, missing: str
) -> None:
    store(real, IMAGE.blobs, {name: data for name, data in FOREIGN.blobs.items() if name != missing})
    store(real, {digest(BOTH): BOTH})

    warnings = await push_to(opened, registry, WHOLE)

    assert registry.tags == {"v1": IMAGE.digest}
    assert registry.has_digests == set(IMAGE.blobs)
    assert warnings == ["warning: only linux/amd64 of name is here, and pushed without linux/arm64"]


@pytest.mark.parametrize("attested", [True, False])
async def test_an_attestation_is_no_image(
    opened: Session, real: RealStores, registry: Registry, *, attested: bool
) -> None:
    data = index((IMAGE, "amd64"), (FOREIGN, "arm64"), (ATTESTATION, "unknown"))
    store(real, IMAGE.blobs, ATTESTATION.blobs if attested else {}, {digest(data): data})

    warnings = await push_to(opened, registry, Descriptor(INDEX, digest(data), len(data)))

    assert registry.tags == {"v1": IMAGE.digest}
    assert warnings == ["warning: only linux/amd64 of name is here, and pushed without linux/arm64, attestations"]


@pytest.mark.parametrize(
    ("here", "text"),
    [
        ((IMAGE, FOREIGN), "only linux/amd64, linux/arm64 are here"),
        ((ATTESTATION,), "none of its images is here"),
    ],
    ids=["several", "none"],
)
async def test_several_images_of_an_index_or_none(
    opened: Session, real: RealStores, registry: Registry, here: tuple[BuiltImage, ...], text: str
) -> None:
    data = index((IMAGE, "amd64"), (FOREIGN, "arm64"), (OTHER, "s390x"), (ATTESTATION, "unknown"))
    store(real, *(one.blobs for one in here), {digest(data): data})

    with pytest.raises(NotFound, match=text):
        await push_to(opened, registry, Descriptor(INDEX, digest(data), len(data)))

    assert registry.sent == []


async def test_a_platform_that_is_asked_for_and_not_here(opened: Session, real: RealStores, registry: Registry) -> None:
    layer = digest(FOREIGN.layers[0])
    store(real, IMAGE.blobs, {name: data for name, data in FOREIGN.blobs.items() if name != layer})
    store(real, {digest(BOTH): BOTH})

    with pytest.raises(NotFound, match=f"{layer}, for linux/arm64"):
        await push_to(opened, registry, WHOLE, Platform("linux", "arm64"))

    assert registry.sent == []


async def test_an_image_of_which_a_layer_is_missing(opened: Session, real: RealStores, registry: Registry) -> None:
    layer = digest(IMAGE.layers[1])
    store(real, {name: data for name, data in IMAGE.blobs.items() if name != layer})

    with pytest.raises(NotFound, match=layer):
        await push_to(opened, registry, target(IMAGE))

    assert registry.sent == []


async def test_where_a_blob_came_from_is_told(opened: Session, real: RealStores, registry: Registry) -> None:
    store(real, IMAGE.blobs)
    layer = digest(IMAGE.layers[0])
    key = "containerd.io/distribution.source.registry.example"
    await opened.label(layer, {key: "source/image,some/image", "containerd.io/distribution.source.other": "x/y"})

    await push_to(opened, registry, target(IMAGE))

    assert registry.sources[layer] == ("source/image",)


async def test_a_layer_of_another_size_than_its_manifest_says(
    opened: Session, real: RealStores, registry: Registry
) -> None:
    """A registry that was promised more bytes than there are would wait for them."""
    document = image_spec.parse_document(IMAGE.manifest)
    assert isinstance(document, image_spec.Manifest)
    longer = tuple(replace(layer, size=layer.size + 1) for layer in document.layers)
    lie = image_spec.encode(replace(document, layers=longer))
    store(real, IMAGE.blobs, {digest(lie): lie})

    with pytest.raises(InvalidArgument, match="its descriptor says"):
        await push_to(opened, registry, Descriptor(MANIFEST, digest(lie), len(lie)))

    assert not set(registry.sent) & {layer.digest for layer in longer}
