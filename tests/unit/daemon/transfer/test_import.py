"""Import: archives of both kinds, compressed or not, honest or not."""

import gzip
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
import zstandard

from pyctr_wire.errors import Cancelled, InvalidArgument, NotFound
from pyctrd.core.platforms import Platform
from pyctrd.diff.limits import Limits
from pyctrd.transfer.importer import import_archive
from pyctrd.transfer.progress import Progress
from pyctrd.transfer.requests import ExtraReference, ImageStore, ImportStream, Unpack
from pyctrd.transfer.stores import Session, Stores, session
from pyctrd.transfer.unpack import ChainLocks
from support.images import INDEX, MANIFEST, BuiltImage, descriptor, digest, image, index, tar_of
from support.stores import NS, names
from support.stores import Stores as RealStores

HOST = Platform("linux", "amd64")
IMAGE = image({"a": b"1"}, {"b": b"2"})
FOREIGN = image({"a": b"arm"}, architecture="arm64")
ANY_NAME = (ExtraReference("import", is_prefix=True, allow_overwrite=True),)
DESTINATION = ImageStore("", platforms=(HOST,), extra_references=ANY_NAME, unpacks=(Unpack(),))
LAYOUT = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}

Files = dict[str, bytes]


def blobs(*images: BuiltImage) -> Files:
    return {f"blobs/{name.replace(':', '/')}": data for built in images for name, data in built.blobs.items()}


def index_json(*entries: dict[str, Any]) -> Files:
    return {"index.json": json.dumps({"schemaVersion": 2, "manifests": entries}).encode()}


def named(built: BuiltImage, **annotations: str) -> dict[str, Any]:
    return descriptor(built.manifest, MANIFEST, annotations=annotations)


def layout(built: BuiltImage, tag: str = "v1") -> Files:
    return {**blobs(built), **index_json(named(built, **{"org.opencontainers.image.ref.name": tag})), **LAYOUT}


def docker(built: BuiltImage, *tags: str) -> Files:
    layers = {f"{number}/layer.tar": gzip.decompress(layer) for number, layer in enumerate(built.layers)}
    entry = {"Config": "config.json", "RepoTags": list(tags), "Layers": list(layers)}
    return {
        "0/VERSION": b"1.0",
        **layers,
        "config.json": built.config,
        "repositories": b"{}",
        "manifest.json": json.dumps([entry]).encode(),
    }


async def chunked(data: bytes, size: int = 10_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def load(
    opened: Session,
    archive: bytes | Mapping[str, bytes],
    destination: ImageStore = DESTINATION,
    **request: Any,
) -> list[str]:
    """Import an archive and return the names of all images."""
    data = archive if isinstance(archive, bytes) else tar_of(archive)
    request_value = ImportStream("stream", **request)
    await import_archive(opened, chunked(data), request_value, destination, HOST, ChainLocks(), Progress())
    return [found.name for found in opened.stores.images.list(opened.ns)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
async def test_a_layout(opened: Session, real: RealStores, compress: Callable[[bytes], bytes]) -> None:
    assert await load(opened, compress(tar_of(layout(IMAGE)))) == ["import:v1"]

    assert real.images.get(NS, "import:v1").target.digest == IMAGE.digest
    assert set(IMAGE.blobs) < set(real.digests())
    assert len(names(real.snapshots.named("overlayfs"))) == 2


@pytest.mark.parametrize("compress", [False, True])
async def test_what_docker_saved(opened: Session, real: RealStores, compress: bool) -> None:
    archive = docker(IMAGE, "busybox:latest", "example.com/other")

    assert await load(opened, archive, force_compress=compress) == [
        "docker.io/library/busybox:latest",
        "example.com/other:latest",
    ]

    assert len(names(real.snapshots.named("overlayfs"))) == 2
    layers = [digest(gzip.decompress(layer)) for layer in IMAGE.layers]
    assert all((layer in real.digests()) != compress for layer in layers)


async def test_what_docker_saved_without_a_name(opened: Session) -> None:
    assert await load(opened, docker(IMAGE)) == []


async def test_layers_that_are_links(opened: Session, real: RealStores) -> None:
    """docker save writes a layer once, and links to it from wherever it is used again."""
    built = image({"a": b"same"}, {"a": b"same"}, {"a": b"same"})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:

        def add(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(data), kind, link
            archive.addfile(member, io.BytesIO(data))

        add("0/layer.tar", gzip.decompress(built.layers[0]))
        add("1/layer.tar", kind=tarfile.SYMTYPE, link="../0/layer.tar")
        add("2/layer.tar", kind=tarfile.LNKTYPE, link="1/layer.tar")
        add("config.json", built.config)
        entry = {"Config": "config.json", "RepoTags": ["a:b"], "Layers": [f"{n}/layer.tar" for n in range(3)]}
        add("./manifest.json", json.dumps([entry]).encode())

    assert await load(opened, buffer.getvalue()) == ["docker.io/library/a:b"]
    assert len(names(real.snapshots.named("overlayfs"))) == 3


async def test_files_whose_names_are_no_text(opened: Session) -> None:
    buffer = io.BytesIO(tar_of(layout(IMAGE)))
    with tarfile.open(fileobj=buffer, mode="a", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        archive.addfile(tarfile.TarInfo("caf\udce9"))

    assert await load(opened, buffer.getvalue()) == ["import:v1"]


async def test_links_in_a_circle_end(opened: Session) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, target in (("a", "b"), ("b", "a")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
        data = b'[{"Config":"a","Layers":[]}]'
        member = tarfile.TarInfo("manifest.json")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))

    with pytest.raises(InvalidArgument, match="not found"):
        await load(opened, buffer.getvalue())


async def test_an_archive_of_both_kinds_is_a_layout(opened: Session) -> None:
    assert await load(opened, {**docker(FOREIGN, "wrong:tag"), **layout(IMAGE)}) == ["import:v1"]


async def test_cve_2026_50195_no_tag_is_set_that_nobody_asked_for(opened: Session, real: RealStores) -> None:
    """An existing tag that nobody asked for is unchanged, whatever the archive calls its image."""
    nginx = "docker.io/library/nginx:latest"
    await load(opened, {**layout(IMAGE), **index_json(named(IMAGE, **{"io.containerd.image.name": nginx}))})
    evil = {**layout(FOREIGN), **index_json(named(FOREIGN, **{"io.containerd.image.name": nginx}))}

    for references in ((), (ExtraReference("example.com/app", is_prefix=True),)):
        await load(opened, evil, ImageStore("", extra_references=references))

    assert real.images.get(NS, nginx).target.digest == IMAGE.digest


async def test_the_index_gets_the_name_that_was_asked_for(opened: Session, real: RealStores) -> None:
    await load(opened, layout(IMAGE), ImageStore("whole"))

    target = real.images.get(NS, "whole").target
    assert target.media_type == INDEX
    assert target.digest == digest(layout(IMAGE)["index.json"])


async def test_blobs_that_are_there_are_passed_over(opened: Session, real: RealStores) -> None:
    large = image({"a": os.urandom(1 << 20)}, {"b": os.urandom(1 << 20)})
    real.content.write_blob("another", "any", large.layers[1])

    for _ in range(2):
        assert await load(opened, layout(large)) == ["import:v1"]


async def test_a_collection_leaves_what_was_imported(stores: Stores, real: RealStores) -> None:
    async with session(stores, NS, "") as opened:
        await load(opened, docker(IMAGE, "a:b"))

    real.collector.collect()

    assert len(names(real.snapshots.named("overlayfs"))) == 2
    assert len(real.digests()) == 4
    assert real.images.get(NS, "docker.io/library/a:b").target.digest in real.digests()


async def test_layers_of_other_platforms_need_not_be_there(opened: Session, real: RealStores) -> None:
    both = index((IMAGE, "amd64"), (FOREIGN, "arm64"))
    entry = descriptor(both, INDEX, annotations={"org.opencontainers.image.ref.name": "v1"})
    archive = {**blobs(IMAGE), f"blobs/{digest(both).replace(':', '/')}": both, **index_json(entry), **LAYOUT}

    assert await load(opened, archive) == ["import:v1"]
    with pytest.raises(NotFound):
        await load(opened, archive, ImageStore("", platforms=(Platform("linux", "arm64"),)))


@pytest.mark.parametrize(
    ("archive", "error"),
    [
        ({}, InvalidArgument),
        ({"file": b"x"}, InvalidArgument),
        (LAYOUT, InvalidArgument),
        ({**layout(IMAGE), "oci-layout": b'{"imageLayoutVersion":"2.0.0"}'}, InvalidArgument),
        ({**layout(IMAGE), "oci-layout": b"[]"}, InvalidArgument),
        ({**layout(IMAGE), "index.json": IMAGE.manifest}, InvalidArgument),
        ({**layout(IMAGE), f"blobs/{IMAGE.digest.replace(':', '/')}": b"other"}, InvalidArgument),
        ({**layout(IMAGE), "blobs/sha256/../../etc/passwd": b"x", "blobs/md5/x": b"y"}, InvalidArgument),
        ({**LAYOUT, **index_json(named(IMAGE))}, NotFound),
        ({**layout(image({"a": b"1"})), **index_json(named(IMAGE))}, NotFound),
        ({"manifest.json": b"{}"}, InvalidArgument),
        ({"manifest.json": b"[1]"}, InvalidArgument),
        ({"manifest.json": b'[{"Config":5,"Layers":[]}]'}, InvalidArgument),
        ({"manifest.json": b'[{"Config":"c","Layers":["gone"]}]', "c": IMAGE.config}, InvalidArgument),
        ({"manifest.json": b'[{"Config":"c","Layers":"x"}]', "c": IMAGE.config}, InvalidArgument),
        ({"manifest.json": b'[{"Config":"c","RepoTags":["UPPER"]}]', "c": IMAGE.config}, InvalidArgument),
    ],
)
async def test_archives_that_are_no_images(
    opened: Session, archive: Files, error: type[Exception], real: RealStores
) -> None:
    with pytest.raises(error):
        await load(opened, archive)

    assert real.images.list(NS) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: gzip.compress(data)[:-200],
        lambda data: zstandard.compress(data)[:-200],
        lambda data: b"\x1f\x8b\x08" + data,
        lambda data: b"<html>" + data,
        lambda data: data[:1000] + b"\xff" * 600 + data[1600:],
    ],
)
async def test_damaged_archives(opened: Session, damage: Callable[[bytes], bytes], real: RealStores) -> None:
    with pytest.raises(InvalidArgument):
        await load(opened, damage(tar_of(layout(IMAGE))))

    assert real.images.list(NS) == []


async def test_cve_2023_25153_a_huge_document_is_not_read(opened: Session) -> None:
    """A document of 4 GiB is refused before it is read: the size in the header is enough."""
    member = tarfile.TarInfo("index.json")
    member.size = 4 << 30

    with pytest.raises(InvalidArgument, match="over the limit"):
        await load(opened, member.tobuf() + bytes(10_000))


async def test_documents_must_not_be_there_twice(opened: Session) -> None:
    once = tar_of(index_json())[:1024]

    with pytest.raises(InvalidArgument, match="twice"):
        await load(opened, once + tar_of(layout(IMAGE)))


async def test_a_bomb_is_given_up(opened: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyctrd.transfer.archive.decompressed.__defaults__", (Limits(1 << 20, 10, 1 << 16),))

    with pytest.raises(InvalidArgument, match="come out of"):
        await load(opened, gzip.compress(tar_of({"big": bytes(4 << 20)})))


async def test_a_client_that_goes_away(opened: Session, real: RealStores) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield tar_of(layout(IMAGE))[:3000]
        raise Cancelled("the client closed its stream")

    with pytest.raises(Cancelled):
        await import_archive(opened, chunks(), ImportStream("s"), DESTINATION, HOST, ChainLocks(), Progress())

    assert real.images.list(NS) == []
