"""USER is said by an image, so it is read strictly."""

import pytest

from pyctr_wire.errors import FailedPrecondition, InvalidArgument
from pyctrd.runtime.image_user import User, resolve_user

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
# comment
web:x:33:33:web:/var/www:/bin/sh
1000000000000:x:0:0:evil:/root:/bin/sh
500:x:0:0:number as a name:/root:/bin/sh
broken:x:notanumber:0::/:/bin/sh
far:x:4294967296:0::/:/bin/sh
return:x:34:34:home:/x\rroot2:/bin/sh
nul:x:35:35:home:/x\0root2:/bin/sh
relative:x:36:36:home:x:/bin/sh
short:x:35
"""
GROUP = b"root:x:0:\nweb:x:33:\nlog:x:4:web,root\nextra:x:50:web\nbad:x:-1:web\nfar:x:4294967296:web\n"


class Files:
    """/etc/passwd and /etc/group of an image."""

    def __init__(self, passwd: bytes | None = PASSWD, group: bytes | None = GROUP) -> None:
        self._files = {"/etc/passwd": passwd, "/etc/group": group}

    def read_file(self, path: str, limit: int) -> bytes | None:
        data = self._files[path]
        if data is not None and len(data) > limit:
            raise FailedPrecondition(path)
        return data


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", User(0, 0, (0, 4), "/root")),
        ("root", User(0, 0, (0, 4), "/root")),
        ("web", User(33, 33, (33, 4, 50), "/var/www")),
        ("33", User(33, 33, (33, 4, 50), "/var/www")),
        ("web:log", User(33, 4, (4,), "/var/www")),
        ("web:7", User(33, 7, (7,), "/var/www")),
        ("500", User(500, 0, (0,), "/")),
        ("2147483647:2147483647", User(2147483647, 2147483647, (2147483647,), "/")),
        (":web", User(0, 33, (33,), "/root")),
    ],
)
def test_users(text: str, user: User) -> None:
    assert resolve_user(text, (), Files()) == user


@pytest.mark.parametrize(
    "text",
    [
        "4294967296", "2147483648", "2147483648:0", "1000000000000", "0:4294967296", "nobody", "web:nogroup", "broken",
        "far", "short", "web:", "a b", "web:a:b", "-1", "+0", "0x0", "\u0663", "web\n", "../x",
    ],
)  # fmt: skip
def test_cve_2024_40635_a_user_that_is_none_is_refused(text: str) -> None:
    """A number is in range and never a name, whatever /etc/passwd says; also CVE-2026-46680 and CVE-2016-3697."""
    with pytest.raises(InvalidArgument):
        resolve_user(text, (), Files())


@pytest.mark.parametrize("name", ["return", "nul", "relative"])
def test_cve_2022_4318_a_home_that_is_no_path_is_not_taken(name: str) -> None:
    """What could end a line of somebody's passwd never gets into HOME from here; also CVE-2026-15809."""
    assert resolve_user(name, (), Files()).home == "/"


def test_additional_groups() -> None:
    assert resolve_user("33:33", ("log", "9", "33"), Files()).additional_gids == (33, 4, 9)
    with pytest.raises(InvalidArgument):
        resolve_user("33", ("nope",), Files())


def test_an_image_without_passwd() -> None:
    empty = Files(None, None)
    assert resolve_user("", (), empty) == User(0, 0, (0,), "/")
    assert resolve_user("root", (), empty) == User(0, 0, (0,), "/root")
    assert resolve_user("7:8", (), empty) == User(7, 8, (8,), "/")


def test_cve_2025_4437_files_and_lines_are_capped() -> None:
    long = b"web:x:1:" + b"0" * (70 << 10) + b":/:/bin/sh\n"
    with pytest.raises(InvalidArgument):
        resolve_user("web", (), Files(long))
    with pytest.raises(FailedPrecondition):
        resolve_user("web", (), Files(b"x\n" * (1 << 20)))
