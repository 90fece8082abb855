"""Giving files to the users of a user namespace: all of them, whatever a container has made of its tree."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyctrd.core.idmaps import IdMap, Maps
from pyctrd.snapshots.owners import shift
from pyctrd.snapshots.removal import remove_tree

pytestmark = pytest.mark.root

DEPTH = 5000
MAPS = Maps((IdMap(0, 100_000, 1000),), (IdMap(0, 200_000, 1000),))
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # CAP_NET_RAW, permitted; see capabilities(7)


@contextmanager
def few_descriptors(more: int) -> Iterator[None]:
    """Let this process open `more` than it has open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def down(fd: int, name: str) -> int:
    """Open a directory from another one, which is closed."""
    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
    os.close(fd)
    return inner


def test_a_tree_deeper_than_any_path_may_be_long(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(DEPTH):
            os.mkdir("d", dir_fd=fd)
            os.mkdir("beside", dir_fd=fd)
            fd = down(fd, "d")
        os.close(os.open("program", os.O_CREAT | os.O_WRONLY, 0o755, dir_fd=fd))
        os.chown("program", 7, 8, dir_fd=fd)
        os.chmod("program", 0o4755, dir_fd=fd)
        os.setxattr(f"/proc/self/fd/{fd}/program", "security.capability", CAPABILITY)
        os.close(fd)

        with few_descriptors(10):
            shift(root, MAPS)

        fd, found = os.open(root, os.O_RDONLY | os.O_DIRECTORY), set()
        for _ in range(DEPTH):
            status = [os.fstat(fd), os.stat("beside", dir_fd=fd)]
            found |= {(one.st_uid, one.st_gid) for one in status}
            fd = down(fd, "d")
        program = os.stat("program", dir_fd=fd)
        kept = os.getxattr(f"/proc/self/fd/{fd}/program", "security.capability")
        os.close(fd)
        assert found == {(100_000, 200_000)}
        assert (program.st_uid, program.st_gid, program.st_mode & 0o7777) == (100_007, 200_008, 0o4755)
        assert kept == CAPABILITY
    finally:
        remove_tree(root)


def test_links_lead_nowhere_and_names_count_once(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    (outside / "folder").mkdir(parents=True)
    (root / "one").mkdir(parents=True)
    (root / "link").symlink_to(outside)
    (root / "one/file").write_text("x")
    os.link(root / "one/file", root / "other")

    shift(root, MAPS)

    assert {path.lstat().st_uid for path in (root, *root.rglob("*"))} == {100_000}
    assert {path.stat().st_uid for path in (outside, outside / "folder")} == {0}
