"""protobuf's own messages: times, Any, field masks."""

from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from pyctrd.core.anys import AnyValue
from pyctrd.core.times import UNSET

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def time_to_proto(time: datetime) -> Timestamp:
    """Return a timestamp; UNSET is Go's zero time, which clients know as "not set"."""
    seconds, microseconds = divmod((time - _EPOCH) // _MICROSECOND, 1_000_000)
    return Timestamp(seconds=seconds, nanos=microseconds * 1000)


def time_from_proto(message: Timestamp) -> datetime:
    """Return the time in UTC, cut to microseconds; what lies outside of the years 1 to 9999 is UNSET."""
    try:
        return _EPOCH + timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)
    except OverflowError:
        return UNSET


def any_to_proto(value: AnyValue) -> AnyMessage:
    """Return the message that carries `value`."""
    return AnyMessage(type_url=value.type_url, value=value.value)


def any_from_proto(message: AnyMessage) -> AnyValue:
    """Return what the message carries, undecoded."""
    return AnyValue(message.type_url, message.value)


def mask_from_proto(message: FieldMask) -> tuple[str, ...]:
    """Return the paths of a field mask."""
    return tuple(message.paths)
