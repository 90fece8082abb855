"""Volumes: what they start with, how long they stay."""

import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pyctr_wire.errors import AlreadyExists, FailedPrecondition, NotFound
from pyctrd.runtime.belongings import Belongings
from pyctrd.runtime.copy_up import copy_up
from pyctrd.runtime.layer_view import LayerView, close_all
from pyctrd.runtime.volumes import Volumes

NS = "default"


@pytest.fixture
def containers() -> set[str]:
    """The ids of containers that are there."""
    return set()


@pytest.fixture
def belongings(tmp_path: Path, containers: set[str]) -> Belongings:
    return Belongings(tmp_path, lambda _, id: id in containers, lambda _: ())


@pytest.fixture
def volumes(belongings: Belongings) -> Volumes:
    return belongings.volumes


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Two layers with a directory /data, the uppermost first."""
    found = [tmp_path / name for name in ("upper", "lower")]
    for layer in found:
        (layer / "data").mkdir(parents=True)
    return found


@pytest.fixture
def copied(tmp_path: Path, layers: list[Path]) -> Callable[[], Path]:
    """Copy /data of the layers into a new directory and return that."""

    def copy() -> Path:
        target = tmp_path / "copy"
        target.mkdir()
        fd = os.open(target, os.O_RDONLY)
        with LayerView(map(str, layers)) as view:
            found = view.directory("/data")
            try:
                copy_up(found, fd)
            finally:
                close_all(found)
                os.close(fd)
        return target

    return copy


def tree(folder: Path) -> dict[str, str]:
    """Return the files below a directory, with their contents."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_layers_are_merged(layers: list[Path], copied: Callable[[], Path]) -> None:
    upper, lower = (layer / "data" for layer in layers)
    (lower / "sub/gone").mkdir(parents=True)
    (lower / "sub/gone/file").write_text("hidden by a whiteout")
    (lower / "sub/stays").write_text("lower")
    (lower / "replaced").write_text("lower")
    (lower / "opaque").mkdir()
    (lower / "opaque/old").write_text("hidden by an opaque directory")
    (upper / "sub").mkdir()
    (upper / "replaced").write_text("upper")
    (upper / "opaque").mkdir()
    (upper / "opaque/new").write_text("upper")
    try:
        os.mknod(upper / "sub/gone", stat.S_IFCHR, os.makedev(0, 0))
        os.setxattr(upper / "opaque", "trusted.overlay.opaque", b"y")
    except PermissionError:
        pytest.skip("only root can make whiteouts here")
    copy = copied()
    assert tree(copy) == {"sub/stays": "lower", "replaced": "upper", "opaque/new": "upper"}
    assert os.listxattr(copy / "opaque") == []


@pytest.mark.root
def test_everything_is_copied_as_it_is(layers: list[Path], copied: Callable[[], Path], tmp_path: Path) -> None:
    data = layers[0] / "data"
    outside = tmp_path / "outside"
    outside.write_text("of the host")
    (data / "file").write_text("x")
    os.setxattr(data / "file", "user.note", b"1")
    (data / "second").hardlink_to(data / "file")
    (data / "link").symlink_to(outside)
    os.mkfifo(data / "fifo", 0o640)
    os.mknod(data / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(data / "socket"))
    with (data / "sparse").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 30)
        file.write(b"in the middle")
    os.chmod(data / "file", 0o4751)
    for path in (data, *data.iterdir()):
        os.chown(path, 33, 44, follow_symlinks=False)
        os.utime(path, ns=(10**18, 10**18 + 5), follow_symlinks=False)
    os.chmod(data / "file", 0o4751)  # the change of its owner took the bit away
    os.chmod(data, 0o1770)
    copy = copied()
    assert sorted(os.listdir(copy)) == sorted(os.listdir(data))
    for original in (data, *data.iterdir()):
        made = copy / original.relative_to(data)
        wanted, found = original.lstat(), made.lstat()
        for field in ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_rdev"):
            assert getattr(found, field) == getattr(wanted, field), (original, field)
    assert os.path.samefile(copy / "file", copy / "second")
    assert os.getxattr(copy / "file", "user.note") == b"1"
    assert os.readlink(copy / "link") == str(outside)
    sparse = (copy / "sparse").stat()
    assert sparse.st_size == 1 << 40
    assert sparse.st_blocks * 512 < 1 << 20
    with (copy / "sparse").open("rb") as file:
        file.seek(1 << 30)
        assert file.read(13) == b"in the middle"


def test_no_descriptor_is_left(layers: list[Path], copied: Callable[[], Path]) -> None:
    (layers[1] / "data/a/b").mkdir(parents=True)
    (layers[1] / "data/a/b/file").write_text("x")
    before = os.listdir("/proc/self/fd")
    copied()
    assert os.listdir("/proc/self/fd") == before


def test_what_is_nested_too_deeply_is_refused(layers: list[Path], copied: Callable[[], Path]) -> None:
    path = layers[0] / "data"
    path.joinpath(*["d"] * 200).mkdir(parents=True)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FailedPrecondition, match="deep"):
        copied()
    assert os.listdir("/proc/self/fd") == before


def test_a_container_that_never_came_to_be_leaves_no_volume(volumes: Volumes, belongings: Belongings) -> None:
    with suppress(OSError), belongings.making(NS, "c1"):
        volumes.make(NS, "c1", "/data", ())
        volumes.sweep()
        volumes.container_gone(NS, "c1")
        assert [(one.container, one.used) for one in volumes.list(NS)] == [("c1", True)]
        with pytest.raises(AlreadyExists), belongings.making(NS, "c1"):
            raise AssertionError
        assert len(volumes.list(NS)) == 1
        raise OSError("cannot be made")
    assert volumes.list(NS) == []


def test_kept_volumes_are_removed_by_name(
    volumes: Volumes, belongings: Belongings, containers: set[str], tmp_path: Path
) -> None:
    with belongings.making(NS, "c1"):
        made = [volumes.make(NS, "c1", target, ()) for target in ("/a", "/b")]
        (made[0] / "file").write_text("x" * 10_000)
        volumes.sync(NS, "c1")
        containers.add("c1")
    volumes.keep(NS, "c1", {made[0].name: "/a", made[1].name: "/b"})
    count, used, size, unused = volumes.size(NS)
    assert (count, used, unused) == (2, 2, 0)
    assert size >= 10_000
    with pytest.raises(FailedPrecondition, match="in use by container c1"):
        volumes.remove(NS, made[0].name)
    with pytest.raises(FailedPrecondition):
        volumes.remove_of(NS, "c1")
    containers.clear()
    volumes.container_gone(NS, "c1")
    volumes.sweep()
    assert volumes.size(NS)[1] == 0
    assert volumes.size(NS)[3] >= 10_000
    with pytest.raises(AlreadyExists), belongings.making(NS, "c2"):
        raise AlreadyExists("c2")  # of another container: nothing of c1 goes
    volumes.remove(NS, made[0].name)
    assert [(one.name, one.target) for one in volumes.list(NS)] == [(made[1].name, "/b")]
    with pytest.raises(NotFound):
        volumes.remove(NS, made[0].name)
    volumes.remove(NS, made[1].name)
    assert os.listdir(tmp_path / "volumes") == []


def test_an_id_whose_volumes_were_kept_is_not_taken_again(
    volumes: Volumes, belongings: Belongings, containers: set[str]
) -> None:
    with belongings.making(NS, "c1"):
        made = volumes.make(NS, "c1", "/a", ())
        containers.add("c1")
    volumes.keep(NS, "c1", {made.name: "/a"})
    containers.clear()
    with pytest.raises(AlreadyExists), belongings.making(NS, "c1"):
        volumes.make(NS, "c1", "/a", ())
    assert made.exists()
