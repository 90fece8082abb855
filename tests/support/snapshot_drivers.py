"""The drivers of snapshots for tests, each where it can work: on a file system of its own if it needs one."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pyctrd.core.mounts import Mount
from pyctrd.core.snapshotter_settings import Blockfile as Settings
from pyctrd.core.snapshotter_settings import Devmapper as DevmapperSettings
from pyctrd.snapshots.blockfile import Blockfile
from pyctrd.snapshots.btrfs import Btrfs
from pyctrd.snapshots.devmapper import Devmapper
from pyctrd.snapshots.driver import Driver, Unusable
from pyctrd.snapshots.erofs import Erofs
from pyctrd.snapshots.fuse_overlayfs import FuseOverlayfs
from pyctrd.snapshots.native import Native
from pyctrd.snapshots.overlay import Overlay

NAMES = ("overlayfs", "native", "btrfs", "erofs", "fuse-overlayfs", "blockfile", "devmapper")


@contextmanager
def file_system(kind: str, directory: Path, size: int = 512 << 20) -> Iterator[Path]:
    """Mount a new file system of `size` bytes, on a loop device; skip the test, and say so, where that cannot be."""
    if os.geteuid():
        pytest.skip("needs root, to mount")
    maker = shutil.which(f"mkfs.{kind}")
    if maker is None:
        pytest.skip(f"no mkfs.{kind} here")
    if kind not in Path("/proc/filesystems").read_text().split():
        pytest.skip(f"this kernel has no {kind}")
    image, target = directory / f"{kind}.img", directory / kind
    target.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([maker, "-q", str(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(target)], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", "-l", str(target)], check=True)
        image.unlink()


@contextmanager
def thin_pool(directory: Path) -> Iterator[str]:
    """Make a thin pool on loop devices, its data in `directory`/data, and return its name.

    Skips the test, and says so, where that cannot be.
    """
    if os.geteuid():
        pytest.skip("needs root, for devices")
    if shutil.which("dmsetup") is None:
        pytest.skip("no dmsetup here")
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "dm_thin_pool"], capture_output=True, check=False)
    targets = subprocess.run(["dmsetup", "targets"], capture_output=True, text=True, check=False).stdout
    if "thin-pool" not in targets:
        pytest.skip("this kernel has no thin pools of the device mapper")
    pool, devices = f"pyctr-test-{os.getpid()}", []
    images = directory / "metadata", directory / "data"
    for image, size in zip(images, (16 << 20, 1 << 30), strict=True):
        with image.open("wb") as file:
            file.truncate(size)
        found = subprocess.run(["losetup", "--find", "--show", image], check=True, capture_output=True, text=True)
        devices.append(found.stdout.strip())
    table = f"0 {(1 << 30) // 512} thin-pool {devices[0]} {devices[1]} 128 0"
    subprocess.run(["dmsetup", "create", pool, "--table", table], check=True)
    try:
        yield pool
    finally:
        for device in thin_devices(pool):
            subprocess.run(["dmsetup", "remove", "--retry", device], check=True)
        subprocess.run(["dmsetup", "remove", "--retry", pool], check=True)
        for device, image in zip(devices, images, strict=True):
            subprocess.run(["losetup", "--detach", device], check=True)
            image.unlink()


def thin_devices(pool: str) -> list[str]:
    """Return the snapshots of a thin pool that have a device now."""
    listed = subprocess.run(["dmsetup", "ls"], check=True, capture_output=True, text=True).stdout.split()
    return [name for name in listed if name.startswith(f"{pool}-snap-")]


class Places:
    """Where drivers work: file systems stay from the first test that wants one to the last, a thin pool for a test."""

    def __init__(self, directory: Path, opened: ExitStack) -> None:
        """Make them below `directory`; they are gone with `opened`."""
        self._directory = directory
        self._opened = opened
        self._mounted: dict[str, Path] = {}
        self._of_one_test = opened.enter_context(ExitStack())
        self.pool = ""

    def driver(self, name: str, scratch: Path) -> Driver:
        """Return a driver for one test, whose own directory `scratch` is; skips the test where that cannot be."""
        match name:
            case "overlayfs":
                return Overlay()
            case "native":
                return Native()
            case "btrfs":
                return _at(Btrfs, self._on("btrfs") / scratch.name)
            case "erofs":
                return _or_skip(Erofs)
            case "fuse-overlayfs":
                return _or_skip(FuseOverlayfs)
            case "blockfile":
                # Where copies share their blocks, as is best.
                return _at(
                    lambda root: _or_skip(lambda: Blockfile(root, Settings(scratch_size=32 << 20))),
                    self._on("btrfs") / scratch.name,
                )
            case "devmapper":
                self.pool = self.pool or self._of_one_test.enter_context(thin_pool(scratch))
                settings = DevmapperSettings(self.pool, base_image_size="32MB", async_remove=True)
                return _at(lambda root: Devmapper(root, settings), scratch / "thin")
        raise ValueError(name)

    def tidy(self) -> None:
        """Remove what the next test is to have anew: its snapshots have the same numbers."""
        self._of_one_test.close()
        self.pool = ""

    def _on(self, kind: str) -> Path:
        if kind not in self._mounted:
            self._mounted[kind] = self._opened.enter_context(file_system(kind, self._directory))
        return self._mounted[kind]


def _at(make: Callable[[Path], Driver], root: Path) -> Driver:
    root.mkdir(exist_ok=True)
    driver = make(root)
    driver.root = root
    return driver


def _or_skip(make: Callable[[], Driver]) -> Driver:
    try:
        return make()
    except Unusable as reason:
        pytest.skip(str(reason))


def unmount_below(directory: Path) -> None:
    """Unmount what a driver has mounted for all its snapshots."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    for target in reversed([line.split()[4] for line in lines]):
        if target.startswith(f"{directory}/"):
            subprocess.run(["umount", "-l", target], check=True)


@contextmanager
def shown(mounts: Sequence[Mount]) -> Iterator[Path]:
    """Yield the directory that takes what is written to a snapshot, mounted for as long as that takes if it must be."""
    (mount,) = mounts
    found = [option.partition("=")[2] for option in mount.options if option.startswith("upperdir=")]
    if found or mount.type == "bind":
        yield Path(found[0] if found else mount.source)
        return
    with tempfile.TemporaryDirectory() as target:
        subprocess.run(["mount", "-t", mount.type, "-o", ",".join(mount.options), mount.source, target], check=True)
        try:
            yield Path(target)
        finally:
            subprocess.run(["umount", target], check=True)
