"""Deleting and measuring trees that a container may have made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyctrd.snapshots.removal import remove_tree
from pyctrd.snapshots.usage import measure


def test_a_tree_deeper_than_any_path_may_be_long(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(1000):
        os.mkdir("d" * 50, dir_fd=fd)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        inner = os.open("d" * 50, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    remove_tree(root)
    assert not root.exists()


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (root / "link").symlink_to(outside)
    (root / "in" / "loop").symlink_to("..")
    os.mkfifo(root / "in" / "fifo")
    remove_tree(root)
    assert not root.exists()
    assert (outside / "precious").exists()


def test_a_root_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    with pytest.raises(NotADirectoryError):
        remove_tree(tmp_path / "root")
    assert (tmp_path / "real").is_dir()


def test_nothing_to_remove(tmp_path: Path) -> None:
    remove_tree(tmp_path / "nothing")


_NAMES = st.sampled_from(["a", "b", ".remove-0", ".remove-1", ".remove-2", "ü", "x" * 200])


@settings(max_examples=15)
@given(st.lists(st.lists(_NAMES, min_size=1, max_size=5)))
def test_any_tree_goes_as_a_whole(tmp_path: Path, paths: list[list[str]]) -> None:
    """Names that an interrupted removal leaves behind are ordinary ones to the next."""
    root = tmp_path / "root"
    root.mkdir()
    for number, parts in enumerate(paths):
        directory = root.joinpath(*parts)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"file{number}").touch()
    remove_tree(root)
    assert not root.exists()


@pytest.mark.root
def test_a_mount_below_is_not_entered(tmp_path: Path) -> None:
    """A leaked bind mount shows the host's files: they must not go with the snapshot."""
    host, root = tmp_path / "host", tmp_path / "root"
    (host / "sub").mkdir(parents=True)
    (host / "precious").write_text("x")
    (root / "a" / "mnt").mkdir(parents=True)
    program = (
        "import sys; from pathlib import Path; from pyctrd.snapshots.removal import remove_tree\n"
        "try: remove_tree(Path(sys.argv[1]))\n"
        "except OSError as error: print(error.errno)"
    )
    script = 'mount --bind "$1" "$2/a/mnt" && exec "$0" -c "$3" "$2"'
    command = ["unshare", "--mount", "sh", "-c", script, sys.executable, str(host), str(root), program]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "16"  # EBUSY
    assert (host / "precious").exists()
    assert (host / "sub").exists()
    remove_tree(root)
    assert not root.exists()


def test_usage_counts_blocks_and_hard_links_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    empty = measure(root)
    assert empty.inodes == 1
    (root / "file").write_bytes(b"x" * 10000)
    os.link(root / "file", root / "again")
    (root / "link").symlink_to("file")
    (root / "sub").mkdir()
    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    usage = measure(root)
    assert usage.inodes == 5
    assert 10000 <= usage.size - empty.size < 100000
    assert measure(tmp_path / "nothing").inodes == 0
