"""What files become of an unpacked layer: owners, modes, times, attributes, kinds."""

import os
import stat
import struct
import tarfile
from pathlib import Path

import pytest

from pyctrd.core.mounts import Mount
from support.layers import END, archive, directory, entry, hard_link, header, pax, record, symlink
from support.unpacking import Unpacking

pytestmark = pytest.mark.root


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An empty directory to unpack into."""
    path = tmp_path / "target"
    path.mkdir()
    return path


def bind(path: Path) -> list[Mount]:
    return [Mount("bind", str(path), "", ("rw", "rbind"))]


async def test_owner_mode_and_times(unpacking: Unpacking, target: Path) -> None:
    """Each kind has what its header says; a set-user-id bit survives the change of owner, whatever the order."""
    layer = [
        directory("d", mode=0o1777, uid=1, gid=2, mtime=1000),
        entry("d/f", b"data", mode=0o6755, uid=3, gid=4, mtime=2000),
        entry("d/root", b"data", mode=0o4711, mtime=2500),
        symlink("d/l", "nowhere", uid=5, gid=6, mtime=3000),
        entry("d/p", type=tarfile.FIFOTYPE, mode=0o620, uid=7, gid=8, mtime=4000),
        entry("d/c", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666, uid=9, gid=10, mtime=5000),
        entry("d/b", type=tarfile.BLKTYPE, devmajor=300, devminor=70000, mode=0o600, mtime=6000),
        hard_link("d/h", "d/f", mode=0o6755, uid=3, gid=4, mtime=2000),
    ]
    await unpacking.apply(archive(layer), bind(target))

    expected = {
        "": (stat.S_IFDIR | 0o1777, 1, 2, 1000), "f": (stat.S_IFREG | 0o6755, 3, 4, 2000),
        "root": (stat.S_IFREG | 0o4711, 0, 0, 2500), "l": (stat.S_IFLNK | 0o777, 5, 6, 3000),
        "p": (stat.S_IFIFO | 0o620, 7, 8, 4000), "c": (stat.S_IFCHR | 0o666, 9, 10, 5000),
        "b": (stat.S_IFBLK | 0o600, 0, 0, 6000), "h": (stat.S_IFREG | 0o6755, 3, 4, 2000),
    }  # fmt: skip
    for name, wanted in expected.items():
        status = (target / "d" / name).lstat()
        assert (status.st_mode, status.st_uid, status.st_gid, status.st_mtime) == wanted, name
    assert (target / "d/c").stat().st_rdev == os.makedev(1, 3)
    assert (target / "d/b").stat().st_rdev == os.makedev(300, 70000)
    assert (target / "d/f").samefile(target / "d/h")


async def test_times_out_of_range_become_1970(unpacking: Unpacking, target: Path) -> None:
    """As containerd has them; fractions are kept."""
    layer = [
        entry("old", b"", mtime=-5),
        entry("late", b"", pax_headers={"mtime": "99999999999999"}),
        entry("exact", b"", pax_headers={"mtime": "12.000000345", "atime": "13.25"}),
    ]
    await unpacking.apply(archive(layer), bind(target))

    assert (target / "old").stat().st_mtime_ns == (target / "late").stat().st_mtime_ns == 0
    status = (target / "exact").stat()
    assert (status.st_mtime_ns, status.st_atime_ns) == (12_000_000_345, 13_250_000_000)


async def test_directories_keep_their_times(unpacking: Unpacking, target: Path) -> None:
    """Also those that get entries, lose some, and are named twice."""
    layer = [
        directory("d", mtime=1), directory("d/sub", mtime=2), entry("d/sub/f", b""), directory("d", mtime=3),
        entry("d/sub/.wh.f", b""), entry("gone", b""), directory("gone", mtime=4), entry("gone", b"", mtime=5),
    ]  # fmt: skip
    await unpacking.apply(archive(layer), bind(target))

    assert [(target / name).stat().st_mtime for name in ("d", "d/sub", "gone")] == [3, 2, 5]


async def test_extended_attributes(unpacking: Unpacking, target: Path) -> None:
    """Capabilities and user attributes are set, also binary ones; what steers overlayfs or the machine is not."""
    capability = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
    records = b"".join(
        record(b"SCHILY.xattr." + key, value)
        for key, value in {
            b"security.capability": capability,
            b"user.key": b"a\0b\n",
            b"trusted.overlay.opaque": b"y",
            b"user.overlay.opaque": b"y",
            b"security.ima": b"x",
        }.items()
    )
    layer = pax(records) + header(b"f") + pax(records.replace(b"user.key", b"user.kez")) + header(b"p", b"6") + END
    await unpacking.apply(layer, bind(target))

    file = target / "f"
    assert set(os.listxattr(file)) == {"security.capability", "user.key"}
    assert os.getxattr(file, "security.capability") == capability
    assert os.getxattr(file, "user.key") == b"a\0b\n"
    assert os.listxattr(target / "p") == ["security.capability"]


async def test_modes_are_the_layers_whatever_the_directory_says(unpacking: Unpacking, target: Path) -> None:
    """Neither a set-group-id directory nor a default ACL in it changes what is made inside."""
    acl = struct.pack(
        "<IHHIHHIHHIHHI", 2, 1, 7, ~0 & 0xFFFFFFFF, 4, 5, ~0 & 0xFFFFFFFF, 16, 5, 0xFFFFFFFF, 32, 0, 0xFFFFFFFF
    )
    default = pax(record(b"SCHILY.xattr.system.posix_acl_default", acl)) + header(b"acl/", b"5")
    group = archive([directory("group", mode=0o2775, gid=42), entry("group/f", b"", mode=0o664), directory("group/d")])
    inside = archive([entry("acl/f", b"", mode=0o666), directory("acl/d", mode=0o777)])
    await unpacking.apply(default + group[:1536] + inside, bind(target))

    status = (target / "group/f").stat()
    assert (status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 0o664)
    status = (target / "group/d").stat()
    assert (status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 0o755)
    assert stat.S_IMODE((target / "acl/f").stat().st_mode) == 0o666
    assert stat.S_IMODE((target / "acl/d").stat().st_mode) == 0o777


async def test_sparse_files_have_holes(unpacking: Unpacking, target: Path) -> None:
    """Data lands where the map says, and what lies between takes no space."""
    records = {"GNU.sparse.map": "0,2,100000000,3", "GNU.sparse.size": "200000000", "GNU.sparse.name": "s"}
    await unpacking.apply(archive([entry("x", b"abcde", pax_headers=records)]), bind(target))

    status = (target / "s").stat()
    assert status.st_size == 200_000_000
    assert status.st_blocks * 512 < 1 << 20
    with (target / "s").open("rb") as file:
        assert file.read(3) == b"ab\0"
        file.seek(100_000_000)
        assert file.read(4) == b"cde\0"


async def test_deep_trees_take_no_recursion_and_few_fds(unpacking: Unpacking, target: Path) -> None:
    """A tree deeper than a path may be long is made through symlinks, and replaced by a file again."""
    layer = [directory("a")]
    for step in range(6):
        part = "/".join(["d"] * 500)
        layer += [directory(f"a/{part}") if step == 0 else directory(f"s{step}/{part}")]
        layer += [symlink(f"s{step + 1}", ("a/" if step == 0 else f"s{step}/") + part)]
    await unpacking.apply(archive(layer), bind(target))
    await unpacking.apply(archive([entry("a", b"file")]), bind(target))

    assert (target / "a").read_text() == "file"


async def test_sync(unpacking: Unpacking, target: Path) -> None:
    """Writing the file system back is possible from within the cage."""
    await unpacking.apply(archive([entry("f", b"x")]), bind(target), sync_fs=True)
    assert (target / "f").read_text() == "x"
