"""Going through trees that somebody else is changing."""

import errno
import os
from pathlib import Path

import pytest

from pyctr_sys.descent import descend


def test_every_directory_comes_once_and_links_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "outside/secret").mkdir(parents=True)
    (tmp_path / "top/a/b").mkdir(parents=True)
    (tmp_path / "top/a/file").touch()
    (tmp_path / "top/link").symlink_to(tmp_path / "outside")

    found = [(os.readlink(f"/proc/self/fd/{fd}"), sorted(names)) for fd, names in descend(str(tmp_path / "top"))]

    top = f"{tmp_path}/top"
    assert sorted(found) == [(top, ["a", "link"]), (f"{top}/a", ["b", "file"]), (f"{top}/a/b", [])]


def test_a_directory_that_has_become_a_link_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").touch()
    (tmp_path / "top/a").mkdir(parents=True)

    seen = []
    for _, names in descend(str(tmp_path / "top")):
        seen += names
        if names == ["a"]:
            (tmp_path / "top/a").rename(tmp_path / "gone")
            (tmp_path / "top/a").symlink_to(tmp_path / "outside")

    assert seen == ["a"]


def test_one_that_is_moved_away_does_not_lead_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "elsewhere/precious").mkdir(parents=True)
    (tmp_path / "top/a/b").mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))

    seen: list[str] = []

    def go() -> None:
        for _, names in descend(str(tmp_path / "top")):
            seen.extend(names)
            if not names:
                (tmp_path / "top/a/b").rename(tmp_path / "elsewhere/b")

    with pytest.raises(OSError, match="moved meanwhile") as raised:
        go()

    assert raised.value.errno == errno.EBUSY
    assert seen == ["a", "b"]
    assert len(os.listdir("/proc/self/fd")) == before
