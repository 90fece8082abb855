"""What an event says, for those of us who follow events: clients publish what they like, on any topic."""

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from pyctrd.core.anys import AnyValue

M = TypeVar("M", bound=Message)


def decode(event: AnyValue, kind: type[M]) -> M | None:
    """Return the message in `event`, None unless it is one of this kind."""
    if event.type_url.rpartition("/")[2] != kind.DESCRIPTOR.full_name:
        return None
    try:
        return kind.FromString(event.value)
    except DecodeError:
        return None
