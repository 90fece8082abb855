"""Btrfs snapshots: what a subvolume of a container's own must not keep from going."""

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyctr_sys import btrfs
from pyctrd.core.snapshots import Kind
from pyctrd.snapshots.directories import Note
from support.snapshot_drivers import Places


@pytest.mark.root
def test_subvolumes_that_a_container_has_made_go_with_its_snapshot(tmp_path: Path) -> None:
    with ExitStack() as opened:
        driver = Places(tmp_path, opened).driver("btrfs", tmp_path)
        assert driver.root is not None
        directory, note = driver.root / "1", Note("test", "key", None, Kind.ACTIVE, {}, 0, 0)
        directory.mkdir()
        driver.create(directory, [], note)
        (directory / "fs/deep/er").mkdir(parents=True)
        for name in ("deep/er/one", "deep/er/one/two"):
            btrfs.create(directory / "fs" / name)
        (directory / "fs/deep/er/one/two/file").write_text("x")
        (directory / "fs/link").symlink_to(tmp_path)
        subprocess.run(["btrfs", "property", "set", directory / "fs/deep/er/one", "ro", "true"], check=True)
        fd = os.open(directory / "fs", os.O_RDONLY)
        for _ in range(3000):  # deeper than a path can say, or a function call itself
            os.mkdir("d", dir_fd=fd)
            below = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(fd)

        driver.remove(directory)

        assert not directory.exists()
        assert tmp_path.exists()
        left = subprocess.run(["btrfs", "subvolume", "list", driver.root], capture_output=True, text=True, check=True)
        assert left.stdout == ""
