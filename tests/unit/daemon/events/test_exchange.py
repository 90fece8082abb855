"""The exchange: publishers never wait, subscribers get what matches, in order, or are told that they are too slow."""

import asyncio
import threading
from datetime import UTC, datetime

import pytest

from pyctr_wire.containerd.events import container_pb2, image_pb2, task_pb2
from pyctr_wire.containerd.services.containers.v1 import containers_pb2
from pyctr_wire.errors import InvalidArgument, ResourceExhausted, Unavailable
from pyctrd.core.anys import AnyValue
from pyctrd.core.events import ContainerCreate, ImageCreate
from pyctrd.events.exchange import Exchange
from pyctrd.rpc.convert.events import event_to_any

EVENT = AnyValue("any.Type", b"bytes")


@pytest.fixture
async def exchange() -> Exchange:
    return Exchange(event_to_any, queue=4)


async def test_events_of_all_namespaces_arrive_in_order(exchange: Exchange) -> None:
    with exchange.subscribe([]) as subscription:
        exchange.publish("a", "/x/1", EVENT)
        exchange.publish("b", "/x/2", EVENT, datetime(2020, 1, 1, tzinfo=UTC))

        first, second = await anext(subscription), await anext(subscription)

    assert (first.namespace, first.topic, first.event) == ("a", "/x/1", EVENT)
    assert (second.namespace, second.timestamp) == ("b", datetime(2020, 1, 1, tzinfo=UTC))


async def test_a_thread_may_publish_and_the_order_of_its_events_stays(exchange: Exchange) -> None:
    def publish() -> None:
        for number in range(4):
            exchange.publish("a", f"/x/{number}", EVENT)

    with exchange.subscribe([]) as subscription:
        thread = threading.Thread(target=publish)
        thread.start()
        topics = [(await anext(subscription)).topic for _ in range(4)]
        thread.join()

    assert topics == ["/x/0", "/x/1", "/x/2", "/x/3"]


async def test_a_slow_subscriber_is_ended_and_harms_nobody(exchange: Exchange) -> None:
    with exchange.subscribe([]) as slow, exchange.subscribe([]) as quick:
        for number in range(5):
            exchange.publish("a", f"/x/{number}", EVENT)
            assert (await anext(quick)).topic == f"/x/{number}"

        with pytest.raises(ResourceExhausted, match="too slow"):
            await anext(slow)


async def test_whoever_left_gets_no_events(exchange: Exchange) -> None:
    with exchange.subscribe([]) as subscription:
        pass
    for _ in range(10):
        exchange.publish("a", "/x", EVENT)

    assert not subscription._waiting


async def test_closing_ends_every_subscription(exchange: Exchange) -> None:
    subscription = exchange.subscribe([])
    exchange.publish("a", "/x", EVENT)

    exchange.close()

    assert (await anext(subscription)).topic == "/x"
    with pytest.raises(Unavailable):
        await anext(subscription)


@pytest.mark.parametrize(("namespace", "topic"), [("", "/x"), ("a--b", "/x"), ("a", "x"), ("a", "/"), ("a", "/x/")])
async def test_malformed_envelopes_are_refused(exchange: Exchange, namespace: str, topic: str) -> None:
    with pytest.raises(InvalidArgument):
        exchange.publish(namespace, topic, EVENT)


async def test_our_own_events_have_types_that_clients_know(exchange: Exchange) -> None:
    with exchange.subscribe([]) as subscription:
        exchange.publish_core("a", ContainerCreate("c1", "busybox", "io.containerd.runc.v2"))
        exchange.publish_core("a", ImageCreate("busybox", {"k": "v"}))

        container, image = await anext(subscription), await anext(subscription)

    assert container.topic == "/containers/create"
    assert container.event.type_url == "containerd.events.ContainerCreate"
    assert container_pb2.ContainerCreate.FromString(container.event.value).runtime.name == "io.containerd.runc.v2"
    # Image events live in another package than all others; clients drop them otherwise.
    assert image.event.type_url == "containerd.services.images.v1.ImageCreate"
    assert image_pb2.ImageCreate.FromString(image.event.value).labels == {"k": "v"}


CREATE = task_pb2.TaskCreate(container_id="c1", bundle="/b", io=task_pb2.TaskIO(stdout="/fifo", terminal=True), pid=7)
IMAGE = image_pb2.ImageUpdate(name="n", labels={"a.b": "c"})


@pytest.mark.parametrize(
    ("filter_text", "matches"),
    [
        ("namespace==ns", True),
        ("namespace!=ns", False),
        ("topic~=|^/tasks/|", True),
        ("topic==/tasks/create,namespace==ns", True),
        ("topic==/tasks/create,namespace==other", False),
        ("event.container_id==c1", True),
        ("event.container_id==c2", False),
        ("event.io.stdout==/fifo", True),
        ("event.io.stderr", False),
        ("event.io", False),
        ("event.pid==7", False),
        ("event.io.terminal==true", False),
        ("event.nonsense", False),
        ("event", False),
        ("nonsense", False),
    ],
)
async def test_filters_see_the_fields_of_an_event(exchange: Exchange, filter_text: str, *, matches: bool) -> None:
    with exchange.subscribe([filter_text]) as subscription:
        exchange.publish("ns", "/tasks/create", AnyValue("containerd.events.TaskCreate", CREATE.SerializeToString()))

        assert bool(subscription._waiting) is matches


async def test_filters_see_labels_and_types_with_a_prefix(exchange: Exchange) -> None:
    with exchange.subscribe(["event.labels.a.b==c"]) as subscription:
        exchange.publish(
            "ns",
            "/images/update",
            AnyValue("type.googleapis.com/" + IMAGE.DESCRIPTOR.full_name, IMAGE.SerializeToString()),
        )

        assert (await anext(subscription)).topic == "/images/update"


@pytest.mark.parametrize("filter_text", ["event.extensions.a~=.", "event.extensions.a", "event.extensions.a.value==x"])
async def test_a_map_of_messages_is_no_labels(exchange: Exchange, filter_text: str) -> None:
    """Who publishes one is not told of a filter that somebody else has, nor do others miss it."""
    container = containers_pb2.Container(id="c")
    container.extensions["a"].type_url = "x"
    event = AnyValue(container.DESCRIPTOR.full_name, container.SerializeToString())
    with exchange.subscribe([filter_text]) as subscription, exchange.subscribe([]) as other:
        exchange.publish("ns", "/x", event)

        assert not subscription._waiting
        assert (await anext(other)).event == event


@pytest.mark.parametrize("event", [AnyValue("no.such.Type", b""), AnyValue("containerd.events.TaskExit", b"\xff")])
async def test_an_event_that_cannot_be_decoded_has_no_fields(exchange: Exchange, event: AnyValue) -> None:
    with exchange.subscribe(["event.id"]) as subscription:
        exchange.publish("ns", "/x", event)

        assert not subscription._waiting


async def test_what_was_missed_is_told_to_those_who_come_soon(exchange: Exchange) -> None:
    """Before the daemon served nobody could listen; what happens later is told once, to those who listen then."""
    exchange.publish("a", "/x/before", EVENT)
    exchange.open()
    exchange.publish("a", "/x/late", EVENT, datetime(2020, 1, 1, tzinfo=UTC))
    exchange.publish("a", "/x/after", EVENT)

    with exchange.subscribe([]) as subscription:
        exchange.publish("a", "/x/now", EVENT)
        topics = [(await anext(subscription)).topic for _ in range(3)]

    assert topics == ["/x/before", "/x/late", "/x/now"]


async def test_an_end_is_told_also_to_those_who_are_still_on_their_way(exchange: Exchange) -> None:
    """A client needs seconds to come back to a new daemon, and nobody else tells it what has ended in them."""
    exchange.open()
    exchange.publish("a", "/tasks/start", EVENT)
    exchange.publish("a", "/tasks/exit", EVENT)

    with exchange.subscribe([]) as subscription:
        exchange.publish("a", "/x/now", EVENT)
        topics = [(await anext(subscription)).topic for _ in range(2)]

    assert topics == ["/tasks/exit", "/x/now"]


async def test_what_was_missed_leaves_room_for_what_comes(exchange: Exchange) -> None:
    for number in range(9):
        exchange.publish("a", f"/x/{number}", EVENT)

    with exchange.subscribe([]) as subscription:
        for number in range(2):
            exchange.publish("a", f"/y/{number}", EVENT)
        topics = [(await anext(subscription)).topic for _ in range(4)]

    assert topics == ["/x/7", "/x/8", "/y/0", "/y/1"]


async def test_what_was_missed_is_forgotten(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyctrd.events.exchange.MISSED_KEPT", 0)
    exchange.publish("a", "/x/before", EVENT)
    exchange.open()
    await asyncio.sleep(0.01)

    with exchange.subscribe([]) as subscription:
        exchange.publish("a", "/x/now", EVENT)
        assert (await anext(subscription)).topic == "/x/now"
