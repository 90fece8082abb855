"""The files of a checkpoint that somebody else may have made."""

import json
import os
import struct
from pathlib import Path

import pytest

from pyctr_shim.oci.checkpoint import images
from pyctr_shim.oci.errors import OciError
from pyctr_wire.criu import images_pb2


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "inventory.img").write_bytes(b"x")
    return tmp_path


def write_filters(directory: Path, *filters: images_pb2.Filter) -> None:
    data = images_pb2.Filters(filters=filters).SerializeToString()
    (directory / "seccomp.img").write_bytes(struct.pack("<III", 0x54564319, 0x64413049, len(data)) + data)


def test_plain_files_are_a_checkpoint(checkpoint: Path) -> None:
    images.check(str(checkpoint))


def test_a_directory_without_an_inventory_is_none(tmp_path: Path) -> None:
    with pytest.raises(OciError, match=r"no inventory\.img"):
        images.check(str(tmp_path))


@pytest.mark.parametrize("kind", ["link", "directory", "fifo"])
def test_whatever_is_no_plain_file_is_refused(checkpoint: Path, kind: str) -> None:
    path = checkpoint / "pages-1.img"
    if kind == "link":
        path.symlink_to("/etc/shadow")
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)

    with pytest.raises(OciError, match=r"pages-1\.img is not a regular file"):
        images.check(str(checkpoint))


@pytest.mark.parametrize("target", ["/var/lib", "../a/../../b", "here", ""])
def test_a_parent_lies_beside_the_images(checkpoint: Path, target: str) -> None:
    with pytest.raises(OciError, match="must lie beside"):
        images.check_parent(target)


def test_a_parent_beside_the_images_is_allowed(checkpoint: Path) -> None:
    (checkpoint / "parent").symlink_to("../before")

    images.check(str(checkpoint))


def test_descriptors_come_back(checkpoint: Path) -> None:
    images.write_descriptors(str(checkpoint), ["/dev/null", "pipe:[7]", ""])

    assert images.read_descriptors(str(checkpoint)) == ["/dev/null", "pipe:[7]", ""]


def test_a_checkpoint_without_descriptors_has_none(checkpoint: Path) -> None:
    assert images.read_descriptors(str(checkpoint)) == []


@pytest.mark.parametrize("document", [{"0": "x"}, [1, 2], "text"])
def test_descriptors_are_a_list_of_texts(checkpoint: Path, document: object) -> None:
    (checkpoint / "descriptors.json").write_text(json.dumps(document))

    with pytest.raises(OciError, match="not a list of texts"):
        images.read_descriptors(str(checkpoint))


def test_descriptors_that_are_a_link_are_not_read(checkpoint: Path) -> None:
    (checkpoint / "descriptors.json").symlink_to("inventory.img")

    with pytest.raises(OSError, match="symbolic"):
        images.read_descriptors(str(checkpoint))


def test_the_filters_loaded_first_are_those_above_none(checkpoint: Path) -> None:
    first, second = images_pb2.Filter(program=b"first"), images_pb2.Filter(program=b"second", previous=0)
    write_filters(checkpoint, first, second)

    assert list(images.first_filters(str(checkpoint))) == [b"first"]


def test_a_checkpoint_without_filters_has_none(checkpoint: Path) -> None:
    assert list(images.first_filters(str(checkpoint))) == []


def write_mounts(path: Path, *mounts: bytes) -> None:
    header = struct.pack("<II", 0x54564319, 0x55563928)
    path.write_bytes(header + b"".join(struct.pack("<I", len(data)) + data for data in mounts))


def test_slaves_of_masters_that_are_not_in_the_container_are_freed(checkpoint: Path) -> None:
    """Only where we make them slaves again; what else CRIU has written down about a mount stays."""
    mount = images_pb2.Mount
    unknown = b"\x18\x07"  # field 3, 7
    write_mounts(
        checkpoint / "mountpoints-13.img",
        mount(where="/volume", master=2).SerializeToString() + unknown,
        mount(where="/of the container", master=2).SerializeToString(),
        mount(where="/shared", group=5, master=2).SerializeToString(),
        mount(where="/inside", master=5).SerializeToString(),
    )

    ((name, data),) = images.without_masters(str(checkpoint), {"/volume", "/shared", "/inside"})

    assert name == "mountpoints-13.img"
    (checkpoint / name).write_bytes(data)
    found = list(images._messages(str(checkpoint), name, 0x55563928))
    assert [(mount.FromString(item).where, mount.FromString(item).master) for item in found] == [
        ("/volume", 0), ("/of the container", 2), ("/shared", 2), ("/inside", 5),
    ]  # fmt: skip
    assert unknown in found[0]


@pytest.mark.parametrize("data", [b"", b"xx", b"\xff\0\0\0cut", b"\x01\0\0\0\xff"])
def test_an_image_of_mounts_that_is_none_is_refused(checkpoint: Path, data: bytes) -> None:
    path = checkpoint / "mountpoints-1.img"
    write_mounts(path)
    path.write_bytes(path.read_bytes() + data if data else b"other")

    with pytest.raises(OciError, match=r"mountpoints-1\.img"):
        list(images.without_masters(str(checkpoint), {"/"}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        struct.pack("<III", 1, 2, 0),
        struct.pack("<III", 0x54564319, 0x64413049, 9),
        struct.pack("<III", 0x54564319, 0x64413049, 1) + b"\xff",
    ],
)
def test_an_image_of_filters_that_is_none_is_refused(checkpoint: Path, data: bytes) -> None:
    (checkpoint / "seccomp.img").write_bytes(data)

    with pytest.raises(OciError, match=r"seccomp\.img"):
        list(images.first_filters(str(checkpoint)))
