"""Labels: small texts attached to objects, and the field masks that change them."""

from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

from pyctr_wire.errors import InvalidArgument

Labels: TypeAlias = Mapping[str, str]

MAX_BYTES: Final = 4096  # key and value together
_SHOWN_KEY_BYTES: Final = 64


def validate_labels(prefix: str, labels: Labels) -> None:
    """Raise InvalidArgument, its message starting with `prefix`, if a key and its value exceed 4096 bytes."""
    for key, value in labels.items():
        raw = key.encode()
        size = len(raw) + len(value.encode())
        if size > MAX_BYTES:
            shown = raw[:_SHOWN_KEY_BYTES].decode(errors="ignore")
            raise InvalidArgument(
                f"{prefix}: label key and value length ({size} bytes) greater than maximum size"
                f" ({MAX_BYTES} bytes), key: {shown}"
            )


def stored(labels: Labels) -> dict[str, str]:
    """Return what is kept of `labels`: a label set to the empty text is a label removed."""
    return {key: value for key, value in labels.items() if value}


def changed(old: Labels, new: Labels, mask: Iterable[str], target: str) -> dict[str, str]:
    """Return `old` after an update to `new` under a field mask of `labels` and `labels.KEY` paths.

    An empty mask replaces them all. KEY is everything after the first dot. Raises InvalidArgument
    for any other path; `target` names the object in its message.
    """
    result, paths = dict(old), tuple(mask)
    if not paths:
        return stored(new)
    for path in paths:
        field, _, key = path.partition(".")
        if field != "labels":
            raise InvalidArgument(f'cannot update "{path}" field on {target}')
        if key:
            result[key] = new.get(key, "")
        else:
            result = dict(new)
    return stored(result)
