"""Times as the API knows them: aware datetimes in UTC."""

from datetime import UTC, datetime, timedelta
from typing import Final

# What an unset timestamp is on the wire: Go's zero time.
UNSET: Final = datetime(1, 1, 1, tzinfo=UTC)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def to_microseconds(time: datetime) -> int:
    """Return the microseconds between 1970 and `time`, negative before it."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def from_microseconds(microseconds: int) -> datetime:
    """Return the time `microseconds` after 1970."""
    return _EPOCH + timedelta(microseconds=microseconds)


def parse_rfc3339(text: str) -> datetime | None:
    """Return the time that an RFC 3339 text means, or None if it is not one; nanoseconds are cut off."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time.astimezone(UTC) if time.tzinfo is not None else None
