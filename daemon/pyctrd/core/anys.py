"""A google.protobuf.Any that is not ours: stored and handed back byte for byte."""

from typing import NamedTuple


class AnyValue(NamedTuple):
    """A type URL and the bytes under it, never re-encoded."""

    type_url: str
    value: bytes
