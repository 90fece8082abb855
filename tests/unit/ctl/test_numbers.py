"""Numbers beyond all sense, as somebody may type them."""

from datetime import UTC, datetime

import click
import pytest

from pyctr.commands import logs
from pyctr.times import parse_moment

DIGITS = "9" * 5000


@pytest.mark.parametrize("text", [DIGITS, f"{DIGITS}s", "999999999h", f"{DIGITS}.5"])
def test_moments(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parse_moment(text, datetime.now(UTC))


@pytest.mark.parametrize("text", [DIGITS, "-1", "few", ""])
def test_lines(text: str) -> None:
    with pytest.raises(click.BadParameter):
        logs._count(text)
