"""Which user namespace a container gets: what `userns.remap` and `pyctr run --userns` say.

    host        none
    UID:SIZE    ids 0 to SIZE-1 are this machine's from UID on
    NAME        they are those that /etc/subuid and /etc/subgid grant to that user

Source: subuid(5), user_namespaces(7).
"""

import pwd
from pathlib import Path
from typing import Final

from pyctr_wire.errors import FailedPrecondition, InvalidArgument
from pyctrd.core.idmaps import MOST_IDS, IdMap, Maps

HOST: Final = "host"


def maps_for(text: str) -> Maps | None:
    """Return the maps that `text` asks for, None for "host" and "".

    Raises InvalidArgument for what cannot be a map, FailedPrecondition for a user to whom no ids are granted.
    """
    if text in ("", HOST):
        return None
    first, separator, size = text.partition(":")
    if not separator:
        return _granted_to(text)
    if not (first.isdecimal() and size.isdecimal()):
        raise InvalidArgument(f"{text!r} is not UID:SIZE, the name of a user, or {HOST}")
    one = IdMap(0, int(first), int(size))
    if not one.host or not one.size or one.host + one.size > MOST_IDS:
        raise InvalidArgument(f"{text!r}: the ids must begin above 0, end below {MOST_IDS}, and be at least one")
    return Maps((one,), (one,))


def _granted_to(name: str) -> Maps:
    from pyctr_sys import user_namespace  # seldom needed, and takes long to load

    try:
        number = pwd.getpwnam(name).pw_uid
    except KeyError:
        number = -1  # a name may be in the files alone
    found = []
    for path in user_namespace.GRANTS:
        ranges = user_namespace.granted(_lines(path), name, number)
        if not ranges:
            raise FailedPrecondition(f"{path} grants {name} no ids: add a line such as {name}:100000:65536")
        maps: list[IdMap] = []
        for first, size in ranges:
            maps.append(IdMap(maps[-1].container + maps[-1].size if maps else 0, first, size))
        found.append(tuple(maps))
    return Maps(found[0], found[1])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return []
