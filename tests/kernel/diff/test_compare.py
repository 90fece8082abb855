"""Layers that Diff makes: applied to the left view, they give the right one."""

import gzip
import io
import os
import random
import shutil
import struct
import tarfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
import zstandard

from pyctr_wire.errors import InvalidArgument, Unavailable, Unimplemented, UnknownError
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.mounts import Mount
from support.layers import directory, entry, hard_link, symlink
from support.stores import NS
from support.unpacking import TAR, Unpacking, mounted

pytestmark = pytest.mark.root

UNCOMPRESSED = "containerd.io/uncompressed"
BASE = [
    directory("d"), entry("d/one", b"1"), entry("d/two", b"2"), directory("d/sub"), entry("d/sub/deep", b"deep"),
    entry("f", b"f"), symlink("s", "d"), entry("h", b"h"), hard_link("i", "h"),
]  # fmt: skip


class Changing:
    """An active snapshot on a base, to be changed and compared."""

    def __init__(self, unpacking: Unpacking, snapshotter: str) -> None:
        self.unpacking = unpacking
        self.snapshots = unpacking.stores.snapshots.named(snapshotter)
        self.snapshotter = snapshotter

    async def make(self, change: Callable[[Path], None]) -> tuple[Sequence[Mount], Sequence[Mount]]:
        """Return the mounts of the base and of what `change` made of it."""
        self.unpacking.base(self.snapshotter, "base", BASE)
        right = self.snapshots.prepare(NS, "changed", "base", {})
        with mounted(right) as root:
            change(root)
        return self.unpacking.view(self.snapshotter, "base"), right


def members(unpacking: Unpacking, layer: Descriptor) -> dict[str, tarfile.TarInfo]:
    """Return what is in a layer, by tarfile's reading."""
    data = unpacking.stores.content.read_path(NS, layer.digest).read_bytes()
    if layer.media_type.endswith("+gzip"):
        data = gzip.decompress(data)
    elif layer.media_type.endswith("+zstd"):
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {info.name: info for info in tar}


def everything(root: Path) -> dict[str, tuple[object, ...]]:
    """Return all that matters about a tree."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        time = 0 if path.is_dir() and not path.is_symlink() else int(status.st_mtime)
        what = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(root))] = (status.st_mode, status.st_uid, status.st_gid, time, status.st_rdev, what)
    return found


def change_some(root: Path) -> None:
    (root / "d/one").unlink()
    (root / "d/sub/new").mkdir()
    (root / "d/sub/new/file").write_text("x")
    (root / "f").write_text("changed")
    shutil.rmtree(root / "d/sub/new")
    (root / "made/of/dirs").mkdir(parents=True)
    (root / "made/of/dirs/f").write_text("made")
    os.link(root / "made/of/dirs/f", root / "made/link")
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", 0o666 | 0o20000, os.makedev(1, 3))
    (root / "s").unlink()
    (root / "s").symlink_to("made")
    os.setxattr(root / "f", "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
    os.setxattr(root / "f", "user.other", b"x")
    os.utime(root / "made/link", (5, 5))


EXPECTED = {
    "d": tarfile.DIRTYPE, "d/.wh.one": tarfile.REGTYPE, "f": tarfile.REGTYPE, "fifo": tarfile.FIFOTYPE,
    "made": tarfile.DIRTYPE, "made/link": tarfile.REGTYPE, "made/of": tarfile.DIRTYPE,
    "made/of/dirs": tarfile.DIRTYPE, "made/of/dirs/f": tarfile.LNKTYPE, "null": tarfile.CHRTYPE,
    "s": tarfile.SYMTYPE,
}  # fmt: skip


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
async def test_what_a_layer_holds(unpacking: Unpacking, snapshotter: str) -> None:
    """What changed, the directories that lead there, and nothing else; in order, with few attributes."""
    left, right = await Changing(unpacking, snapshotter).make(change_some)
    layer = await unpacking.differ.diff(NS, left, right, labels={"mine": "yes"})

    found = members(unpacking, layer)
    assert {name: info.type for name, info in found.items()} == EXPECTED
    assert list(found) == sorted(found, key=lambda name: name.replace(".wh.", "").split("/"))
    assert found["made/of/dirs/f"].linkname == "made/link"
    assert found["made/link"].mtime == 5
    assert (found["null"].devmajor, found["null"].devminor) == (1, 3)
    assert [key for key in found["f"].pax_headers if "xattr" in key] == ["SCHILY.xattr.security.capability"]
    whiteout = found["d/.wh.one"]
    assert (whiteout.size, whiteout.mtime, whiteout.mode) == (0, 0, 0)
    assert all((info.uname, info.gname) == ("", "") for info in found.values())

    assert (layer.media_type, dict(layer.annotations)) == (f"{TAR}+gzip", {})
    info = unpacking.stores.content.info(NS, layer.digest)
    assert info.size == layer.size
    applied = await unpacking.differ.apply(NS, layer, [Mount("tmpfs", "tmpfs")])
    assert info.labels == {"mine": "yes", UNCOMPRESSED: applied.digest}


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
@pytest.mark.parametrize("seed", range(4))
async def test_a_layer_brings_its_base_to_where_it_came_from(unpacking: Unpacking, snapshotter: str, seed: int) -> None:
    """Random changes, compared, and applied to the base again."""
    left, right = await Changing(unpacking, snapshotter).make(lambda root: change_at_random(root, random.Random(seed)))
    layer = await unpacking.differ.diff(NS, left, right, media_type=f"{TAR}+zstd")
    again = unpacking.stores.snapshots.named(snapshotter).prepare(NS, "again", "base", {})
    await unpacking.differ.apply(NS, layer, again)

    with mounted(right) as one, mounted(again) as other:
        assert everything(other) == everything(one)


def change_at_random(root: Path, rng: random.Random) -> None:
    for step in range(40):
        paths = sorted(path for path in root.rglob("*") if not path.is_symlink())
        directories = [root, *(path for path in paths if path.is_dir())]
        target = rng.choice(directories) / f"n{rng.randrange(30)}"
        match rng.randrange(7):
            case 0 if not os.path.lexists(target):
                target.mkdir(mode=rng.choice((0o700, 0o755)))
            case 1 if not target.is_dir() and not target.is_symlink():
                target.write_text(f"content {step}")
            case 2 if not os.path.lexists(target):
                target.symlink_to(rng.choice(("d", "nowhere", "/")))
            case 3 if paths:
                path = rng.choice(paths)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            case 4 if paths:
                os.chown(rng.choice(paths), rng.randrange(3), rng.randrange(3))
            case 5 if paths:
                path = rng.choice(paths)
                if not path.is_dir():
                    path.unlink()
                    path.mkdir()
            case _ if paths:
                path = rng.choice(paths)
                if not path.is_dir():
                    os.utime(path, (step, step))


def name_again(root: Path) -> None:
    """Give files of the base further names: sorted before and after the old one, in other directories, in a chain."""
    for old, new in (("f", "again"), ("d/two", "d/zwei"), ("d/sub/deep", "deep"), ("h", "d/h"), ("s", "t")):
        os.link(root / old, root / new, follow_symlinks=False)
    os.link(root / "again", root / "made")
    (root / "made").unlink()


NAMED_AGAIN = {
    "again": "", "d": "", "d/h": "", "d/two": "d/zwei", "d/zwei": "", "deep": "", "d/sub": "", "d/sub/deep": "deep",
    "f": "again", "h": "d/h", "s": "t", "t": "d",
}  # fmt: skip


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
async def test_a_new_name_of_an_old_file(unpacking: Unpacking, snapshotter: str) -> None:
    """The old name is written beside the new one, as a link, so that they stay the names of one file."""
    left, right = await Changing(unpacking, snapshotter).make(name_again)
    layer = await unpacking.differ.diff(NS, left, right)
    again = unpacking.stores.snapshots.named(snapshotter).prepare(NS, "again", "base", {})
    await unpacking.differ.apply(NS, layer, again)

    found = members(unpacking, layer)
    # Where names of a file have parted already, in the lower directory of an overlay, the others are as they were.
    also = {"i": "d/h"} if snapshotter == "native" else {}
    assert {name: info.linkname for name, info in found.items()} == {**NAMED_AGAIN, **also}
    with mounted(right) as one, mounted(again) as other:
        assert everything(other) == everything(one)
        for names in (("again", "f"), ("d/two", "d/zwei"), ("d/sub/deep", "deep"), ("d/h", "h"), ("s", "t")):
            assert os.path.samestat(*((other / name).lstat() for name in names))


async def test_a_file_with_capabilities_keeps_them_under_each_name(unpacking: Unpacking) -> None:
    """A link's entry has them too: who applies it changes the owner, and the kernel takes them for that."""
    capabilities = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)

    def change(root: Path) -> None:
        os.link(root / "f", root / "g")
        os.setxattr(root / "f", "security.capability", capabilities)

    left, right = await Changing(unpacking, "overlayfs").make(change)
    layer = await unpacking.differ.diff(NS, left, right)
    again = unpacking.stores.snapshots.named("overlayfs").prepare(NS, "again", "base", {})
    await unpacking.differ.apply(NS, layer, again)

    found = members(unpacking, layer)
    assert found["g"].linkname == "f"
    assert all("SCHILY.xattr.security.capability" in found[name].pax_headers for name in ("f", "g"))
    with mounted(again) as root:
        assert os.getxattr(root / "g", "security.capability") == capabilities


async def test_the_same_change_gives_the_same_blob(unpacking: Unpacking) -> None:
    """Also when it is there already, which gets the labels beside its own."""
    left, right = await Changing(unpacking, "overlayfs").make(change_some)
    first = await unpacking.differ.diff(NS, left, right, labels={"a": "1"}, ref="mine")
    second = await unpacking.differ.diff(NS, left, right, labels={"b": "2"}, ref="mine")

    assert first == second
    assert unpacking.stores.content.info(NS, first.digest).labels.keys() == {"a", "b", UNCOMPRESSED}
    assert not list(unpacking.stores.content.list_statuses(NS))


async def test_times_no_later_than_the_epoch(unpacking: Unpacking) -> None:
    """For reproducible builds: everything newer is cut to it, whiteouts have it."""
    left, right = await Changing(unpacking, "overlayfs").make(change_some)
    epoch = datetime.fromtimestamp(1000, UTC)
    layer = await unpacking.differ.diff(NS, left, right, media_type=TAR, source_date_epoch=epoch)

    found = members(unpacking, layer)
    assert {name for name, info in found.items() if info.mtime != 1000} == {"made/link", "made/of/dirs/f"}
    assert unpacking.stores.content.info(NS, layer.digest).labels == {}


async def test_a_base_is_compared_with_nothing(unpacking: Unpacking) -> None:
    """No mounts on the left: everything is new."""
    unpacking.base("overlayfs", "base", BASE)
    layer = await unpacking.differ.diff(NS, [], unpacking.view("overlayfs", "base"), media_type=TAR)
    assert list(members(unpacking, layer)) == ["d", "d/one", "d/sub", "d/sub/deep", "d/two", "f", "h", "i", "s"]


async def test_versions_made_within_one_second_differ_by_content(unpacking: Unpacking) -> None:
    """Same size, same whole second: only the bytes tell."""

    def change(root: Path) -> None:
        (root / "f").write_text("g")
        os.utime(root / "f", (1_000_000_000, 1_000_000_000))
        os.utime(root / "d/one", (1_000_000_000, 1_000_000_000))

    for snapshotter in ("overlayfs", "native"):
        left, right = await Changing(unpacking, snapshotter).make(change)
        layer = await unpacking.differ.diff(NS, left, right, media_type=TAR)
        assert list(members(unpacking, layer)) == ["f"]


async def test_what_cannot_be_compared(unpacking: Unpacking) -> None:
    """Each with its own class, and no ingest left behind."""
    left, right = await Changing(unpacking, "overlayfs").make(lambda root: (root / ".wh.x").touch())
    with pytest.raises(InvalidArgument, match=r"'\.wh\.x': in a layer"):
        await unpacking.differ.diff(NS, left, right)
    with pytest.raises(Unimplemented, match="unsupported diff media type: text/plain"):
        await unpacking.differ.diff(NS, left, right, media_type="text/plain")
    with pytest.raises(UnknownError, match="No such file"):
        await unpacking.differ.diff(NS, left, [Mount("bind", "/nowhere", "", ("ro",))])
    with unpacking.stores.content.open_writer(NS, "taken"), pytest.raises(Unavailable):
        await unpacking.differ.diff(NS, left, right, ref="taken")
    assert [status.ref for status in unpacking.stores.content.list_statuses(NS)] == ["taken"]


async def test_names_and_numbers_that_take_extended_headers(unpacking: Unpacking) -> None:
    """Long names, names that are no text, large ids: what is read back is what was there."""
    long = "n" * 200
    odd = b"\xff\xfe-\xc3\xa9"

    def change(root: Path) -> None:
        (root / long / long).mkdir(parents=True)
        (root / long / long / long).symlink_to("t/" * 150)
        (root / "d/one").write_text("x")
        os.chown(root / "d/one", 3_000_000_000, 2_097_152)
        Path(os.fsdecode(os.fsencode(root) + b"/" + odd)).write_text("odd")

    left, right = await Changing(unpacking, "overlayfs").make(change)
    layer = await unpacking.differ.diff(NS, left, right)
    again = unpacking.stores.snapshots.named("overlayfs").prepare(NS, "again", "base", {})
    await unpacking.differ.apply(NS, layer, again)
    with mounted(right) as one, mounted(again) as other:
        assert everything(other) == everything(one)
        assert odd in os.listdir(os.fsencode(other))
