"""Containers on every snapshotter: unpacked, run, changed, compared, and gone without a trace."""

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from support.daemon_process import DaemonProcess, wait_until
from support.pyctr_command import Pyctr
from support.snapshot_drivers import file_system, thin_devices, thin_pool

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

PROGRAMS = ("sh", "cat", "echo", "rm", "sleep", "mkdir")
NAMES = ("btrfs", "erofs", "fuse-overlayfs", "blockfile", "devmapper")
CONFIG = """
[snapshotters.blockfile]
scratch_size = 67108864
"""
THIN = """
[snapshotters.devmapper]
pool_name = "{pool}"
base_image_size = "64MB"
fs_type = "ext4"
min_free_space = "10%"
discard_blocks = true
"""


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
def on_a_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pyctr]:
    """Another daemon, with a pool for devmapper."""
    with thin_pool(tmp_path_factory.mktemp("pool")) as pool, DaemonProcess(config=THIN.format(pool=pool)) as daemon:
        yield from with_image(daemon)
        assert thin_devices(pool) == []


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


def servers(root: Path) -> list[str]:
    """Return the programs that serve a file system of these snapshots."""
    commands = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            commands.append(process.read_text())
    return [command for command in commands if f"{root}/" in command and "fuse-overlayfs" in command]
