"""What a field mask changes alike in every record with labels, extensions and a spec."""

from collections.abc import Mapping
from typing import Any, Protocol

from pyctrd.core.anys import AnyValue, with_key
from pyctrd.core.labels import Labels


class Record(Protocol):
    """What containers and sandboxes have in common."""

    @property
    def labels(self) -> Labels:
        """By name."""
        ...

    @property
    def extensions(self) -> Mapping[str, AnyValue]:
        """By name."""
        ...

    @property
    def spec(self) -> AnyValue | None:
        """What to run."""
        ...


def common_changes(old: Record, new: Record, path: str) -> dict[str, Any]:
    """Return what `path`, a field or one key of it, changes in `old`: that field as `new` has it. Empty for others."""
    name, _, key = path.partition(".")
    match name, key:
        case "labels", "":
            return {"labels": new.labels}
        case "labels", _:
            return {"labels": {**old.labels, key: new.labels.get(key, "")}}
        case "extensions", "":
            return {"extensions": new.extensions}
        case "extensions", _:
            return {"extensions": with_key(old.extensions, new.extensions, key)}
        case "spec", "":
            return {"spec": new.spec}
    return {}
