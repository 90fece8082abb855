"""Export: the same bytes for the same images, readable again, and as docker reads them."""

import io
import json
import tarfile
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from pyctr_wire.errors import InvalidArgument, NotFound
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.images import Image
from pyctrd.core.platforms import Platform
from pyctrd.transfer.exporter import export
from pyctrd.transfer.importer import import_archive
from pyctrd.transfer.progress import Progress
from pyctrd.transfer.requests import ExportStream, ExtraReference, ImageStore, ImportStream
from pyctrd.transfer.stores import Session
from pyctrd.transfer.unpack import ChainLocks
from support.images import INDEX, MANIFEST, BuiltImage, digest, image, index
from support.stores import NS
from support.stores import Stores as RealStores

HOST = Platform("linux", "amd64")
IMAGE = image({"a": b"1"}, {"b": b"2"})
FOREIGN = image({"a": b"arm"}, architecture="arm64")
BOTH = index((IMAGE, "amd64"), (FOREIGN, "arm64"))
NAME = "docker.io/library/app:v1"


def store(real: RealStores, blobs: Mapping[str, bytes]) -> None:
    for name, data in blobs.items():
        real.content.write_blob(NS, name, data)


def target(built: BuiltImage) -> Descriptor:
    return Descriptor(MANIFEST, built.digest, len(built.manifest))


async def exported(opened: Session, *images: Image, **request: Any) -> bytes:
    parts: list[bytes] = []

    async def write(data: bytes) -> None:
        parts.append(data)

    await export(opened, images, ExportStream("stream", **request), HOST, write, Progress())
    return b"".join(parts)


def files(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return {one.name: file.read() for one in opened if (file := opened.extractfile(one)) is not None}


async def test_the_archive_is_a_layout_and_dockers(opened: Session, real: RealStores) -> None:
    store(real, IMAGE.blobs)

    found = files(await exported(opened, Image(NAME, target(IMAGE)), Image("example.com/x:y", target(IMAGE))))

    assert list(found) == [
        *sorted(f"blobs/sha256/{name.partition(':')[2]}" for name in IMAGE.blobs),
        "index.json",
        "manifest.json",
        "oci-layout",
    ]
    entries = json.loads(found["index.json"])["manifests"]
    assert [entry["annotations"] for entry in entries] == [
        {"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": "v1"},
        {"io.containerd.image.name": "example.com/x:y", "org.opencontainers.image.ref.name": "y"},
    ]
    [docker] = json.loads(found["manifest.json"])
    assert docker["RepoTags"] == ["app:v1", "example.com/x:y"]
    assert found[docker["Config"]] == IMAGE.config
    assert [found[layer] for layer in docker["Layers"]] == list(IMAGE.layers)


async def test_entries_do_not_depend_on_who_exports_when(opened: Session, real: RealStores) -> None:
    store(real, IMAGE.blobs)
    archive = await exported(opened, Image(NAME, target(IMAGE)))

    assert archive == await exported(opened, Image(NAME, target(IMAGE)))
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for member in members:
            assert (member.uid, member.gid, member.mtime) == (0, 0, 0)
            assert member.mode == (0o755 if member.isdir() else 0o444)


async def test_what_was_exported_is_imported(opened: Session, real: RealStores) -> None:
    store(real, {**IMAGE.blobs, **FOREIGN.blobs, digest(BOTH): BOTH})
    archive = await exported(opened, Image(NAME, Descriptor(INDEX, digest(BOTH), len(BOTH))), all_platforms=True)

    async def chunks() -> AsyncIterator[bytes]:
        yield archive

    destination = ImageStore("", extra_references=(ExtraReference("x", is_prefix=True, allow_overwrite=True),))
    await import_archive(opened, chunks(), ImportStream("s"), destination, HOST, ChainLocks(), Progress())

    assert real.images.get(NS, NAME).target.digest == digest(BOTH)


async def test_one_platform_of_an_index(opened: Session, real: RealStores) -> None:
    store(real, {**IMAGE.blobs, digest(BOTH): BOTH})

    found = files(await exported(opened, Image(NAME, Descriptor(INDEX, digest(BOTH), len(BOTH)))))

    assert f"blobs/sha256/{IMAGE.digest[7:]}" in found
    assert f"blobs/sha256/{FOREIGN.digest[7:]}" not in found
    assert json.loads(found["index.json"])["manifests"][0]["digest"] == digest(BOTH)
    assert len(json.loads(found["manifest.json"])) == 1


async def test_dockers_manifest_can_be_left_out(opened: Session, real: RealStores) -> None:
    store(real, IMAGE.blobs)

    assert "manifest.json" not in files(
        await exported(opened, Image(NAME, target(IMAGE)), skip_compatibility_manifest=True)
    )


@pytest.mark.parametrize(
    ("image_target", "blobs", "error"),
    [
        (Descriptor("text/plain", digest(b"x"), 1), {digest(b"x"): b"x"}, InvalidArgument),
        (target(IMAGE), {}, NotFound),
        (target(IMAGE), {name: IMAGE.blobs[name] for name in (IMAGE.digest, digest(IMAGE.config))}, NotFound),
    ],
    ids=["no manifest", "nothing there", "layers missing"],
)
async def test_what_cannot_be_exported(
    opened: Session,
    real: RealStores,
    image_target: Descriptor,
    blobs: Mapping[str, bytes],
    error: type[Exception],
) -> None:
    store(real, blobs)

    with pytest.raises(error):
        await exported(opened, Image(NAME, image_target))


async def test_a_name_that_is_no_reference_is_not_dockers(opened: Session, real: RealStores) -> None:
    store(real, IMAGE.blobs)

    found = files(await exported(opened, Image("just a name", target(IMAGE))))

    assert json.loads(found["manifest.json"])[0]["RepoTags"] == []
    assert json.loads(found["index.json"])["manifests"][0]["annotations"] == {"io.containerd.image.name": "just a name"}
