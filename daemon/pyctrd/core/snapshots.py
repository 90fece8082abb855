"""Snapshots: layers of a file system, read-only once committed."""

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from enum import IntEnum
from typing import Final

from pyctrd.core.filters import Adaptor, label_field
from pyctrd.core.labels import Labels
from pyctrd.core.values import dataclass

# An unpacker sets it to the name that it will commit; found there already, it is told so.
TARGET_LABEL: Final = "containerd.io/snapshot.ref"


class Kind(IntEnum):
    """What may be done with a snapshot. Source: containerd.services.snapshots.v1.Kind."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


KIND_NAMES: Final[Mapping[Kind, str]] = {kind: kind.name.lower() for kind in Kind}


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot: `name` is the key of an active one or a view; `parent` is "" at the bottom."""

    name: str
    parent: str
    kind: Kind
    created_at: datetime
    updated_at: datetime
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot adds to its parent: allocated bytes and inodes."""

    size: int = 0
    inodes: int = 0


def fields(snapshot: SnapshotInfo) -> Adaptor:
    """Return `snapshot` as filters see it: name and parent are always there."""

    def adaptor(path: tuple[str, ...]) -> tuple[str, bool]:
        match path:
            case ("kind",):
                return KIND_NAMES[snapshot.kind], True
            case ("name",):
                return snapshot.name, True
            case ("parent",):
                return snapshot.parent, True
            case ("labels", *rest):
                return label_field(snapshot.labels, tuple(rest))
        return "", False

    return adaptor
