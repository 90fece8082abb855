"""/etc/passwd and /etc/group of an image, and the USER that is looked up in them.

The data is three parts with a line of `--` between them: USER, passwd, group.
"""

import re
from typing import Final

from pyctr_shim.oci import user
from pyctr_wire.errors import FailedPrecondition, InvalidArgument
from pyctrd.runtime.image_user import resolve_user

SEPARATOR: Final = b"\n--\n"
_LARGEST: Final = (1 << 31) - 1
seeds: Final = [
    b"web:log\n--\nroot:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/var/www:/bin/sh\n\n--\nlog:x:4:web,root\n",
    b"1000\n--\nme:x:1000:100::/home/me:\n+::::::\n\n--\nusers:x:100:\n",
]


class Files:
    """What an image has in /etc."""

    def __init__(self, passwd: bytes, group: bytes) -> None:
        self._files = {"/etc/passwd": passwd, "/etc/group": group}

    def read_file(self, path: str, limit: int) -> bytes | None:
        """Return a file, or refuse one that is too long."""
        if len(self._files[path]) > limit:
            raise FailedPrecondition(path)
        return self._files[path]


def check(data: bytes) -> None:
    """Fail if who it names is no user, or is found by a number that is another one's name."""
    words, passwd, group = (*data.split(SEPARATOR, 2), b"", b"")[:3]
    text = words.decode(errors="replace")
    _check_home(passwd)
    try:
        found = resolve_user(text, [], Files(passwd, group))
    except (InvalidArgument, FailedPrecondition) as error:
        assert str(error)
        return
    assert all(0 <= number <= _LARGEST for number in (found.uid, *found.additional_gids))
    assert found.additional_gids[0] == found.gid
    assert found.home.startswith("/")
    assert found.home.isprintable()
    name = text.partition(":")[0]
    if re.fullmatch("[0-9]+", name):
        assert found.uid == int(name)
    elif found.uid == 0 and name not in {"", "root"}:
        assert re.search(rb"^%s:[^:]*:0+:" % re.escape(name.encode()), passwd, re.MULTILINE)


def _check_home(passwd: bytes) -> None:
    for uid in (0, 33, 1000):
        home = user.home_in(passwd, uid)
        assert home
        assert "\0" not in home
        assert "\n" not in home
        assert home == "/" or b":%d:" % uid in passwd
