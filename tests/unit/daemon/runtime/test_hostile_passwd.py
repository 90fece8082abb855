"""An image's /etc/passwd and /etc/group may be anything."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import passwd
from pyctr_shim.oci import user

FIELDS = st.sampled_from(
    ["", "0", "00", "root", "web", "33", "-1", "4294967296", "x", "/home", "a\0b", "/\x1b[1m", "+", "é"]
)
LINES = st.lists(FIELDS, max_size=8).map(":".join)
FILES = st.lists(LINES | st.text(max_size=20), max_size=6).map("\n".join).map(str.encode) | st.binary(max_size=60)
USERS = LINES.map(str.encode) | st.binary(max_size=12)


@given(USERS, FILES, FILES)
def test_whoever_is_found_is_a_user(who: bytes, users: bytes, groups: bytes) -> None:
    passwd.check(passwd.SEPARATOR.join((who, users, groups)))


@pytest.mark.parametrize(
    ("line", "home"),
    [
        (b"me:x:5:5::/home/me:/bin/sh", "/home/me"),
        (b"me:x:5:5::/home/me", "/home/me"),
        (b"me:x:5:5::", "/"),
        (b"me:x:5:5:/home/me", "/"),
        (b"me:x:05:5::/home/me:", "/"),
        (b"me:x:5:5::/a\0b:", "/"),
        (b"me:x:5:5::/\xff:", os.fsdecode(b"/\xff")),
        (b"5:x:6:5::/six:\nme:x:5:5::/five:", "/five"),
    ],
)
def test_the_home_that_the_runtime_reads(line: bytes, home: str) -> None:
    assert user.home_in(b"# comment\n\n" + line + b"\n", 5) == home
