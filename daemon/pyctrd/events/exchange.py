"""The exchange: whoever publishes never waits, and every subscriber has a bounded queue of its own."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence, Set
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self

from pyctr_wire.errors import ApiError, ResourceExhausted, Unavailable
from pyctrd.core.anys import AnyValue
from pyctrd.core.events import Event
from pyctrd.core.filters import compile_filters
from pyctrd.core.identifiers import validate_namespace, validate_topic
from pyctrd.core.values import dataclass

MISSED_KEPT: Final = 30.0  # seconds from the start of service; clients reconnect within three
# What comes by itself. Of everything else, whoever made it happen has been told by the answer.
_UNASKED: Final = frozenset({"/tasks/exit", "/tasks/oom"})


@dataclass(frozen=True, slots=True)
class Envelope:
    """An event as it travels."""

    timestamp: datetime
    namespace: str
    topic: str
    event: AnyValue


class Subscription:
    """The events since it was made that it wants: an asynchronous iterator, and a context that ends it."""

    def __init__(self, wants: Callable[[Envelope], bool], limit: int, leave: "Callable[[Subscription], None]") -> None:
        """Hold up to `limit` events; `leave` is called when the context ends."""
        self._wants = wants
        self._limit = limit
        self._leave = leave
        self._waiting: deque[Envelope] = deque()
        self._arrived = asyncio.Event()
        self._end: ApiError | None = None

    def offer(self, envelope: Envelope) -> None:
        """Queue `envelope` if it is wanted; a full queue ends the subscription instead."""
        if not self._wants(envelope):
            return
        if len(self._waiting) >= self._limit:
            self._waiting.clear()
            self.end(ResourceExhausted(f"subscriber is too slow: {self._limit} events wait for it; subscribe again"))
            return
        self._waiting.append(envelope)
        self._arrived.set()

    def end(self, error: ApiError) -> None:
        """Let the reader get what waits, and then `error`."""
        self._leave(self)
        self._end = error
        self._arrived.set()

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> Envelope:
        """Return the next event. Raises ResourceExhausted if the queue was full, Unavailable when the daemon stops."""
        while not self._waiting:
            if self._end is not None:
                raise self._end
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the exchange."""
        self._leave(self)


class Exchange:
    """Passes events of all namespaces to all subscribers, in the order in which each publisher sent them.

    There is no replay, with one exception: what happened while no daemon ran, or before this one served, is told
    also to those who subscribe soon after, and so are ends of processes while they are on their way. A client that
    lost its stream with the old daemon learns in no other way that a container has ended.
    """

    def __init__(self, encode: Callable[[Event], AnyValue], queue: int) -> None:
        """Belong to the running event loop.

        `encode` makes the wire form of our own events; `queue` is how many events may wait for one subscriber.
        """
        self._encode = encode
        self._queue = queue
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._subscriptions: set[Subscription] = set()
        # Half, so that whoever gets all of them still has room for what comes.
        self._missed: deque[Envelope] | None = deque(maxlen=queue // 2)
        self._opened: datetime | None = None

    def open(self) -> None:
        """Note that clients can subscribe from now on; within MISSED_KEPT seconds, all that were there have."""
        self._opened = datetime.now(UTC)
        self._loop.call_later(MISSED_KEPT, self._forget_missed)

    def publish(self, namespace: str, topic: str, event: AnyValue, timestamp: datetime | None = None) -> None:
        """Tell subscribers of `event`; from any thread, and without waiting for anybody.

        Raises InvalidArgument for a malformed namespace or topic.
        """
        validate_namespace(namespace)
        validate_topic(topic)
        envelope = Envelope(timestamp or datetime.now(UTC), namespace, topic, event)
        if threading.get_ident() == self._thread:
            self._deliver(envelope)
        else:
            self._loop.call_soon_threadsafe(self._deliver, envelope)

    def publish_core(self, namespace: str, event: Event) -> None:
        """Tell subscribers of one of our own events; from any thread."""
        self.publish(namespace, event.topic, self._encode(event))

    def subscribe(self, filters: Sequence[str]) -> Subscription:
        """Return a subscription to what is published from now on, or was missed, and matches any of `filters`.

        Raises InvalidArgument for a malformed filter.
        """
        # It loads all events that there are, which a daemon that starts has no time for.
        from pyctrd.events.fields import adaptor_for

        matches = compile_filters(filters)
        return self._admit(lambda one: matches(adaptor_for(one.namespace, one.topic, one.event)))

    def follow(self, topics: Set[str]) -> Subscription:
        """Return a subscription, as `subscribe` does, to events of these topics: a part of the daemon's own."""
        return self._admit(lambda one: one.topic in topics)

    def _admit(self, wants: Callable[[Envelope], bool]) -> Subscription:
        subscription = Subscription(wants, self._queue, self._subscriptions.discard)
        for envelope in self._missed or ():
            subscription.offer(envelope)
        self._subscriptions.add(subscription)
        return subscription

    def close(self) -> None:
        """End every subscription: the daemon stops."""
        for subscription in tuple(self._subscriptions):
            subscription.end(Unavailable("the daemon is stopping"))

    def _forget_missed(self) -> None:
        self._missed = None

    def _may_be_missed(self, envelope: Envelope) -> bool:
        """Whether those who subscribe soon after the start need to be told of what is told to others now."""
        return self._opened is None or envelope.timestamp < self._opened or envelope.topic in _UNASKED

    def _deliver(self, envelope: Envelope) -> None:
        if self._missed is not None and self._may_be_missed(envelope):
            self._missed.append(envelope)
        for subscription in tuple(self._subscriptions):
            subscription.offer(envelope)
