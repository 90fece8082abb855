"""Containers on every snapshotter: unpacked, run, changed, compared, and gone without a trace."""

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from support.daemon_process import DaemonProcess, wait_until
from support.pyctr_command import Pyctr
from support.snapshot_drivers import file_system, thin_devices, thin_pool

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

PROGRAMS = ("sh", "cat", "echo", "rm", "sleep", "mkdir", "dd")
NAMES = ("btrfs", "erofs", "fuse-overlayfs", "blockfile", "devmapper")
CONFIG = """
[snapshotters.blockfile]
scratch_size = 67108864
"""
THIN = """
[snapshotters.devmapper]
pool_name = "{pool}"
base_image_size = "{size}"
fs_type = "{fs_type}"
fs_options = "-L of-pyctr"
min_free_space = "{least}"
discard_blocks = true
"""
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def on_btrfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pyctr]:
    """One daemon with all that need no pool, on btrfs."""
    directory = tmp_path_factory.mktemp("disk")
    with ExitStack() as opened:
        disk = opened.enter_context(file_system("btrfs", directory))
        state = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="pyctr-", dir="/tmp")))
        daemon = opened.enter_context(DaemonProcess(config=CONFIG, base=disk / "daemon", state=state / "state"))
        yield from with_image(daemon)
        wait_until(lambda: not devices(disk), "the loop devices to be free")


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the disks of a thin pool."""
    return tmp_path_factory.mktemp("pool")


@pytest.fixture(scope="module")
def pool(disks: Path) -> Iterator[str]:
    with thin_pool(disks) as name:
        yield name


@pytest.fixture(scope="module")
def on_a_pool(pool: str) -> Iterator[Pyctr]:
    """Another daemon, with a pool for devmapper."""
    with DaemonProcess(config=thin(pool)) as daemon:
        yield from with_image(daemon)
        assert thin_devices(pool) == []


def thin(pool: str, *, least: str = "10%", fs_type: str = "ext4", size: str = "64MB") -> str:
    return THIN.format(pool=pool, least=least, fs_type=fs_type, size=size)


@contextmanager
def configured(daemon: DaemonProcess, config: str) -> Iterator[None]:
    """Give a daemon another configuration for a while; it is started again for it, and once more after it."""
    file = daemon.base / "config.toml"
    before = file.read_text()
    try:
        file.write_text(config)
        daemon.restart()
        yield
    finally:
        file.write_text(before)
        daemon.restart()


def with_image(daemon: DaemonProcess) -> Iterator[Pyctr]:
    command = Pyctr(daemon)
    command("image", "from-host", "demo", *PROGRAMS)
    yield command
    command("image", "rm", "demo")
    command("gc")


@pytest.fixture
def pyctr(name: str, request: pytest.FixtureRequest) -> Pyctr:
    """The daemon that has a snapshotter."""
    return request.getfixturevalue("on_a_pool" if name == "devmapper" else "on_btrfs")


def devices(disk: Path) -> list[str]:
    """Return the files below a directory that are loop devices."""
    shown = subprocess.run(
        ["losetup", "--noheadings", "--list", "--output", "BACK-FILE"], capture_output=True, text=True
    )
    return [line for line in shown.stdout.split() if line.startswith(f"{disk}/")]


@pytest.mark.parametrize("name", NAMES)
def test_a_container_runs_and_leaves_nothing(pyctr: Pyctr, name: str) -> None:
    root = pyctr.daemon.root / "snapshots" / name
    run = ("run", "--snapshotter", name, "--name", "box")

    assert pyctr(*run, "--rm", "demo", "sh", "-c", "echo written > /new; cat /new") == "written\n"

    pyctr(*run, "-d", "demo", "sleep", "1000")
    pyctr("exec", "box", "sh", "-c", "echo kept > /kept")
    assert pyctr("exec", "box", "cat", "/kept") == "kept\n"
    pyctr.daemon.restart()
    assert pyctr("exec", "box", "cat", "/kept") == "kept\n"
    pyctr("rm", "-f", "box")
    pyctr("gc")
    below = [path for path in root.iterdir() if path.name.isdecimal()]
    assert len(below) == 1  # the image's layer
    wait_until(lambda: not servers(root), "the program that served the file system to end")
    mounted = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {root}/" in line]
    assert len(mounted) == (name == "erofs")  # the image's layer again


@pytest.mark.parametrize("name", NAMES)
def test_layers_of_ctr_are_what_was_changed(pyctr: Pyctr, name: str) -> None:
    """containerd's own client: its mounts are used, and what they show is compared."""
    ctr, root = pyctr.daemon.ctr, pyctr.daemon.root / "snapshots" / name
    changes = "echo 1 > /one; rm /bin/echo; rm -r /etc; mkdir /etc; echo 2 > /etc/two"
    ctr("run", "--snapshotter", name, "docker.io/library/demo:latest", "c1", "sh", "-c", changes)
    command = f"ctr --address {pyctr.daemon.address} snapshots --snapshotter {name} diff --keep c1".split()
    done = subprocess.run(command, capture_output=True, check=False)
    ctr("containers", "rm", "c1")
    ctr("snapshots", "--snapshotter", name, "rm", "c1", check=False)
    wait_until(lambda: not servers(root), "the program that served the file system to end")
    if name == "fuse-overlayfs":  # whose marks nobody else can read
        assert b"use overlayfs" in done.stderr
        return
    layer = done.stdout
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        names = {member.name.strip("/") for member in archive}
    assert {"one", "etc/two"} <= names
    assert any(name.endswith("bin/.wh.echo") for name in names)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_is_what_others_begin_with(pyctr: Pyctr, name: str, tmp_path: Path) -> None:
    """And the container's exit code is told."""
    image, snapshots = "docker.io/library/demo:latest", ("snapshots", "--snapshotter", name)
    ctr = ["ctr", "--address", str(pyctr.daemon.address)]
    script = "echo kept > /kept; rm /bin/echo; exit 7"
    run = [*ctr, "run", "--snapshotter", name, image, "c2", "sh", "-c", script]
    assert subprocess.run(run, check=False).returncode == 7
    # A snapshot that nobody refers to is collected, maybe before it is committed.
    pyctr.daemon.ctr(*snapshots, "label", "c2", "containerd.io/gc.root=kept")
    pyctr.daemon.ctr("containers", "rm", "--keep-snapshot", "c2")

    pyctr.daemon.ctr(*snapshots, "commit", "kept", "c2")

    pyctr.daemon.ctr(*snapshots, "prepare", "next", "kept")
    mount = pyctr.daemon.ctr(*snapshots, "mounts", str(tmp_path), "next")
    subprocess.run(["sh", "-ec", mount.replace(" fuse3.", " fuse.")], check=True)  # as mount(8) calls it
    try:
        assert (tmp_path / "kept").read_text() == "kept\n"
        assert not (tmp_path / "bin/echo").exists()
        assert (tmp_path / "bin/cat").exists()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    for snapshot in ("next", "kept"):
        pyctr.daemon.ctr(*snapshots, "rm", snapshot)


@pytest.fixture
def filled(on_a_pool: Pyctr) -> Iterator[str]:
    """A container on devmapper that has written 24 MiB, which the device has."""
    write = "dd if=/dev/zero of=/large bs=1M count=24 conv=fsync 2>/dev/null; echo written; exec sleep 1000"
    name = on_a_pool("run", "-d", "--snapshotter", "devmapper", "demo", "sh", "-c", write).strip()
    wait_until(lambda: on_a_pool("logs", name) == "written\n", "it is written")
    yield name
    on_a_pool.run("rm", "-f", name)  # which some tests have done


def test_devices_of_devmapper_are_as_configured(filled: str, pool: str) -> None:
    """As large, and with the file system that the options ask for."""
    tables = [said("dmsetup", "table", device).split() for device in thin_devices(pool)]
    assert [(table[1], table[2]) for table in tables] == [(str(64 * MEBIBYTE // 512), "thin")]
    (device,) = thin_devices(pool)
    assert "volume name:   of-pyctr\n" in said("tune2fs", "-l", f"/dev/mapper/{device}")


def test_what_devmapper_removes_is_free_again(on_a_pool: Pyctr, filled: str, pool: str, disks: Path) -> None:
    """In the pool, and on the disk below it, which is told."""
    used, taken = used_by(pool), taken_by(disks / "data")

    on_a_pool("rm", "-f", filled)

    assert used - used_by(pool) >= 24 * MEBIBYTE
    assert taken - taken_by(disks / "data") >= 24 * MEBIBYTE


def test_devmapper_leaves_free_what_it_must(on_a_pool: Pyctr, filled: str, pool: str) -> None:
    """Nothing new is made; what is there works on, and can be removed."""
    with configured(on_a_pool.daemon, thin(pool, least="99%")):
        done = on_a_pool.run("run", "--rm", "--snapshotter", "devmapper", "demo", "true")
        assert on_a_pool("exec", filled, "sh", "-c", "echo more >/more; cat /more") == "more\n"
        on_a_pool("rm", "-f", filled)

    assert done.returncode == 125
    assert f"pyctr: the pool {pool} has " in done.stderr
    assert "less than the 99 % of snapshotters.devmapper.min_free_space: remove snapshots, or enlarge" in done.stderr


def test_xfs_on_devmapper_is_mounted_beside_its_copy(on_a_pool: Pyctr, pool: str, tmp_path: Path) -> None:
    if shutil.which("mkfs.xfs") is None:
        pytest.skip("needs mkfs.xfs")
    daemon, snapshots = on_a_pool.daemon, ("snapshots", "--snapshotter", "devmapper")
    places = tmp_path / "one", tmp_path / "other"
    with configured(daemon, thin(pool, fs_type="xfs", size="320MB")), ExitStack() as mounted:
        daemon.ctr(*snapshots, "prepare", "making")
        daemon.ctr(*snapshots, "commit", "made", "making")
        for place in places:
            place.mkdir()
            daemon.ctr(*snapshots, "prepare", place.name, "made")
            mounted.callback(daemon.ctr, *snapshots, "rm", place.name)
            said("sh", "-ec", daemon.ctr(*snapshots, "mounts", str(place), place.name))
            mounted.callback(said, "umount", str(place))
            (place / "own").write_text(place.name)
        assert [(place / "own").read_text() for place in places] == ["one", "other"]
        assert said("stat", "-f", "-c", "%T", *map(str, places)).split() == ["xfs", "xfs"]
        mounted.close()
        daemon.ctr(*snapshots, "rm", "made")


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def used_by(pool: str) -> int:
    """Return the bytes of a pool's data that are in use."""
    used, _ = said("dmsetup", "status", pool).split()[5].split("/")
    return int(used) * 128 * 512  # of blocks of as many sectors


def taken_by(disk: Path) -> int:
    """Return the bytes that a file takes on its disk, as far as everything is written."""
    with disk.open("rb") as file:
        os.fsync(file)
        return os.fstat(file.fileno()).st_blocks * 512


def servers(root: Path) -> list[str]:
    """Return the programs that serve a file system of these snapshots."""
    commands = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            commands.append(process.read_text())
    return [command for command in commands if f"{root}/" in command and "fuse-overlayfs" in command]
