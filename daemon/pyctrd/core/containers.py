"""A container: the record of what to run. Its processes are its task."""

from collections.abc import Mapping
from dataclasses import field, replace
from datetime import datetime

from pyctr_wire.errors import InvalidArgument
from pyctrd.core.anys import AnyValue
from pyctrd.core.field_paths import common_changes
from pyctrd.core.filters import Adaptor, label_field, text_field
from pyctrd.core.identifiers import validate_identifier
from pyctrd.core.labels import Labels, stored, validate_labels
from pyctrd.core.times import UNSET
from pyctrd.core.values import dataclass


@dataclass(frozen=True, slots=True)
class Container:
    """What a client stored; image, snapshot and runtime need not exist."""

    id: str
    labels: Labels = field(default_factory=dict)
    image: str = ""
    runtime_name: str = ""
    runtime_options: AnyValue | None = None
    spec: AnyValue | None = None
    snapshotter: str = ""
    snapshot_key: str = ""
    created_at: datetime = UNSET
    updated_at: datetime = UNSET
    extensions: Mapping[str, AnyValue] = field(default_factory=dict)
    sandbox_id: str = ""


def without_larger_parts(container: Container) -> Container:
    """Return a container without specification, options and extensions; `replace` takes four times as long."""
    one = container
    return Container(
        one.id, one.labels, one.image, one.runtime_name, None, None, one.snapshotter, one.snapshot_key,
        one.created_at, one.updated_at, {}, one.sandbox_id,
    )  # fmt: skip


def validate(container: Container) -> None:
    """Raise InvalidArgument for a container that cannot be stored."""
    validate_identifier("container.ID", container.id)
    if any(not key for key in container.extensions):
        raise InvalidArgument("container.Extensions keys must not be zero-length")
    validate_labels("containers.Labels", container.labels)
    if not container.runtime_name:
        raise InvalidArgument("container.Runtime.Name must be set")
    if container.spec is None:
        raise InvalidArgument("container.Spec must be set")
    if container.snapshot_key and not container.snapshotter:
        raise InvalidArgument("container.Snapshotter must be set if container.SnapshotKey is set")


def updated(old: Container, new: Container, mask: tuple[str, ...], now: datetime) -> Container:
    """Return `old` with the fields of `new` that `mask` names; an empty mask names all that may change.

    Raises InvalidArgument for an unknown path, a changed immutable field, or an invalid result.
    """
    if not mask:
        if new.snapshotter != old.snapshotter:
            raise InvalidArgument("container.Snapshotter field is immutable")
        if new.runtime_name != old.runtime_name:
            raise InvalidArgument("container.Runtime.Name field is immutable")
        mask = ("labels", "spec", "extensions", "image", "snapshotkey")
    result = old
    for path in mask:
        if common := common_changes(result, new, path):
            result = replace(result, **common)
            continue
        match path:
            case "image":
                result = replace(result, image=new.image)
            case "snapshotkey":
                result = replace(result, snapshot_key=new.snapshot_key)
            case _:
                raise InvalidArgument(f'cannot update "{path}" field on "{old.id}"')
    result = replace(result, labels=stored(result.labels), updated_at=now)
    validate(result)
    return result


def fields(container: Container) -> Adaptor:
    """Return `container` as filters see it."""

    def adaptor(path: tuple[str, ...]) -> tuple[str, bool]:
        match path:
            case ("id",):
                return text_field(container.id)
            case ("image",):
                return text_field(container.image)
            case ("runtime", "name"):
                return text_field(container.runtime_name)
            case ("labels", *rest):
                return label_field(container.labels, tuple(rest))
        return "", False

    return adaptor
