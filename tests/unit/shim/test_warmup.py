"""The zygote's practice, when it goes wrong."""

import socket

import pytest

from pyctr_shim import warmup
from pyctr_shim.loop import Loop


def test_a_talk_that_nobody_answers_ends_while_its_connection_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later, it would find its descriptor closed, or another's."""
    monkeypatch.setattr(warmup, "_PATIENCE", 0.01)
    loop = Loop()
    ended: list[int] = []
    ours, theirs = socket.socketpair()

    async def talk() -> None:
        try:
            await loop.readable(ours.fileno(), 60.0)
        finally:
            ended.append(ours.fileno())

    with ours, theirs:
        warmup._run(loop, talk())
        assert ended == [ours.fileno()]
