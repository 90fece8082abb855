"""Events: in order, kept until acknowledged, on disk when nobody answers, bounded when nobody ever does."""

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyctr_shim import publisher
from pyctr_shim.identity import Identity
from pyctr_shim.loop import Loop
from pyctr_shim.publisher import Publisher
from pyctr_wire import ttrpc
from pyctr_wire.containerd.events import task_pb2 as events
from pyctr_wire.containerd.services.ttrpc.events.v1 import events_pb2
from pyctr_wire.errors import InvalidArgument, Unavailable
from support.shim_harness import DEADLINE, EventsEndpoint, eventually


class Scene:
    """A publisher, its loop and the daemon's endpoint."""

    def __init__(self, root: Path) -> None:
        self.bundle = root / "bundle"
        self.bundle.mkdir()
        self.loop = Loop()
        self.endpoint = EventsEndpoint(str(root / "e"))
        identity = Identity("ns", "c", str(self.bundle), "", "", self.endpoint.path, "", "instance", "info")
        self.publisher = Publisher(self.loop, identity)

    def publish(self, *numbers: int) -> None:
        for number in numbers:
            self.publisher.publish("/tasks/start", events.TaskStart(container_id="c", pid=number))

    def serve_until(self, condition: Callable[[], bool], what: str) -> None:
        def step() -> bool:
            self.loop.call_later(0.01, lambda: None)
            self.loop.run_once()
            return condition()

        eventually(step, what)

    def spooled(self) -> list[str]:
        return sorted(os.listdir(self.bundle / "spool")) if (self.bundle / "spool").is_dir() else []

    def told(self) -> list[int]:
        return [told.event.pid for told in self.endpoint.told]


class Caller:
    """A daemon's connection, which takes events."""

    def __init__(self, scene: Scene) -> None:
        self.publisher = scene.publisher
        self.numbers: list[int] = []
        self.requests: list[ttrpc.Request] = []

    def post(self, data: bytes) -> int:
        ttrpc.encode_frame(2, ttrpc.FrameType.REQUEST, data)
        self.requests.append(ttrpc.decode_request(data))
        self.numbers.append(2 * len(self.requests))
        return self.numbers[-1]

    def call(self) -> None:
        self.publisher.offered(self)

    def answer(self, data: bytes = ttrpc.encode_response(b"")) -> None:
        self.publisher.answered(self, self.numbers.pop(0), data)

    def hang_up(self) -> None:
        self.publisher.lost(self)

    def told(self) -> list[int]:
        envelopes = [events_pb2.ForwardRequest.FromString(request.payload).envelope for request in self.requests]
        return [events.TaskStart.FromString(envelope.event.value).pid for envelope in envelopes]


@pytest.fixture
def scene() -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="pub") as root:  # short: sockets are limited to 108 bytes
        scene = Scene(Path(root))
        yield scene
        scene.publisher.close()
        scene.endpoint.close()
        scene.loop.close()


def test_events_arrive_in_order_with_their_numbers_and_leave_no_file(scene: Scene) -> None:
    scene.endpoint.start()
    scene.publish(*range(1, 51))
    scene.serve_until(lambda: len(scene.endpoint.told) == 50, "all events")

    assert scene.told() == list(range(1, 51))
    assert [told.sequence for told in scene.endpoint.told] == list(range(1, 51))
    assert {(told.instance, told.namespace, told.topic) for told in scene.endpoint.told} == {
        ("instance", "ns", "/tasks/start")
    }
    assert scene.spooled() == []


def test_what_nobody_takes_is_on_disk_until_somebody_does(scene: Scene) -> None:
    scene.publish(1, 2)
    scene.serve_until(lambda: len(scene.spooled()) == 2, "both are spooled")
    scene.publish(3)
    assert scene.spooled() == [f"{number:020d}" for number in (1, 2, 3)]
    scene.endpoint.start()
    scene.publisher.retry_now()
    scene.serve_until(lambda: scene.told() == [1, 2, 3] and not scene.spooled(), "told and forgotten")


def test_a_bundle_that_is_gone_is_not_made_again(scene: Scene) -> None:
    """As when a shim is slow to end, and the daemon has removed what it knew of it: nobody would look there."""
    scene.bundle.rmdir()
    scene.publish(1, 2)
    scene.serve_until(lambda: scene.publisher._retry is not None, "it waits for the daemon")

    assert not scene.bundle.exists()
    scene.endpoint.start()
    scene.serve_until(lambda: scene.told() == [1, 2] and scene.publisher.empty, "told from memory")
    assert not scene.bundle.exists()


def test_a_daemon_that_comes_back_is_found_without_being_announced(scene: Scene) -> None:
    scene.endpoint.start()
    scene.publish(1)
    scene.serve_until(lambda: scene.told() == [1], "the first")
    scene.endpoint.stop()
    scene.publish(2)
    scene.serve_until(lambda: len(scene.spooled()) == 1, "spooled")
    scene.endpoint.start()
    scene.serve_until(lambda: scene.told() == [1, 2], "the second")


def test_an_event_without_an_answer_is_sent_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "_SPOOL_AFTER", 0.05)
    monkeypatch.setattr(publisher, "_ANSWER_TIMEOUT", 0.1)
    silent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    silent.bind(scene.endpoint.path)
    silent.listen()
    silent.settimeout(DEADLINE)
    scene.publish(1)
    scene.serve_until(lambda: bool(scene.spooled()), "spooled though it was sent")
    silent.close()
    scene.endpoint.start()
    scene.serve_until(lambda: scene.told() == [1], "told")


def test_a_refused_event_holds_up_nobody_and_a_busy_daemon_is_asked_again(scene: Scene) -> None:
    scene.endpoint.start()
    scene.endpoint.error = ttrpc.encode_error(Unavailable("busy"))
    scene.publish(1)
    scene.serve_until(lambda: len(scene.endpoint.told) >= 2, "tried again")
    scene.endpoint.error = ttrpc.encode_error(InvalidArgument("never"))
    scene.serve_until(lambda: not scene.spooled(), "given up")
    scene.endpoint.error = None
    scene.publish(2)
    scene.serve_until(lambda: scene.told()[-1] == 2, "the next one")


def test_the_queue_is_bounded_and_the_oldest_go(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "_LIMIT", 10)
    scene.publish(*range(1, 101))
    scene.serve_until(lambda: len(scene.spooled()) == 10, "spooled")
    scene.endpoint.start()
    scene.publisher.retry_now()
    scene.serve_until(lambda: len(scene.endpoint.told) == 10, "told")
    assert scene.told() == [1, *range(92, 101)]


def test_the_connection_is_closed_when_there_is_nothing_to_say(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "_IDLE", 0.01)
    before = len(os.listdir("/proc/self/fd"))
    scene.endpoint.start()
    scene.publish(1)
    scene.serve_until(lambda: scene.told() == [1], "told")
    scene.serve_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 1, "closed on both sides")
    scene.publish(2)
    scene.serve_until(lambda: scene.told() == [1, 2], "told over a new one")


def test_who_calls_gets_events_at_once_and_forgets_them_for_us(scene: Scene) -> None:
    caller = Caller(scene)
    caller.call()
    scene.publish(1, 2, 3)
    assert caller.told() == [1, 2, 3]
    assert [request.metadata["pyctr-sequence"] for request in caller.requests] == ["1", "2", "3"]
    for _ in range(3):
        assert not scene.publisher.empty
        caller.answer()
    assert scene.publisher.empty
    assert scene.publisher._deadline is None
    assert scene.spooled() == []


def test_who_calls_gets_what_waits(scene: Scene) -> None:
    scene.publish(1, 2)
    scene.serve_until(lambda: len(scene.spooled()) == 2, "both are spooled")
    caller = Caller(scene)
    caller.call()
    scene.publish(3)
    assert caller.told() == [1, 2, 3]
    for _ in range(3):
        caller.answer()
    assert scene.publisher.empty
    assert scene.spooled() == []


def test_what_a_caller_has_not_acknowledged_is_told_to_others(scene: Scene) -> None:
    caller = Caller(scene)
    caller.call()
    scene.publish(1, 2)
    caller.answer()
    caller.hang_up()
    scene.endpoint.start()
    scene.serve_until(lambda: scene.publisher.empty, "told")
    assert scene.told() == [2]

    other = Caller(scene)
    caller.call()
    scene.publish(3)
    other.call()
    assert other.told() == [3]
    caller.answer()
    assert not scene.publisher.empty, "an answer of the one before is none of the other"
    other.answer()
    assert scene.publisher.empty


def test_a_caller_that_refuses_gets_no_more(scene: Scene) -> None:
    """As a daemon does whose successor listens already."""
    caller = Caller(scene)
    caller.call()
    scene.publish(1, 2)
    scene.endpoint.start()
    caller.answer(ttrpc.encode_error(Unavailable("the daemon is stopping")))
    scene.serve_until(lambda: scene.told() == [1, 2] and scene.publisher.empty, "told to who listens")
    scene.publish(3)
    scene.serve_until(lambda: scene.told() == [1, 2, 3], "and so is what follows")
    assert caller.told() == [1, 2]


def test_a_caller_that_does_not_answer_loses_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "_SPOOL_AFTER", 0.05)
    monkeypatch.setattr(publisher, "_ANSWER_TIMEOUT", 0.1)
    caller = Caller(scene)
    caller.call()
    scene.publish(1)
    scene.serve_until(lambda: bool(scene.spooled()), "spooled though it was sent")
    scene.endpoint.start()
    scene.serve_until(lambda: scene.told() == [1] and not scene.spooled(), "told to who listens")
    caller.call()
    scene.publish(2)
    assert caller.told() == [1, 2]
    caller.answer()
    assert not scene.publisher.empty, "it was the answer to what has been given up"
    caller.answer()
    assert scene.publisher.empty


def test_the_end_of_an_unused_connection_is_not_the_end_of_a_callers(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "_IDLE", 0.01)
    scene.endpoint.start()
    scene.publish(1)
    scene.serve_until(lambda: scene.told() == [1] and scene.publisher.empty, "told")
    caller = Caller(scene)
    caller.call()
    scene.publish(2)
    scene.serve_until(lambda: scene.publisher._connection is None, "closed")
    caller.answer()
    scene.publish(3)
    assert caller.told() == [2, 3]


def test_a_connection_is_closed_also_when_a_caller_gets_the_rest(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "_IDLE", 0.01)
    scene.endpoint.start()
    scene.publish(1)
    scene.loop.run_once()
    caller = Caller(scene)
    caller.call()
    scene.publish(2)
    scene.serve_until(lambda: caller.told() == [2], "the first one is told, the second one by the caller")
    caller.answer()
    assert scene.told() == [1]
    scene.serve_until(lambda: scene.publisher._connection is None, "closed")


@pytest.mark.parametrize("called", [False, True])
def test_an_event_that_no_message_can_carry_holds_up_no_other(scene: Scene, called: bool) -> None:
    scene.endpoint.start()
    caller = Caller(scene)
    if called:
        caller.call()
    scene.publisher.publish("/tasks/create", events.TaskCreate(container_id="c", bundle="x" * ttrpc.MAX_DATA))
    scene.publish(1)
    scene.serve_until(lambda: caller.told() + scene.told() == [1], "told")
