"""OCI documents: what is read, and what is refused."""

import json
from typing import Any

import pytest

from pyctr_wire.errors import InvalidArgument
from pyctr_wire.oci import image_spec
from pyctr_wire.oci.image_spec import Index, Manifest, parse_config, parse_document
from support.images import CONFIG, INDEX, LAYER, MANIFEST, descriptor, digest, image, index

IMAGE = image({"a": b"1"}, {"b": b"2"})
CONFIG_DESCRIPTOR = descriptor(b"{}", CONFIG)
LAYER_DESCRIPTOR = descriptor(b"layer", LAYER)


def manifest(**changes: Any) -> bytes:
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": CONFIG_DESCRIPTOR, "layers": [LAYER_DESCRIPTOR]}
    return json.dumps({key: value for key, value in {**document, **changes}.items() if value is not None}).encode()


def test_a_manifest_is_read() -> None:
    document = parse_document(IMAGE.manifest, MANIFEST)

    assert isinstance(document, Manifest)
    assert document.config.digest == digest(IMAGE.config)
    assert [layer.digest for layer in document.layers] == [digest(layer) for layer in IMAGE.layers]


def test_an_index_is_read_with_its_platforms() -> None:
    document = parse_document(index((IMAGE, "arm64")), INDEX)

    assert isinstance(document, Index)
    [child] = document.manifests
    assert child.platform == image_spec.Platform("linux", "arm64")


@pytest.mark.parametrize("claimed", ["", MANIFEST])
def test_a_document_without_media_type_is_what_its_descriptor_or_form_says(claimed: str) -> None:
    assert isinstance(parse_document(manifest(mediaType=None), claimed), Manifest)


@pytest.mark.parametrize(
    ("data", "claimed"),
    [
        (manifest(manifests=[]), MANIFEST),
        (manifest(manifests=[]), ""),
        (manifest(mediaType=INDEX), MANIFEST),
        (manifest(), INDEX),
        (manifest(mediaType=None), INDEX),
        (index((IMAGE, "amd64")), MANIFEST),
        (b'{"layers":[],"layers":[]}', ""),
        (b"<html>", MANIFEST),
        (b"[" * 100_000, ""),
        (b"[]", MANIFEST),
        (b"{}", MANIFEST),
        (b"\xff\xfe{", ""),
        (manifest(config=None), MANIFEST),
        (manifest(layers={}), MANIFEST),
        (manifest(layers=[None]), MANIFEST),
        (manifest(annotations={"a": 1}), MANIFEST),
        (manifest(mediaType="application/json"), "application/json"),
        (b" " * (image_spec.MAX_DOCUMENT + 1), MANIFEST),
    ],
)
def test_cve_2021_41190_a_document_is_of_one_kind(data: bytes, claimed: str) -> None:
    """No document may be a manifest for one reader and an index for another."""
    with pytest.raises(InvalidArgument):
        parse_document(data, claimed)


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "sha256:../../etc/passwd"},
        {"digest": "sha256:" + "A" * 64},
        {"digest": "md5:" + "0" * 32},
        {"digest": digest(b"") + "\n"},
        {"digest": None},
        {"size": -1},
        {"size": 1.5},
        {"size": True},
        {"size": 1 << 63},
        {"mediaType": 1},
        {"urls": "https://example.com"},
    ],
)
def test_cve_2024_3727_a_digest_is_one(change: dict[str, Any]) -> None:
    """A descriptor is checked before anybody makes a path or a URL of its digest."""
    with pytest.raises(InvalidArgument):
        parse_document(manifest(layers=[{**LAYER_DESCRIPTOR, **change}]), MANIFEST)


def test_schema_1_is_refused_with_a_remedy() -> None:
    with pytest.raises(InvalidArgument, match="no longer supported"):
        parse_document(
            b'{"schemaVersion":1,"fsLayers":[]}', "application/vnd.docker.distribution.manifest.v1+prettyjws"
        )


def test_a_configuration_is_read() -> None:
    data = json.dumps(
        {
            "os": "linux",
            "architecture": "arm",
            "variant": "v7",
            "rootfs": {"type": "layers", "diff_ids": [digest(b"")]},
            "config": {"Env": ["A=b"], "Cmd": None, "Entrypoint": ["/init"], "Volumes": {"/data": {}}, "User": "me"},
        }
    ).encode()

    config = parse_config(data)

    assert config.platform == image_spec.Platform("linux", "arm", "v7")
    assert config.diff_ids == (digest(b""),)
    assert config.process == image_spec.ProcessConfig(("A=b",), ("/init",), volumes=("/data",), user="me")


@pytest.mark.parametrize(
    "data", [b'{"rootfs":{"type":"zip"}}', b'{"rootfs":{"diff_ids":["x"]}}', b'{"config":{"Env":"A=b"}}', b'{"os":1}']
)
def test_a_configuration_of_another_form_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        parse_config(data)


def test_what_is_encoded_is_read_again() -> None:
    original = parse_document(IMAGE.manifest)
    listed = Index((image_spec.Descriptor(MANIFEST, IMAGE.digest, 1, {"a": "b"}, image_spec.Platform("linux", "386")),))

    assert parse_document(image_spec.encode(original)) == original
    assert parse_document(image_spec.encode(listed)) == listed


def test_sizes_and_digests_of_other_algorithms() -> None:
    assert image_spec.digest_like("sha512:", b"") == image_spec.check_digest(image_spec.digest_like("sha512:", b""))
    with pytest.raises(InvalidArgument):
        image_spec.check_size(image_spec.MAX_DOCUMENT + 1, "a document")


@pytest.mark.parametrize("text", [r"\ud800", r"x\uDFFFy", r"\udc00\ud800", r"\ud83d\u0020"])
def test_half_a_surrogate_pair_is_refused(text: str) -> None:
    """Nobody could be told of it."""
    for document in (f'{{"a":"{text}"}}', f'{{"{text}":1}}', f'["{text}"]'):
        with pytest.raises(InvalidArgument):
            image_spec.load_json(document.encode(), "document")


def test_whole_pairs_and_escapes_are_read() -> None:
    assert image_spec.load_json(rb'["\ud83d\udc0b","\\ud800","\u00d8"]', "document") == [
        "\U0001f40b",
        r"\ud800",
        "\u00d8",
    ]
