"""Moments as people and log files write them."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import click

_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_FRACTION: Final = re.compile(r"\.(\d{6})\d*")


def parse_stamp(text: str) -> datetime:
    """Return the moment of an RFC 3339 time stamp; what is finer than a microsecond is cut. Raises ValueError."""
    moment = datetime.fromisoformat(_FRACTION.sub(r".\1", text))
    return moment if moment.tzinfo is not None else moment.astimezone()


def parse_moment(text: str, now: datetime) -> datetime:
    """Return the moment that `text` means: a time stamp, seconds since 1970, or a span before `now`.

    Raises click.BadParameter.
    """
    spans = list(_SPAN.finditer(text))
    try:
        if spans and "".join(match.group(0) for match in spans) == text:
            return now - timedelta(seconds=sum(float(match.group(1)) * _SECONDS[match.group(2)] for match in spans))
        if text.replace(".", "", 1).isdecimal():
            return datetime.fromtimestamp(float(text), UTC)
        return parse_stamp(text)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is no moment such as 2026-01-31T12:00:00Z, and no span such as 10m"
        ) from None
