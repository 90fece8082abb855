"""Events of pods, and those that wait for the first who listens."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from pyctr_wire.cri import image_pb2, runtime_pb2
from pyctrd.cri import events
from pyctrd.cri.records import Pod

Event = runtime_pb2.ContainerEventResponse


class Clock:
    """A clock that goes when it is told to."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(events, "time", made)
    return made


def tell(told: events.Events, id: str) -> None:
    told.pod(Pod(id, image_pb2.PodSandboxConfig(), "", 0), runtime_pb2.CONTAINER_CREATED_EVENT)


async def take(listening: AsyncIterator[Event], number: int) -> list[str]:
    return [(await anext(listening)).container_id for _ in range(number)]


async def test_the_first_who_listens_hears_of_the_last_five_minutes(clock: Clock) -> None:
    told = events.Events()
    for id, pause in (("old", 200), ("a", 200), ("b", 50)):
        tell(told, id)
        clock.now += pause

    async with aclosing(told.listen()) as listening:  # type: ignore[type-var]
        assert await take(listening, 2) == ["a", "b"]
        tell(told, "c")
        assert await take(listening, 1) == ["c"]


def test_what_is_too_old_to_be_told_takes_no_memory(clock: Clock) -> None:
    """A kubelet need never listen; there can be thousands, each with all that is known of a pod."""
    told = events.Events()
    for number in range(20):
        tell(told, f"{number}")
        clock.now += 100

    assert len(told._kept) == 4
