"""What layers make of each other, whichever snapshotter holds them."""

import stat
import tarfile
from typing import Any

import pytest

from pyctr_wire.errors import InvalidArgument
from support.layers import archive, directory, entry, hard_link, header, symlink
from support.unpacking import Unpacking, mounted, tree

pytestmark = pytest.mark.root

BASE = [
    directory("d"), entry("d/one", b"1"), entry("d/two", b"2"), directory("d/sub"), entry("d/sub/deep", b"deep"),
    entry("f", b"f"), symlink("to-d", "d"), symlink("out", "/../../tmp/pyctr-escape"), symlink("absolute", "/d"),
]  # fmt: skip

ALL = {
    "d": "/", "d/one": "1", "d/two": "2", "d/sub": "/", "d/sub/deep": "deep", "f": "f", "to-d": "-> d",
    "out": "-> /../../tmp/pyctr-escape", "absolute": "-> /d",
}  # fmt: skip


def without(*names: str) -> dict[str, str]:
    return {path: what for path, what in ALL.items() if not any(f"{path}/".startswith(f"{name}/") for name in names)}


CASES: dict[str, tuple[list[Any], dict[str, str]]] = {
    "a whiteout": ([entry("d/.wh.one", b"")], without("d/one")),
    "a whiteout of a directory": ([entry(".wh.d", b"")], without("d")),
    "a whiteout of nothing": ([entry(".wh.none", b""), entry("d/.wh.none", b"")], ALL),
    "an opaque directory": (
        [directory("d"), entry("d/.wh..wh..opq", b""), entry("d/new", b"n")],
        {**without("d"), "d": "/", "d/new": "n"},
    ),
    "an opaque marker after the entries": (
        [directory("d"), entry("d/new", b"n"), directory("d/sub"), entry("d/.wh..wh..opq", b"")],
        {**without("d"), "d": "/", "d/new": "n", "d/sub": "/"},
    ),
    "opaque, inside and outside": (
        [
            directory("d"), directory("d/sub"), entry("d/sub/x", b"x"), entry("d/sub/.wh..wh..opq", b""),
            entry("d/.wh..wh..opq", b""),
        ],
        {**without("d"), "d": "/", "d/sub": "/", "d/sub/x": "x"},
    ),
    "an opaque root": (
        [entry("new", b"n"), entry(".wh..wh..opq", b""), directory("d")], {"new": "n", "d": "/"},
    ),
    "deleted, then made again": (
        [entry(".wh.d", b""), directory("d"), entry("d/new", b"n")], {**without("d"), "d": "/", "d/new": "n"},
    ),
    "deleted, then made by a file in it": (
        [entry(".wh.d", b""), entry("d/new", b"n")], {**without("d"), "d": "/", "d/new": "n"},
    ),
    "made, then a whiteout of it": (
        [directory("d"), entry("d/new", b"n"), entry(".wh.d", b"")], {**without("d"), "d": "/", "d/new": "n"},
    ),
    "a file and its whiteout": ([entry("f", b"new"), entry(".wh.f", b"")], {**ALL, "f": "new"}),
    "a whiteout and its file": ([entry(".wh.f", b""), entry("f", b"new")], {**ALL, "f": "new"}),
    "two whiteouts of one name": ([entry(".wh.f", b""), entry(".wh.f", b"")], without("f")),
    "a directory becomes a file": ([entry("d", b"file")], {**without("d"), "d": "file"}),
    "a file becomes a directory": ([directory("f"), entry("f/x", b"x")], {**ALL, "f": "/", "f/x": "x"}),
    "a file twice": ([entry("n", b"1"), entry("n", b"22")], {**ALL, "n": "22"}),
    "a directory twice": (
        [directory("n"), entry("n/x", b"x"), directory("n", mode=0o700)], {**ALL, "n": "/", "n/x": "x"},
    ),
    "a symlink becomes a directory": ([symlink("n", "d"), directory("n"), entry("n/x", b"x")],
        {**ALL, "n": "/", "n/x": "x"}),
    "a tree becomes a file": (
        [directory("n"), directory("n/a"), entry("n/a/b", b""), entry("n", b"file")], {**ALL, "n": "file"},
    ),
    "odd spellings": (
        [entry("./d//./new", b"n"), entry("/top", b"t"), entry("d/../side", b"s"), directory("./")],
        {**ALL, "d/new": "n", "top": "t", "side": "s"},
    ),
    "names that lead up": (
        [entry("../../up", b"u"), entry("d/../../../up2", b"u"), directory(".."), entry("../.wh.f", b"")],
        {**without("f"), "up": "u", "up2": "u"},
    ),
    "bookkeeping of aufs": ([directory(".wh..wh.plnk"), entry(".wh..wh.plnk/1", b""), entry(".wh..wh.aufs", b"")], ALL),
    "parents that the layer has no entry for": ([entry("p/q/r", b"r")], {**ALL, "p": "/", "p/q": "/", "p/q/r": "r"}),
    "a hard link to a file of the layer": (
        [entry("n", b"n"), hard_link("d/link", "./n"), hard_link("/top", "/d/../n")],
        {**ALL, "n": "n", "d/link": "n", "top": "n"},
    ),
    "through a symlink of the layer": (
        [directory("real"), symlink("s", "/real"), entry("s/x", b"x"), symlink("t", "../../.."), entry("t/y", b"y")],
        {**ALL, "real": "/", "s": "-> /real", "real/x": "x", "t": "-> ../../..", "y": "y"},
    ),
    "through a symlink that leads nowhere": (
        [symlink("s", "/made/for/it"), entry("s/x", b"x")],
        {**ALL, "s": "-> /made/for/it", "made": "/", "made/for": "/", "made/for/it": "/", "made/for/it/x": "x"},
    ),
    "through a file that became a directory": (
        [symlink("s", "d"), entry("s", b"f"), directory("s"), entry("s/x", b"x")], {**ALL, "s": "/", "s/x": "x"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
@pytest.mark.parametrize(("layer", "expected"), CASES.values(), ids=CASES.keys())
async def test_a_layer_on_another_one(
    unpacking: Unpacking, snapshotter: str, layer: list[Any], expected: dict[str, str]
) -> None:
    """The merged view is the same whether the layers are stacked or copied."""
    unpacking.base(snapshotter, "base", BASE)
    await unpacking.snapshot(snapshotter, "top", "base", layer)

    with mounted(unpacking.view(snapshotter, "top")) as root:
        assert tree(root) == expected
    with mounted(unpacking.view(snapshotter, "base")) as root:
        assert tree(root) == ALL


async def test_a_symlink_of_a_lower_layer_is_replaced_by_a_directory(unpacking: Unpacking) -> None:
    """In an upper directory the lower symlink is not there to follow: as containerd, and as any other overlay."""
    unpacking.base("overlayfs", "base", BASE)
    await unpacking.snapshot("overlayfs", "top", "base", [entry("to-d/x", b"x")])

    with mounted(unpacking.view("overlayfs", "top")) as root:
        assert tree(root) == {**ALL, "to-d": "/", "to-d/x": "x"}


async def test_missing_parents_take_after_the_lower_ones(unpacking: Unpacking) -> None:
    """Mode, owner, attributes and times of a directory that a layer only passes through stay what they were."""
    special = directory("d", mode=0o3711, uid=7, gid=8, mtime=12345, pax_headers={"SCHILY.xattr.user.key": "value"})
    unpacking.base("overlayfs", "base", [special])
    await unpacking.snapshot("overlayfs", "middle", "base", [entry("e", b"")])
    await unpacking.snapshot("overlayfs", "top", "middle", [entry("d/new/file", b"x")])

    with mounted(unpacking.view("overlayfs", "top")) as root:
        status = (root / "d").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o3711, 7, 8)
        assert status.st_mtime == 12345
        assert tree(root) == {"d": "/", "d/new": "/", "d/new/file": "x", "e": ""}


REFUSED = {
    "a hard link out": [hard_link("n", "../../../etc/passwd")],
    "a hard link through a symlink": [symlink("s", "/etc"), hard_link("n", "s/passwd")],
    "a hard link to a directory": [directory("n"), hard_link("m", "n")],
    "a hard link to what was replaced": [entry("n", b""), entry(".wh.n", b""), hard_link("m", "gone")],
    "a whiteout of the directory": [entry("d/.wh..", b"")],
    "a whiteout of its parent": [entry("d/.wh...", b"")],
    "a whiteout of no name": [entry("d/.wh.", b"")],
    "an entry below a file": [entry("n", b""), entry("n/x", b"")],
    "a symlink to nothing": [symlink("n", "")],
    "symlinks in a circle": [symlink("n", "m"), symlink("m", "n"), entry("n/x", b"")],
    "a device of no number": [entry("n", type=tarfile.CHRTYPE, devmajor=0o7777777, devminor=0)],
}


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
@pytest.mark.parametrize("layer", REFUSED.values(), ids=REFUSED.keys())
async def test_what_no_layer_may_ask_for(unpacking: Unpacking, snapshotter: str, layer: list[Any]) -> None:
    """Refused with the blob and the entry named."""
    unpacking.base(snapshotter, "base", BASE)

    with pytest.raises(InvalidArgument, match=r"failed to unpack layer sha256:\w+: entry '"):
        await unpacking.snapshot(snapshotter, "top", "base", layer)


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
async def test_cve_2026_95838_many_opaque_markers(unpacking: Unpacking, snapshotter: str) -> None:
    """100,000 markers all over a deep tree are done with before the test's time limit: each directory is read once."""
    depth = 39
    paths = ["/".join(["d"] * level) for level in range(1, depth + 1)]
    base = [item for path in paths for item in (directory(path), *(entry(f"{path}/f{n}", b"") for n in range(20)))]
    unpacking.base(snapshotter, "base", base)
    markers = b"".join(header(f"{path}/.wh..wh..opq".encode()) for path in paths)
    kept = archive([entry("/".join(["d"] * 30) + "/kept", b"k")])
    await unpacking.snapshot(snapshotter, "top", "base", kept[:1024] + markers * (100_000 // len(paths)) + kept)

    with mounted(unpacking.view(snapshotter, "top")) as root:
        files = {path: what for path, what in tree(root).items() if what != "/"}
    assert files == {"/".join(["d"] * 30) + "/kept": "k"}
