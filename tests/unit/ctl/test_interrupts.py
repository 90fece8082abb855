"""SIGTERM and SIGHUP where they interrupt as Ctrl-C does."""

import os
import signal
from collections.abc import Iterator

import pytest

from pyctr import interrupts


@pytest.fixture(params=[signal.SIGTERM, signal.SIGHUP], ids=str)
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    before = signal.getsignal(request.param)
    yield request.param
    signal.signal(request.param, before)


def test_a_signal_interrupts_and_says_which_it_was(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_DFL)
    with pytest.raises(interrupts.Terminated) as caught, interrupts.alike():
        os.kill(os.getpid(), number)
    assert caught.value.number == number
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_so(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    with interrupts.alike():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) == signal.SIG_IGN
