"""What is taken out of an archive of saved processes that somebody else may have made."""

import io
import tarfile
from pathlib import Path

import pytest

from pyctrd.diff.errors import ArchiveError
from pyctrd.runtime import checkpoints

Member = tuple[tarfile.TarInfo, bytes]


def plain(name: str, data: bytes = b"data") -> Member:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    return member, data


def special(name: str, kind: bytes, link: str = "") -> Member:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member, b""


def archive(*members: Member) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for member, data in members:
            file.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def unpack(data: bytes, folder: Path) -> None:
    checkpoints.unpack(iter([data]), folder)


def test_plain_files_are_taken_out(tmp_path: Path) -> None:
    unpack(
        archive(special("./", tarfile.DIRTYPE), plain("./inventory.img", b"one"), plain("pages-1.img", b"two")),
        tmp_path,
    )

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "inventory.img": b"one",
        "pages-1.img": b"two",
    }
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize(
    "member",
    [
        plain("../outside"),
        plain("/etc/passwd"),
        plain("below/it"),
        plain(".."),
        special("container.log", tarfile.SYMTYPE, "/etc/shadow"),
        special("hard", tarfile.LNKTYPE, "inventory.img"),
        special("null", tarfile.CHRTYPE),
        special("disk", tarfile.BLKTYPE),
        special("pipe", tarfile.FIFOTYPE),
        special("below", tarfile.DIRTYPE),
    ],
    ids=lambda member: f"{member[0].name}-{member[0].type.decode()}",
)
def test_cve_2026_53489(tmp_path: Path, member: Member) -> None:
    """A log that is a link, and whatever else is not a plain file of the directory itself, is refused."""
    folder = tmp_path / "folder"
    folder.mkdir()

    with pytest.raises(ArchiveError):
        unpack(archive(plain("inventory.img"), member), folder)

    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "inventory.img"]


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="twice"):
        unpack(archive(plain("one"), plain("./one")), tmp_path)


def test_files_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "MOST_FILES", 2)

    with pytest.raises(ArchiveError, match="more than 2 files"):
        unpack(archive(plain("1"), plain("2"), plain("3")), tmp_path)


def test_an_archive_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="cut short"):
        unpack(archive(plain("one", b"x" * 4096))[:600], tmp_path)
