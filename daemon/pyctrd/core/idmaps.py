"""User id mappings as snapshot labels and mount options carry them: `CONTAINER:HOST:SIZE`, several joined by commas."""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from pyctr_wire.errors import InvalidArgument
from pyctrd.core.labels import Labels

UID_LABEL: Final = "containerd.io/snapshot/uidmapping"
GID_LABEL: Final = "containerd.io/snapshot/gidmapping"

UNCHANGED: Final = -1  # as chown(2) takes it
MOST_IDS: Final = 0xFFFFFFFF  # (uid_t) -1 is nobody's


class IdMap(NamedTuple):
    """So many ids of a user namespace, and those of this machine that they are."""

    container: int
    host: int
    size: int

    def __str__(self) -> str:
        """Return it as labels have it."""
        return f"{self.container}:{self.host}:{self.size}"


class Maps(NamedTuple):
    """Who the users and groups of a user namespace are on this machine."""

    uids: tuple[IdMap, ...]
    gids: tuple[IdMap, ...]

    def labels(self) -> dict[str, str]:
        """Return the labels of a snapshot whose files belong to them."""
        return {UID_LABEL: ",".join(map(str, self.uids)), GID_LABEL: ",".join(map(str, self.gids))}


def maps_of(labels: Labels) -> Maps | None:
    """Return the mappings that a snapshot's labels ask for, () for one that is not there; None if neither is.

    Raises InvalidArgument, naming the label, for a malformed mapping or one without id 0.
    """
    if UID_LABEL not in labels and GID_LABEL not in labels:
        return None
    return Maps(_parse(labels, UID_LABEL), _parse(labels, GID_LABEL))


def host_id(maps: Iterable[IdMap], number: int) -> int | None:
    """Return which of this machine's ids a container's is; None if it has none."""
    for item in maps:
        if 0 <= number - item.container < item.size:
            return item.host + number - item.container
    return None


def mapped_root(maps: Maps) -> tuple[int, int]:
    """Return this machine's ids of the container's root, -1 for one that is not mapped."""
    uid, gid = (host_id(one, 0) if one else UNCHANGED for one in maps)
    assert uid is not None
    assert gid is not None
    return uid, gid


def mount_options(maps: Maps) -> tuple[str, ...]:
    """Return the options that tell whoever mounts a snapshot to show its layers with these owners."""
    named: Sequence[tuple[str, tuple[IdMap, ...]]] = (("uidmap", maps.uids), ("gidmap", maps.gids))
    return tuple(f"{name}={','.join(map(str, items))}" for name, items in named if items)


def _parse(labels: Labels, label: str) -> tuple[IdMap, ...]:
    if label not in labels:
        return ()
    maps = []
    for item in labels[label].split(","):
        parts = item.split(":")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise InvalidArgument(f'label {label}: "{item}" is not CONTAINER:HOST:SIZE')
        maps.append(IdMap(*map(int, parts)))
    if host_id(maps, 0) is None:
        raise InvalidArgument(f"label {label} does not map id 0")
    return tuple(maps)
