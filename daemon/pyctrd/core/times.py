"""Times as the API knows them: aware datetimes in UTC."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

# What an unset timestamp is on the wire: Go's zero time.
UNSET: Final = datetime(1, 1, 1, tzinfo=UTC)

_SPAN: Final = re.compile(r"([+-]?)((?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+|0)", re.ASCII)
_SPAN_PART: Final = re.compile(r"([\d.]+)(\D+)")
_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def to_microseconds(time: datetime) -> int:
    """Return the microseconds between 1970 and `time`, negative before it."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def from_microseconds(microseconds: int) -> datetime:
    """Return the time `microseconds` after 1970."""
    return _EPOCH + timedelta(microseconds=microseconds)


def parse_rfc3339(text: str) -> datetime | None:
    """Return the time that an RFC 3339 text means, or None if it is not one; nanoseconds are cut off.

    What is outside of the years 1 to 9999 once it is in UTC is taken for their beginning, or their end.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    if time.tzinfo is None:
        return None
    try:
        return time.astimezone(UTC)
    except OverflowError:
        return (datetime.min if time.year == 1 else datetime.max).replace(tzinfo=UTC)


def parse_span(text: str) -> timedelta | None:
    """Return the time span that a text such as "1h30m" or "-1.5s" means, or None if it is not one.

    Source: Go's time.ParseDuration.
    """
    seconds = span_seconds(text)
    try:
        return None if seconds is None else timedelta(seconds=seconds)
    except OverflowError:
        return None


def span_seconds(text: str) -> float | None:
    """Return in seconds what `parse_span` returns, whatever its size."""
    match = _SPAN.fullmatch(text)
    if match is None:
        return None
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _SPAN_PART.findall(match[2]))
    return -seconds if match[1] == "-" else seconds
