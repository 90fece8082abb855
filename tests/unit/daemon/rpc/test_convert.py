"""Times on the wire."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from pyctrd.core.times import UNSET
from pyctrd.rpc.convert.well_known import time_from_proto, time_to_proto


@pytest.mark.parametrize(
    ("time", "seconds", "nanos"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), 0, 0),
        (datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), -1, 999_999_000),
        (datetime(2026, 11, 29, 1, 2, 3, 4, tzinfo=UTC), 1_795_914_123, 4000),
        (UNSET, -62_135_596_800, 0),  # Go's zero time, which clients know as "not set"
    ],
)
def test_a_time_survives_the_way_there_and_back(time: datetime, seconds: int, nanos: int) -> None:
    message = time_to_proto(time)

    assert (message.seconds, message.nanos) == (seconds, nanos)
    assert time_from_proto(message) == time


def test_a_time_of_another_zone_is_sent_in_utc() -> None:
    there = timezone(timedelta(hours=2))

    assert time_to_proto(datetime(1970, 1, 1, 2, tzinfo=there)).seconds == 0


@pytest.mark.parametrize("seconds", [10**15, -(10**15)])
def test_a_time_out_of_range_is_not_set(seconds: int) -> None:
    assert time_from_proto(Timestamp(seconds=seconds)) == UNSET
