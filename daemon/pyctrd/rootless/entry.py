"""How an ordinary user's daemon becomes root of a user namespace, before it has a second thread.

The process stays the one that was started, so whoever watches it needs to know nothing: a child that stays outside
gives it its ids, and ends. A daemon that finds containers alive enters *their* namespace: in one of its own it could
not signal processes whose user is not root.
"""

import json
import os
import pwd
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pyctr_sys import user_namespace
from pyctr_sys.user_namespace import CannotEnter, Range
from pyctrd.rootless.paths import VARIABLE


def enter(state: Path) -> None:
    """Enter the user namespace of the containers that `state` tells of, or a new one. Raises CannotEnter."""
    uid = os.geteuid()
    if not any(map(user_namespace.rejoin, _alive(state))):
        user_namespace.enter(*maps(uid, os.getegid()))
    os.environ[VARIABLE] = str(uid)


def maps(uid: int, gid: int) -> tuple[list[Range], list[Range]]:
    """Return the maps of uids and gids in which the user is root. Raises CannotEnter where no ids are granted."""
    name = pwd.getpwuid(uid).pw_name
    found = []
    for path, own in zip(user_namespace.GRANTS, (uid, gid), strict=True):
        ranges = user_namespace.granted(lines_of(path), name, uid)
        if not ranges:
            raise CannotEnter(f"{path} grants {name} no ids")
        found.append(user_namespace.with_own(own, ranges))
    return found[0], found[1]


def lines_of(path: Path) -> list[str]:
    """Return a file's lines, none if it is not there."""
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return []


def _alive(state: Path) -> Iterator[int]:
    """Yield the pids of shims and containers of an earlier daemon, which may have ended."""
    for name in ("shim.json", "state.json"):
        for path in state.glob(f"tasks/*/*/{name}"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                yield int(json.loads(path.read_bytes())["pid"])
