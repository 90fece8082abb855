"""A sandbox: the record of what a group of containers, such as a pod, shares."""

from collections.abc import Mapping
from dataclasses import field, replace
from datetime import datetime

from pyctr_wire.errors import InvalidArgument
from pyctrd.core.anys import AnyValue
from pyctrd.core.field_paths import common_changes
from pyctrd.core.filters import Adaptor, label_field, text_field
from pyctrd.core.identifiers import validate_identifier
from pyctrd.core.labels import Labels, stored
from pyctrd.core.times import UNSET
from pyctrd.core.values import dataclass


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What a client stored; `sandboxer` names who runs it."""

    id: str
    runtime_name: str = ""
    runtime_options: AnyValue | None = None
    spec: AnyValue | None = None
    labels: Labels = field(default_factory=dict)
    created_at: datetime = UNSET
    updated_at: datetime = UNSET
    extensions: Mapping[str, AnyValue] = field(default_factory=dict)
    sandboxer: str = ""


def validate(sandbox: Sandbox) -> None:
    """Raise InvalidArgument for a sandbox that cannot be stored."""
    validate_identifier("invalid sandbox ID", sandbox.id)
    if any(not key for key in sandbox.extensions):
        raise InvalidArgument("sandbox.Extensions keys must not be zero-length")


def updated(old: Sandbox, new: Sandbox, paths: tuple[str, ...], now: datetime) -> Sandbox:
    """Return `old` with the fields of `new` that `paths` name; none names all that may change.

    Raises InvalidArgument for an unknown path or a changed immutable field.
    Source: containerd core/metadata/sandbox.go.
    """
    if not paths:
        if new.runtime_name != old.runtime_name:
            raise InvalidArgument("sandbox.Runtime.Name field is immutable")
        paths = ("labels", "extensions", "spec", "runtime")
    result = old
    for path in paths:
        if common := common_changes(result, new, path):
            result = replace(result, **common)
            continue
        match path:
            case "runtime":
                result = replace(result, runtime_name=new.runtime_name, runtime_options=new.runtime_options)
            case _:
                raise InvalidArgument(f'cannot update "{path}" field on sandbox "{old.id}"')
    result = replace(result, labels=stored(result.labels), updated_at=now)
    validate(result)
    return result


def fields(sandbox: Sandbox) -> Adaptor:
    """Return `sandbox` as filters see it."""

    def adaptor(path: tuple[str, ...]) -> tuple[str, bool]:
        match path:
            case ("id",):
                return text_field(sandbox.id)
            case ("labels", *rest):
                return label_field(sandbox.labels, tuple(rest))
        return "", False

    return adaptor
