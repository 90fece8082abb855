"""A google.protobuf.Any that is not ours: stored and handed back byte for byte."""

from collections.abc import Mapping
from typing import NamedTuple


class AnyValue(NamedTuple):
    """A type URL and the bytes under it, never re-encoded."""

    type_url: str
    value: bytes


def with_key(old: Mapping[str, AnyValue], new: Mapping[str, AnyValue], key: str) -> dict[str, AnyValue]:
    """Return `old` with what `new` has under `key`, or without `key` if that is nothing."""
    result = {name: value for name, value in old.items() if name != key}
    if key in new:
        result[key] = new[key]
    return result
