"""What the options of the blockfile snapshotter do, as containers see it."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from pyctrd.core.snapshots import Kind
from pyctrd.core.snapshotter_settings import Blockfile as Settings
from pyctrd.snapshots.blockfile import Blockfile
from pyctrd.snapshots.directories import Note
from pyctrd.snapshots.driver import Unusable
from support.pyctr_command import Pyctr, running_pyctr
from support.snapshot_drivers import shown

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

MEBIBYTE = 1 << 20
PROGRAMS = ("sh", "cat", "df", "sleep")
RUN = ("run", "--snapshotter", "blockfile")


class Root(NamedTuple):
    """What a container says of its root."""

    kind: str
    options: Sequence[str]
    mebibytes: int


def root_in(pyctr: Pyctr) -> Root:
    """Run a container and return what it says; another one is running meanwhile, on another copy of the file."""
    other = pyctr(*RUN, "-d", "demo", "sleep", "1000").strip()
    try:
        out = pyctr(*RUN, "--rm", "demo", "sh", "-c", "df -B1M --output=size /; cat /proc/mounts; echo >/new")
    finally:
        pyctr("rm", "-f", other)
    lines = out.splitlines()
    (mount,) = [fields for fields in map(str.split, lines[2:]) if fields[1] == "/"]
    return Root(mount[2], mount[3].split(","), int(lines[1]))


def config(*lines: str) -> str:
    return "\n".join(("[snapshotters.blockfile]", *lines, ""))


def scratch_file(path: Path, content: str, *, mebibytes: int = 64) -> Path:
    """Make a file system with one file in it, which says where it comes from."""
    tree = path.with_suffix(".tree")
    tree.mkdir()
    (tree / "origin").write_text(content)
    with path.open("wb") as file:
        file.truncate(mebibytes * MEBIBYTE)
    subprocess.run(["mkfs.ext4", "-q", "-d", str(tree), str(path)], check=True)
    return path


def test_mount_options() -> None:
    """The kernel's, and the file system's own."""
    with running_pyctr(
        PROGRAMS, config(f"scratch_size = {64 * MEBIBYTE}", 'mount_options = ["noatime", "commit=17"]')
    ) as pyctr:
        assert {"rw", "noatime", "commit=17"} <= set(root_in(pyctr).options)


@pytest.mark.parametrize(("kind", "mebibytes"), [("ext4", 48), ("ext2", 64), ("xfs", 320)])
def test_file_systems(kind: str, mebibytes: int) -> None:
    """Each as large as is asked for, less what it needs itself."""
    if shutil.which(f"mkfs.{kind}") is None or kind not in Path("/proc/filesystems").read_text().split():
        pytest.skip(f"needs {kind} in the kernel, and mkfs.{kind}")
    with running_pyctr(PROGRAMS, config(f"scratch_size = {mebibytes * MEBIBYTE}", f'fs_type = "{kind}"')) as pyctr:
        root = root_in(pyctr)

    assert root.kind == kind
    assert mebibytes * 0.75 < root.mebibytes <= mebibytes


def test_a_scratch_file_of_the_administrators(tmp_path: Path) -> None:
    """A copy of it is what every first layer is unpacked into."""
    scratch = scratch_file(tmp_path / "scratch", "administrator", mebibytes=80)
    before = scratch.read_bytes()
    with running_pyctr(PROGRAMS, config(f'scratch_file = "{scratch}"')) as pyctr:
        assert 60 < root_in(pyctr).mebibytes <= 80
        assert pyctr(*RUN, "--rm", "demo", "cat", "/origin") == "administrator"

    assert scratch.read_bytes() == before


def test_another_root_path(tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    with running_pyctr(PROGRAMS, config(f"scratch_size = {64 * MEBIBYTE}", f'root_path = "{place}"')) as pyctr:
        assert pyctr(*RUN, "--rm", "demo", "sh", "-c", "echo written") == "written\n"
        pyctr.daemon.restart()
        pyctr("gc")
        (layer,) = place.glob("*/disk")
        assert pyctr(*RUN, "--rm", "demo", "sh", "-c", "echo again") == "again\n"
        assert layer.is_file(), "the image's, still"
        assert not list((pyctr.daemon.root / "snapshots").glob("blockfile/*"))


@pytest.mark.parametrize(("recreate", "origin"), [(False, "first"), (True, "second")])
def test_when_a_changed_scratch_file_counts(tmp_path: Path, *, recreate: bool, origin: str) -> None:
    """At the next start, if that is asked for."""
    places = [scratch_file(tmp_path / name, name) for name in ("first", "second")]
    root = tmp_path / "blockfile"
    root.mkdir()
    found = []
    for number, place in enumerate(places):
        driver = Blockfile(root, Settings(scratch_file=str(place), recreate_scratch=recreate))
        found.append(origin_of(driver, root / str(number)))

    assert found == ["first", origin]


def origin_of(driver: Blockfile, directory: Path) -> str:
    """Make a snapshot without a parent and return what is in it."""
    directory.mkdir()
    note = Note("", "key", None, Kind.ACTIVE, {}, 0, 0)
    made = driver.create(directory, (), note)
    assert not isinstance(made, Note)
    with shown(made) as tree:
        return (tree / "origin").read_text()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (Settings(scratch_file="/nowhere"), r"snapshotters\.blockfile\.scratch_file: /nowhere is no file"),
        (Settings(fs_type="zzfs"), r"there is no mkfs\.zzfs and no snapshotters\.blockfile\.scratch_file"),
    ],
)
def test_what_cannot_be_had_is_told(tmp_path: Path, settings: Settings, why: str) -> None:
    with pytest.raises(Unusable, match=why):
        Blockfile(tmp_path, settings)
