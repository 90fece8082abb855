"""Leases keep objects from garbage collection while nothing else refers to them."""

from dataclasses import field
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from pyctr_wire.errors import InvalidArgument, Unimplemented
from pyctrd.core.digests import validate_digest
from pyctrd.core.filters import Adaptor, label_field, text_field
from pyctrd.core.labels import Labels
from pyctrd.core.times import UNSET
from pyctrd.core.values import dataclass

EXPIRE_LABEL: Final = "containerd.io/gc.expire"
FLAT_LABEL: Final = "containerd.io/gc.flat"
CALL_LABEL: Final = "pyctr.io/lease.call"
_CALLS_LAST: Final = timedelta(hours=24)  # at most


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease; its expiry, if it has one, is a label."""

    id: str
    labels: Labels = field(default_factory=dict)
    created_at: datetime = UNSET


def for_a_call(id: str) -> Lease:
    """Return a lease for what a call of this daemon makes: the next start lets go of it if the call could not."""
    expires = (datetime.now(UTC) + _CALLS_LAST).isoformat(timespec="seconds")
    return Lease(id, {EXPIRE_LABEL: expires, CALL_LABEL: "true"})


class Resource(NamedTuple):
    """What a lease holds: `type` is content, ingests, images or snapshots/SNAPSHOTTER."""

    id: str
    type: str


def validate_resource(resource: Resource) -> Resource:
    """Return `resource`; raise Unimplemented if its type is unknown, InvalidArgument if it is malformed."""
    kind, _, rest = resource.type.partition("/")
    if kind == "snapshots":
        if not rest or "/" in rest:
            raise InvalidArgument(f'invalid snapshot resource type: "{resource.type}"')
    elif kind not in {"content", "ingests", "images"}:
        raise Unimplemented(f"resource type {resource.type} not supported yet")
    elif rest or resource.type != kind:
        raise InvalidArgument(f'invalid {kind} resource type: "{resource.type}"')
    if kind == "content":
        validate_digest(resource.id)
    elif not resource.id:
        raise InvalidArgument(f"resource of type {resource.type} needs an id")
    return resource


def fields(lease: Lease) -> Adaptor:
    """Return `lease` as filters see it."""

    def adaptor(path: tuple[str, ...]) -> tuple[str, bool]:
        match path:
            case ("id",):
                return text_field(lease.id)
            case ("labels", *rest):
                return label_field(lease.labels, tuple(rest))
        return "", False

    return adaptor
