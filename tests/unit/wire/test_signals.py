"""Signals as people, and images, write them."""

import signal

import pytest

from pyctr_wire import signals


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("term", signal.SIGTERM),
        ("SIGKILL", signal.SIGKILL),
        ("15", 15),
        ("RTMIN+3", signal.SIGRTMIN + 3),
        ("RTMAX-1", signal.SIGRTMAX - 1),
    ],
)
def test_signals(text: str, number: int) -> None:
    assert signals.parse(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "TERM+1", "RTMIN+99", "٣", "9" * 5000, "RTMIN+" + "9" * 5000])
def test_what_is_none(text: str) -> None:
    assert signals.parse(text) is None
