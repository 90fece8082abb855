"""Files that commands write."""

import os
from pathlib import Path

import pytest

from pyctr.errors import CommandError
from pyctr.output_file import written


def fill(path: Path, error: Exception | None = None) -> None:
    with written(str(path)) as file:
        file.write(b"half")
        if error is not None:
            raise error
        file.write(b" and half")


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    with pytest.raises(RuntimeError):
        fill(path, RuntimeError())
    assert not list(tmp_path.iterdir())
    fill(path)
    with pytest.raises(RuntimeError):
        fill(path, RuntimeError())
    assert path.read_bytes() == b"half and half"
    assert list(tmp_path.iterdir()) == [path]


def test_modes_and_links_stay(tmp_path: Path) -> None:
    path, link = tmp_path / "archive", tmp_path / "link"
    link.symlink_to("archive")
    before = os.umask(0o027)
    try:
        fill(link)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o600)
    fill(link)
    assert path.stat().st_mode & 0o777 == 0o600
    assert link.is_symlink()


def test_what_is_no_file_is_written_to(tmp_path: Path) -> None:
    fill(Path("/dev/null"))
    assert Path("/dev/null").is_char_device()
    with pytest.raises(CommandError, match="/dev/full: No space left on device"):
        fill(Path("/dev/full"))


@pytest.mark.parametrize("name", ["missing/archive", "."])
def test_places_that_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(CommandError, match=str(tmp_path)):
        fill(tmp_path / name)
    assert not list(tmp_path.iterdir())
