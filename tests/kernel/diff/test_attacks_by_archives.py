"""Published archives that got out of where they were unpacked, by number: here each stays inside or is refused."""

import os
import re
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import pyctr_shim
import pyctr_sys
import pyctr_wire
import pyctrd
from pyctr_wire.errors import InvalidArgument, UnknownError
from pyctrd.core.mounts import Mount
from support.attackers import snapshot
from support.layers import archive, directory, entry, hard_link, symlink
from support.stores import NS
from support.unpacking import Unpacking

pytestmark = pytest.mark.root
Members = list[Any]
_DEEP = "d" * 247  # 16 of them are near PATH_MAX, which ends what realpath(3) looks at
_STEPS = "abcdefghijklmnop"


def beyond_realpath(outside: Path) -> tuple[Members, str]:
    """Return links so long that their target is not looked at to its end, and the name that leads out by them."""
    members, here = [], ""
    for step in _STEPS:
        members += [directory(f"{here}{_DEEP}"), symlink(f"{here}{step}", _DEEP)]
        here += f"{_DEEP}/"
    long = "/".join(_STEPS) + "/" + "l" * 254
    members += [symlink(long, "../" * len(_STEPS)), symlink("escape", f"{long}/../../../../../../../../..{outside}")]
    return members, "escape"


def attacks(outside: Path) -> dict[str, Members]:
    up = f"../../../../../../../../../..{outside}"
    long, escape = beyond_realpath(outside)
    return {
        "2007-4559": [entry(f"{up}/planted", b"x"), entry(f"/{outside}/planted", b"x"), entry("a/../../planted", b"x")],
        "2024-12718": [
            symlink("x", up), directory("x", mode=0o777, mtime=1), symlink("file", f"{up}/file"),
            entry("file", b"x", mode=0o4777), directory("x/deep", mode=0o777, uid=7, gid=7),
            hard_link("kept", f"{up}/file", mode=0o777, uid=7, mtime=1),
        ],
        "2025-4138": [symlink("a", "."), symlink("a/b", ".."), symlink("a/b/c", up), entry("a/b/c/planted", b"x"),
                      symlink("s", f"a/{up}"), entry("s/planted", b"x")],
        "2025-4330": [*long, hard_link("mine", f"{escape}/file"), entry("mine", b"x"), hard_link("h", f"{up}/file")],
        "2025-4435": [entry("../planted", b"x"), entry("after", b"y"), symlink("../planted-link", str(outside))],
        "2025-4517": [*long, entry(f"{escape}/planted", b"x"), symlink("flag", f"{escape}/file"), entry("flag", b"x")],
        "2026-4360": [symlink("d", str(outside)), directory("d/deep"), entry("d/deep/planted", b"x"),
                      entry("d/file", b"x"), hard_link("n", "d/file"), entry("n", b"y")],
        "2021-32760": [symlink("d", str(outside)), directory("d", mode=0o700), hard_link("h", "d/file", mode=0o4777)],
        "2025-47290": [symlink("d", str(outside)), entry("d/.wh.file", b""), entry("d/.wh..wh..opq", b"")],
    }  # fmt: skip


NAMES = list(attacks(Path("/x")))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("snapshotter", ["bind", "overlayfs"])
async def test_cve_2007_4559_archives_that_want_out(
    unpacking: Unpacking, tmp_path: Path, name: str, snapshotter: str
) -> None:
    """Also CVE-2024-12718, -2025-4138, -2025-4330, -2025-4435, -2025-4517, -2026-4360, -2021-32760, -2025-47290."""
    outside, target = tmp_path / "outside", tmp_path / "target"
    for folder in (outside / "deep", target):
        folder.mkdir(parents=True)
    (outside / "file").write_text("kept")
    before = snapshot(outside)
    mounts = [Mount("bind", str(target), "", ("rw", "rbind"))]
    if snapshotter == "overlayfs":
        snapshots = unpacking.stores.snapshots.named(snapshotter)
        unpacking.base(snapshotter, "base", [directory("d"), entry("file", b"")])
        mounts = list(snapshots.prepare(NS, "active", "base", {}))

    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with suppress(InvalidArgument, UnknownError):  # it may be refused
            await unpacking.apply(archive(attacks(outside)[name], format), mounts)

    assert snapshot(outside) == before
    assert not (tmp_path / "planted").exists()
    assert not os.path.lexists(tmp_path / "planted-link")


def test_cve_2007_4559_the_standard_library_unpacks_nothing_for_us() -> None:
    """Neither in the daemon nor in the shim: it may write archives, its reader is not asked."""
    reading = re.compile(r'\.extract(all|file)?\(|unpack_archive|tarfile\.open\((?!.*mode="w)')
    packages = (pyctr_shim, pyctr_sys, pyctr_wire, pyctrd)

    found = [path for package in packages for path in Path(package.__path__[0]).rglob("*.py")]

    assert len(found) > 200
    assert [str(path) for path in found if reading.search(path.read_text())] == []


async def test_cve_2025_47290_a_target_of_several_mounts(unpacking: Unpacking, tmp_path: Path) -> None:
    """Where one mount's target is a link in another, what it leads to is looked up in that."""
    outside, image, part = tmp_path / "outside", tmp_path / "image", tmp_path / "part"
    for folder in (outside, image, part):
        folder.mkdir()
    (image / "link").symlink_to(outside)
    (image / str(outside).lstrip("/")).mkdir(parents=True)
    before = snapshot(outside)
    mounts = [Mount("bind", str(image), "", ("rw", "rbind")), Mount("bind", str(part), "link", ("rw", "rbind"))]

    await unpacking.apply(archive([entry("link/planted", b"x")]), mounts)

    assert snapshot(outside) == before
    assert (part / "planted").read_text() == "x"
