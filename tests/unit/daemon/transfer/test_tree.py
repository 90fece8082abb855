"""Which images of an index are wanted."""

import pytest

from pyctr_wire.errors import InvalidArgument
from pyctr_wire.oci import image_spec
from pyctrd.core.platforms import Platform
from pyctrd.transfer.tree import Reader, Selection, choose, ref_of
from support.images import INDEX, MANIFEST, digest, image, index

AMD64, I386, ARM64, ARM = (Platform("linux", name) for name in ("amd64", "386", "arm64", "arm"))
V7 = Platform("linux", "arm", "v7")
UNKNOWN = Platform("unknown", "unknown")


@pytest.mark.parametrize(
    ("platforms", "wanted", "chosen"),
    [
        ([AMD64, ARM64], [], [0, 1]),
        ([ARM64, AMD64], [AMD64], [1]),
        ([I386, AMD64], [AMD64], [1]),
        ([I386, ARM64], [AMD64], [0]),
        ([UNKNOWN, AMD64, UNKNOWN], [AMD64], [1]),
        ([UNKNOWN], [AMD64], []),
        ([AMD64, AMD64], [AMD64], [0]),
        ([AMD64, ARM64], [ARM64, AMD64], [1, 0]),
        ([V7], [ARM], [0]),
        ([None, ARM64], [AMD64], [0]),
        ([None, AMD64], [AMD64], [1]),
        ([], [AMD64], []),
    ],
)
def test_the_best_for_each_platform(
    platforms: list[Platform | None], wanted: list[Platform], chosen: list[int]
) -> None:
    assert choose(platforms, wanted) == chosen
    assert choose(platforms, wanted, 1) == chosen[:1]


async def read(documents: dict[str, bytes], root: image_spec.Descriptor) -> image_spec.Descriptor:
    async def fetch(descriptor: image_spec.Descriptor, parent: str) -> bytes:
        return documents[descriptor.digest]

    return (await Reader(fetch, Selection()).read(root, "")).descriptor


async def test_indexes_are_not_followed_for_ever() -> None:
    data = index((image({"a": b""}), "amd64"))
    documents = {**image({"a": b""}).blobs, digest(data): data}
    for _ in range(5):
        child = image_spec.Descriptor(INDEX, digest(data), len(data))
        data = image_spec.encode(image_spec.Index((child,)))
        documents[digest(data)] = data

    with pytest.raises(InvalidArgument, match="nested"):
        await read(documents, image_spec.Descriptor(INDEX, digest(data), len(data)))


async def test_what_many_indexes_list_is_met_once() -> None:
    built = image({"a": b""})
    documents = dict(built.blobs)
    level = [image_spec.Descriptor(MANIFEST, built.digest, len(built.manifest))]
    for depth, width in enumerate((20, 20, 20, 1)):
        made = [image_spec.Index(tuple(level), annotations={"at": f"{depth} {number}"}) for number in range(width)]
        written = [image_spec.encode(one) for one in made]
        documents |= {digest(data): data for data in written}
        level = [image_spec.Descriptor(INDEX, digest(data), len(data)) for data in written]

    async def fetch(descriptor: image_spec.Descriptor, parent: str) -> bytes:
        return documents[descriptor.digest]

    tree = await Reader(fetch, Selection()).read(level[0], "")

    assert [node.descriptor.digest for node in tree.images()] == [built.digest]
    assert len(list(tree.walk())) == 62


async def test_documents_that_would_fill_memory_together_are_refused() -> None:
    padded = image_spec.encode(image_spec.Index((), annotations={"padding": "x" * (image_spec.MAX_DOCUMENT - 200)}))
    made = [padded.replace(b"xxx", b"%03d" % number, 1) for number in range(100)]
    listed = tuple(image_spec.Descriptor(INDEX, digest(data), len(data)) for data in made)
    top = image_spec.encode(image_spec.Index(listed))
    fetched = []

    async def fetch(descriptor: image_spec.Descriptor, parent: str) -> bytes:
        fetched.append(descriptor.digest)
        return top if descriptor.digest == digest(top) else made[len(fetched) - 2]

    with pytest.raises(InvalidArgument, match="together"):
        await Reader(fetch, Selection()).read(image_spec.Descriptor(INDEX, digest(top), len(top)), "image")

    assert len(fetched) == 5


async def test_a_size_that_is_a_lie_is_refused() -> None:
    built = image({"a": b""})

    with pytest.raises(InvalidArgument, match="bytes"):
        await read(dict(built.blobs), image_spec.Descriptor(MANIFEST, built.digest, len(built.manifest) + 1))


@pytest.mark.parametrize(
    ("media_type", "kind"),
    [
        (image_spec.OCI_INDEX, "index"),
        (image_spec.DOCKER_LIST, "index"),
        (image_spec.DOCKER_MANIFEST, "manifest"),
        (image_spec.OCI_CONFIG, "config"),
        (image_spec.OCI_LAYER_ZSTD, "layer"),
        ("application/vnd.in-toto+json", "attestation"),
        ("text/plain", "unknown"),
    ],
)
def test_refs_are_the_ones_that_clients_know(media_type: str, kind: str) -> None:
    assert ref_of(image_spec.Descriptor(media_type, "sha256:0", 1)) == f"{kind}-sha256:0"
