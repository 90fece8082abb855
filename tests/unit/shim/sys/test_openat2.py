"""Paths below a root never leave it. Needs no privilege: the kernel does the same for everybody."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyctr_sys.openat2 import O_PATH, Resolve, is_directory, make_directories, make_file, open_in_root, openat2


@pytest.fixture
def root(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    directory = tmp_path / "root"
    directory.mkdir()
    (tmp_path / "outside").mkdir()
    fd = os.open(directory, O_PATH | os.O_DIRECTORY)
    yield directory, fd
    os.close(fd)


def path_of(fd: int) -> str:
    path = os.readlink(f"/proc/self/fd/{fd}")
    os.close(fd)
    return path


@pytest.mark.parametrize("path", ["a/b", "/a/b", "../../a/b", "/a/../a/./b", "link/b", "//a//b/"])
def test_a_path_is_resolved_within_the_root(root: tuple[Path, int], path: str) -> None:
    directory, fd = root
    (directory / "a/b").mkdir(parents=True)
    (directory / "link").symlink_to("/a")

    assert path_of(open_in_root(fd, path)) == str(directory / "a/b")


def test_a_link_out_of_the_root_stays_inside(root: tuple[Path, int]) -> None:
    directory, fd = root
    (directory / "evil").symlink_to("../outside")
    (directory / "absolute").symlink_to(directory.parent / "outside")

    for name in ("evil", "absolute"):
        with pytest.raises(FileNotFoundError):
            open_in_root(fd, f"{name}/x")


def test_magic_links_are_refused(tmp_path: Path) -> None:
    fd = os.open("/proc", O_PATH | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match="openat2"):
            open_in_root(fd, "self/root")
        with pytest.raises(OSError, match="openat2"):
            open_in_root(fd, "self/fd/0")
    finally:
        os.close(fd)


def test_strict_resolution_follows_no_link(root: tuple[Path, int]) -> None:
    directory, fd = root
    (directory / "a").mkdir()
    (directory / "link").symlink_to("a")

    with pytest.raises(OSError, match="openat2"):
        openat2(fd, "link", O_PATH, int(Resolve.IN_ROOT | Resolve.NO_SYMLINKS))


@pytest.mark.parametrize("path", ["x/y/z", "/x/y/z/", "../x/./y/w/../z"])
def test_directories_are_made(root: tuple[Path, int], path: str) -> None:
    directory, fd = root

    assert path_of(make_directories(fd, path, 0o750)) == str(directory / "x/y/z")
    assert (directory / "x").stat().st_mode & 0o777 == 0o750


def test_directories_are_made_behind_a_link_inside(root: tuple[Path, int]) -> None:
    directory, fd = root
    (directory / "real").mkdir()
    (directory / "link").symlink_to("/real")

    assert path_of(make_directories(fd, "/link/new")) == str(directory / "real/new")


@pytest.mark.parametrize("target", ["/nowhere", "nowhere", "../../../nowhere", "/other/../nowhere", "via"])
def test_a_link_that_leads_nowhere_leads_to_what_is_made_inside(root: tuple[Path, int], target: str) -> None:
    """As /var/run does in images without a /run, and an /etc/resolv.conf that is systemd's."""
    directory, fd = root
    (directory / "dangling").symlink_to(target)
    (directory / "via").symlink_to("nowhere")

    assert path_of(make_directories(fd, "/dangling/new")) == str(directory / "nowhere/new")
    assert path_of(make_file(fd, "/dangling/file")) == str(directory / "nowhere/file")


@pytest.mark.parametrize("target", ["/run/deep/file", "../run/deep/file", "../../../../../run/deep/file"])
def test_a_file_is_made_where_a_link_leads(root: tuple[Path, int], target: str) -> None:
    directory, fd = root
    (directory / "usr/etc").mkdir(parents=True)
    (directory / "etc").symlink_to("usr/etc")
    (directory / "usr/etc/link").symlink_to(target)

    inside = directory / ("usr/run/deep/file" if target.startswith("../run") else "run/deep/file")
    assert path_of(make_file(fd, "/etc/link")) == str(inside)
    assert inside.read_text() == ""


@pytest.mark.parametrize("make", [make_directories, make_file])
def test_links_without_an_end_are_refused(root: tuple[Path, int], make: Callable[[int, str], int]) -> None:
    directory, fd = root
    (directory / "one").symlink_to("two")
    (directory / "two").symlink_to("one")
    (directory / "grows").symlink_to("grows/more")

    for path in ("/one", "/one/x", "/grows", "/grows/x"):
        with pytest.raises(OSError) as caught:
            make(fd, path)
        assert caught.value.errno == errno.ELOOP


def test_a_file_in_the_way_is_no_directory(root: tuple[Path, int]) -> None:
    directory, fd = root
    (directory / "file").write_text("")

    with pytest.raises(NotADirectoryError):
        make_directories(fd, "/file/x")


def test_files_are_made_with_their_directories(root: tuple[Path, int]) -> None:
    directory, fd = root

    assert path_of(make_file(fd, "/etc/new", 0o600)) == str(directory / "etc/new")
    assert (directory / "etc/new").stat().st_mode & 0o777 == 0o600
    (directory / "etc/new").write_text("kept")
    os.close(make_file(fd, "/etc/new"))
    assert (directory / "etc/new").read_text() == "kept"


def test_fds_are_closed_on_exec_and_say_what_they_are(root: tuple[Path, int]) -> None:
    directory, fd = root
    (directory / "file").write_text("")
    file_fd = open_in_root(fd, "/file")
    root_fd = open_in_root(fd, "/")

    assert not os.get_inheritable(file_fd)
    assert (is_directory(file_fd), is_directory(root_fd)) == (False, True)
    os.close(file_fd)
    os.close(root_fd)
