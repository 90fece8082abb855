"""Events on their way to the daemon: numbered, kept until acknowledged, never in the container's way.

A daemon of ours takes events on the connection by which it calls, in their order: they travel with the answers, and
its acknowledgements with its next calls. Where there is none, a connection is made for them. On that one event is in
flight at a time, because a ttrpc server may run two requests of one connection in either order.

What is not acknowledged soon goes to `<bundle>/spool/<sequence>` and is sent again, with a pause that grows to a
second, or at once when a daemon says Connect. An exit's record is on disk before its event comes here, so the
spool may be bounded: when it is full the oldest event is dropped and counted.
"""

import os
import socket
import time
from collections import deque
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

from google.protobuf.message import Message

from pyctr_shim import journal
from pyctr_shim.identity import Identity, write_file
from pyctr_shim.loop import READ, WRITE, Future, Loop, Timer
from pyctr_wire import ttrpc
from pyctr_wire.containerd.services.ttrpc.events.v1 import events_pb2
from pyctr_wire.containerd.types import event_pb2
from pyctr_wire.errors import ApiError, InvalidArgument, Unimplemented

_LIMIT: Final = 1024
_LONGEST: Final = ttrpc.MAX_DATA - 4096  # of an envelope: the request around it has names and headers
_ANSWER_TIMEOUT: Final = 5.0  # containerd gives a Forward as much
_AFTER_ANSWER: Final = 0.001
_SPOOL_AFTER: Final = 1.0
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_IDLE: Final = 1.0
_SERVICE: Final = "containerd.services.events.ttrpc.v1.Events"


class Event(NamedTuple):
    """One event: its number and its marshalled containerd.types.Envelope."""

    sequence: int
    envelope: bytes


class Way(Protocol):
    """A connection of a daemon that takes events by it."""

    def post(self, data: bytes, /) -> int:
        """Send a request and return its number; `Publisher` gets to hear of the answer, or of the way's end."""


class Publisher:
    """Sends one shim's events in order."""

    def __init__(self, loop: Loop, identity: Identity) -> None:
        """Start with nothing to send; the connection is made when there is."""
        self._loop = loop
        self._identity = identity
        self._spool = f"{identity.bundle}/spool"
        self._queue: deque[Event] = deque()
        self._next = 1
        self._spooled: set[int] = set()
        self._dropped = 0
        self._pause = _FIRST_PAUSE
        self._way: Way | None = None
        self._posted: deque[int] = deque()  # requests by that, for the first so many events
        self._connection: socket.socket | None = None
        self._unsent = b""
        self._in_flight = False  # the first one is, by the connection
        self._stream = 1
        self._decoder = ttrpc.FrameDecoder()
        self._retry: Timer | None = None
        self._deadline: Timer | None = None
        self._idle: Timer | None = None
        self._emptied: Future[None] = Future()

    @property
    def empty(self) -> bool:
        """Whether every event has been acknowledged."""
        return not self._queue

    def publish(self, topic: str, event: Message, *, answered: bool = False) -> None:
        """Queue an event and send it with the next answer, or after the current round of the loop; never blocks.

        Of what is `answered`, the client hears without it. On a connection of its own it is sent a moment later, when
        the daemon has passed the answer on and has nothing to do.
        """
        envelope = event_pb2.Envelope(namespace=self._identity.namespace, topic=topic)
        envelope.timestamp.FromNanoseconds(time.time_ns())
        envelope.event.type_url = event.DESCRIPTOR.full_name
        envelope.event.value = event.SerializeToString()
        data = envelope.SerializeToString()
        if len(data) > _LONGEST:  # as of a creation that only just fitted into a call
            journal.log("event is too long to be told", topic=topic, length=len(data))
            return
        self._queue.append(Event(self._next, data))
        self._next += 1
        if len(self._queue) > _LIMIT:
            self._drop_one()
        if self._retry is not None:
            self._write_spool()
        elif self._way is not None:
            self._pump()
        elif answered:
            self._loop.call_later(_AFTER_ANSWER, self._pump)
        else:
            self._loop.call_soon(self._pump)

    def retry_now(self) -> None:
        """Send without waiting for the pause to end: a daemon has just shown up."""
        self._pause = _FIRST_PAUSE
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
            self._loop.call_soon(self._pump)

    def offered(self, way: Way) -> None:
        """Send by `way` from now on: a daemon that takes events by it has called."""
        if way is self._way:
            return
        self._leave_way()
        self._way = way
        if self._queue:
            self.retry_now()
            self._pump()

    def answered(self, way: Way, number: int, data: bytes) -> None:
        """Take an answer that came by `way`; one to what has been given up says nothing of what is on its way now."""
        if way is self._way and self._posted and number == self._posted[0] and self._accepted(data):
            self._posted.popleft()
            self._forget_first()
            if self._posted:
                self._deadline = self._loop.call_later(_SPOOL_AFTER, self._overdue)
            self._go_on()

    def lost(self, way: Way) -> None:
        """Do without `way`: it has closed."""
        if way is self._way:
            self._leave_way()
            self._loop.call_soon(self._pump)

    async def flush(self, seconds: float) -> None:
        """Wait until every event has been acknowledged, at most `seconds`."""
        if self._queue:
            self._emptied = Future()
            await self._loop.wait(self._emptied, seconds)

    def close(self) -> None:
        """Close the connection; what is queued stays in the spool."""
        self._write_spool()
        self._leave_way()
        self._disconnect()

    def _pump(self) -> None:
        """Send all events by a daemon's way, or else the oldest one, unless one is in flight or a pause is on."""
        if self._in_flight or self._retry is not None or not self._queue:
            return
        if self._way is not None:
            self._post_all(self._way)
            return
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._connection is None and not self._connect():
            return
        self._in_flight = True
        self._unsent = ttrpc.encode_frame(self._stream, ttrpc.FrameType.REQUEST, self._request(self._queue[0]))
        self._deadline = self._loop.call_later(_SPOOL_AFTER, self._overdue)
        self._flush()

    def _post_all(self, way: Way) -> None:
        if self._deadline is None:
            self._deadline = self._loop.call_later(_SPOOL_AFTER, self._overdue)
        for event in list(self._queue)[len(self._posted) :]:
            self._posted.append(way.post(self._request(event)))

    def _request(self, event: Event) -> bytes:
        forward = events_pb2.ForwardRequest()
        forward.envelope.MergeFromString(event.envelope)
        metadata = {"containerd-namespace-ttrpc": self._identity.namespace}
        if self._identity.instance:
            metadata["pyctr-instance"] = self._identity.instance
            metadata["pyctr-sequence"] = str(event.sequence)
        payload = forward.SerializeToString()
        return ttrpc.encode_request(ttrpc.Request(_SERVICE, "Forward", payload, int(_ANSWER_TIMEOUT * 1e9), metadata))

    def _connect(self) -> bool:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # A unix socket connects at once or not at all: EAGAIN is a full backlog.
            connection.connect(self._identity.ttrpc_address.removeprefix("unix://"))
        except OSError as error:
            connection.close()
            self._failed(f"connect: {error}")
            return False
        self._connection = connection
        self._stream = 1
        self._decoder = ttrpc.FrameDecoder()
        self._loop.watch(connection.fileno(), READ, self._ready)
        return True

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & ~WRITE and self._connection is not None:
            self._receive(self._connection)

    def _flush(self) -> None:
        connection = self._connection
        if connection is None or not self._unsent:
            return
        try:
            sent = connection.send(self._unsent, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._failed(f"send: {error}")
            return
        self._unsent = self._unsent[sent:]
        self._loop.rewatch(connection.fileno(), READ | WRITE if self._unsent else READ)

    def _receive(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._failed("connection closed")
            return
        for frame in self._decoder.feed(data):
            if self._in_flight and frame.stream_id == self._stream and isinstance(frame, ttrpc.Frame):
                self._answered(frame.data)

    def _answered(self, data: bytes) -> None:
        self._stream += 2
        if self._accepted(data):
            self._in_flight = False
            self._forget_first()
            if not self._queue or self._way is not None:
                self._idle = self._loop.call_later(_IDLE, self._disconnect)
            self._go_on()

    def _accepted(self, data: bytes) -> bool:
        """Whether an answer says that nobody need be told of the first event again."""
        try:
            ttrpc.decode_response(data)
        except (InvalidArgument, Unimplemented) as error:  # it would be refused for ever, and hold up the rest
            journal.log("event refused", sequence=self._queue[0].sequence, error=str(error))
        except ApiError as error:
            self._failed(f"refused: {error}")
            return False
        return True

    def _forget_first(self) -> None:
        self._cancel_deadline()
        self._pause = _FIRST_PAUSE
        event = self._queue.popleft()
        if event.sequence in self._spooled:
            self._unspool(event.sequence)

    def _go_on(self) -> None:
        if not self._queue:
            self._emptied.set(None)
        elif not self._posted:
            self._loop.call_soon(self._pump)

    def _overdue(self) -> None:
        """Nobody answered yet: keep what waits on disk, and give the daemon the rest of its time."""
        self._write_spool()
        self._deadline = self._loop.call_later(_ANSWER_TIMEOUT - _SPOOL_AFTER, lambda: self._failed("no answer"))

    def _failed(self, why: str) -> None:
        """Give up this attempt and plan the next one."""
        if self._pause == _FIRST_PAUSE:
            journal.log("events wait", reason=why, queued=len(self._queue))
        self._leave_way()
        self._disconnect()
        if not self._queue:
            return
        self._write_spool()
        self._retry = self._loop.call_later(self._pause, self._again)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _again(self) -> None:
        self._retry = None
        self._pump()

    def _leave_way(self) -> None:
        self._way = None
        if self._posted:
            self._posted.clear()
            self._cancel_deadline()

    def _disconnect(self) -> None:
        """Close the connection that was made for events."""
        if self._in_flight:
            self._in_flight = False
            self._cancel_deadline()
        self._unsent = b""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._connection is not None:
            self._loop.unwatch(self._connection.fileno())
            self._connection.close()
            self._connection = None

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _write_spool(self) -> None:
        """Put every queued event into a file of its own; a disk that refuses leaves them in memory.

        So does a bundle that is gone: a slow shim's last events come after a daemon has removed that.
        """
        waiting = [event for event in self._queue if event.sequence not in self._spooled]
        if not waiting:
            return
        try:
            with suppress(FileExistsError):
                os.mkdir(self._spool, 0o700)
            for event in waiting:
                write_file(f"{self._spool}/{event.sequence:020d}", event.envelope)
                self._spooled.add(event.sequence)
        except OSError as error:
            journal.log("event not spooled", error=str(error))

    def _unspool(self, sequence: int) -> None:
        self._spooled.discard(sequence)
        try:
            os.unlink(f"{self._spool}/{sequence:020d}")
        except FileNotFoundError:
            return

    def _drop_one(self) -> None:
        """Drop the oldest event that is not in flight, or the newest."""
        first = min(max(len(self._posted), 1), len(self._queue) - 1)
        event = self._queue[first]
        del self._queue[first]
        self._dropped += 1
        if event.sequence in self._spooled:
            self._unspool(event.sequence)
        journal.log("event dropped", sequence=event.sequence, dropped=self._dropped)
