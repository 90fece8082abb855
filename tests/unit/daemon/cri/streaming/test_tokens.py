"""Tokens: once, for a minute, a thousand."""

import pytest

from pyctr_wire.errors import ResourceExhausted
from pyctrd.cri.streaming.tokens import LIFETIME, LIMIT, Tokens


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_token_is_redeemed_once() -> None:
    tokens: Tokens[str] = Tokens()
    token = tokens.issue("request")

    assert len(token) == 8
    assert tokens.redeem("another1") is None
    assert tokens.redeem(token) == "request"
    assert tokens.redeem(token) is None


def test_a_token_is_good_for_a_minute() -> None:
    clock = Clock()
    tokens: Tokens[str] = Tokens(clock)
    early, late = tokens.issue("early"), tokens.issue("late")

    clock.now += LIFETIME - 1
    assert tokens.redeem(early) == "early"
    clock.now += 1
    assert tokens.redeem(late) is None


def test_beyond_a_thousand_none_is_issued_until_some_expire() -> None:
    clock = Clock()
    tokens: Tokens[int] = Tokens(clock)
    issued = {tokens.issue(number) for number in range(LIMIT)}

    assert len(issued) == LIMIT
    with pytest.raises(ResourceExhausted, match="maximum number of in-flight requests exceeded"):
        tokens.issue(LIMIT)
    clock.now += LIFETIME
    assert tokens.issue(LIMIT)
