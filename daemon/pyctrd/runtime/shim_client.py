"""A ttrpc client on the event loop: one connection to one shim, any number of calls at once, a deadline on each.

Our shims tell by the same connection what happens, in requests with even numbers, ahead of the answers that tell the
same; they are acknowledged ahead of the next call.

A client that nobody calls may rest: it closes the connection, so that the shim, which may be asleep, need not wake
up when this daemon ends, and connects again for the next call. Meanwhile the end of the shim's process tells of its
loss.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, TypeAlias, TypeVar, cast

from google.protobuf.message import DecodeError, Message

from pyctr_wire import ttrpc
from pyctr_wire.errors import ApiError, DeadlineExceeded, Internal, PermissionDenied, ResourceExhausted, Unavailable
from pyctrd.log import Logger

TASK_SERVICE: Final = "containerd.task.v3.Task"
REST_AFTER: Final = 1.0  # seconds without a call; less than it takes a shim to fall asleep

_TAKES_EVENTS: Final = "pyctr-events"
_ACKNOWLEDGE_AFTER: Final = 0.05  # seconds in which a call may come that takes the acknowledgement along

Reply = TypeVar("Reply", bound=Message)
_log = Logger("pyctrd.runtime")

Events: TypeAlias = Callable[[ttrpc.Request], bytes]
"""Takes in what a shim tells, and returns the answer or raises ApiError."""


class ShimGone(Unavailable):
    """The connection to the shim is closed."""


class Whereabouts(NamedTuple):
    """A live shim's socket, and the process whose end is the shim's."""

    path: str
    pid: int


class ShimClient(asyncio.Protocol):
    """The way to a shim; `on_close` is called once when the shim has ended or broken it, not after `close`."""

    def __init__(self, name: str, metadata: Mapping[str, str], service: str = TASK_SERVICE) -> None:
        """Name the peer for error texts ("task web") and give the metadata of every call, and who is called."""
        self._name = name
        self._service = service
        self._metadata = metadata
        self._decoder = ttrpc.FrameDecoder()
        self._calls: dict[int, asyncio.Future[bytes]] = {}
        self._next_id = 1
        self._transport: asyncio.Transport | None = None
        self._gone = asyncio.Event()
        self._find: Callable[[], Whereabouts | None] | None = None
        self._path = ""
        self._pidfd = -1
        self._rest_timer: asyncio.TimerHandle | None = None
        self._resting: asyncio.Event | None = None  # set once the connection that is being closed is closed
        self._connecting = asyncio.Lock()
        self._events: Events | None = None
        self._acknowledgements = b""
        self._acknowledging: asyncio.TimerHandle | None = None
        self.on_close: Callable[[], None] | None = None

    @classmethod
    async def over(
        cls, connection: socket.socket, name: str, metadata: Mapping[str, str], *, service: str = TASK_SERVICE
    ) -> "ShimClient":
        """Return a client on a connected socket, which it owns from now on."""
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        _, client = await loop.create_unix_connection(lambda: cls(name, metadata, service), sock=connection)
        return client

    @classmethod
    async def connect(
        cls, path: str, name: str, metadata: Mapping[str, str], *, service: str = TASK_SERVICE
    ) -> "ShimClient":
        """Return a client connected to a listening shim.

        Raises ShimGone if nobody listens there, PermissionDenied if the listener is another user's.
        """
        return await cls.over(_connect(path, name), name, metadata, service=service)

    @classmethod
    def at_rest(cls, where: Whereabouts, name: str, metadata: Mapping[str, str]) -> "ShimClient":
        """Return a client that connects when it is called. Raises ShimGone if there is no such process."""
        client = cls(name, metadata)
        client._find = lambda: where
        if not client._watch_process():
            raise ShimGone(f"{name}: shim {where.pid} has ended")
        return client

    def take_events(self, events: Events) -> None:
        """Let `events` take in, from the next call on, what a shim of ours tells."""
        self._events = events
        self._metadata = {**self._metadata, _TAKES_EVENTS: "1"}

    def may_rest(self, find: Callable[[], Whereabouts | None]) -> None:
        """Close the connection from now on when nobody calls for a while; `find` tells then where the shim is."""
        self._find = find
        self._rest_later()

    @property
    def closed(self) -> bool:
        """Whether no call can be made any more."""
        return self._transport is None and self._pidfd < 0

    async def call(self, method: str, request: Message, reply: type[Reply], seconds: float) -> Reply:
        """Make one call and return its answer, `seconds` from now at the latest.

        Raises the ApiError that the shim answers, Internal for an answer that is none, DeadlineExceeded if it does not
        answer in time, ShimGone if the connection is or gets closed. Cancelling only forgets the call: the shim carries
        it out. Raises ResourceExhausted for a request of more than 4 MiB.
        """
        transport = self._transport
        if transport is None or self._resting is not None:
            transport = await self._connect_again(method)
        stream_id = self._next_id
        data = ttrpc.encode_request(
            ttrpc.Request(self._service, method, request.SerializeToString(), int(seconds * 1e9), self._metadata)
        )
        frame = ttrpc.encode_frame(stream_id, ttrpc.FrameType.REQUEST, data)
        self._next_id += 2
        self._stay_awake()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes] = loop.create_future()
        self._calls[stream_id] = future
        # Cheaper than asyncio.timeout, and every call has one.
        timer = loop.call_later(seconds, _expire, future)
        transport.write(self._due() + frame)
        try:
            return reply.FromString(await future)
        except ConnectionResetError:
            raise ShimGone(f"{self._name}: {method}: ttrpc: closed") from None
        except DecodeError:
            raise Internal(f"{self._name}: {method}: the shim's answer is not a {reply.DESCRIPTOR.name}") from None
        except TimeoutError:
            raise DeadlineExceeded(f"{self._name}: {method}: the shim did not answer in {seconds:g} s") from None
        finally:
            timer.cancel()
            self._calls.pop(stream_id, None)
            self._rest_later()

    async def wait_closed(self, seconds: float) -> None:
        """Return when the peer has closed the connection; raises TimeoutError if it has not in `seconds`.

        The end of its process is not waited for: that may go on as another shim.
        """
        self._forget_process()
        if self._transport is None:
            return
        async with asyncio.timeout(seconds):
            await self._gone.wait()

    def give_up(self) -> None:
        """Take the connection for broken: nobody will answer."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close the connection; calls under way fail with ShimGone."""
        self.on_close = None
        self._find = None
        self._stay_awake()
        self._forget_process()
        if self._transport is not None:
            self._acknowledge()
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol. An answer to a call that has been given up is dropped."""
        for frame in self._decoder.feed(data):
            if frame.type == ttrpc.FrameType.REQUEST and isinstance(frame, ttrpc.Frame):
                self._take(frame)
                continue
            future = self._calls.get(frame.stream_id)
            if future is None or future.done():
                continue
            if isinstance(frame, ttrpc.Oversized):
                future.set_exception(ResourceExhausted(f"{self._name}: answer of {frame.length} bytes"))
            elif frame.type == ttrpc.FrameType.RESPONSE:
                try:
                    future.set_result(ttrpc.decode_response(frame.data))
                except ApiError as error:
                    future.set_exception(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        self._acknowledgements = b""
        if self._resting is not None:
            self._resting.set()
        for future in self._calls.values():
            if not future.done():
                future.set_exception(ConnectionResetError())
        if self._pidfd < 0:
            self._lost()

    # --- events ---

    def _take(self, frame: ttrpc.Frame) -> None:
        if self._events is None:
            return
        try:
            answer = ttrpc.encode_response(self._events(ttrpc.decode_request(frame.data)))
        except ApiError as error:
            answer = ttrpc.encode_error(error)
        except Exception as error:  # a bug, of which the calls by this connection are not to die
            _log.error("event.not_taken", shim=self._name, exc_info=error)
            answer = ttrpc.encode_error(Internal(f"{error!r}"))
        self._acknowledgements += ttrpc.encode_frame(frame.stream_id, ttrpc.FrameType.RESPONSE, answer)
        if self._acknowledging is None:
            self._acknowledging = asyncio.get_running_loop().call_later(_ACKNOWLEDGE_AFTER, self._acknowledge)

    def _acknowledge(self) -> None:
        """Send what no call has taken along."""
        if self._acknowledging is not None:
            self._acknowledging.cancel()
            self._acknowledging = None
        if self._transport is not None and self._acknowledgements:
            self._transport.write(self._due())

    def _due(self) -> bytes:
        due, self._acknowledgements = self._acknowledgements, b""
        return due

    # --- resting ---

    def _rest_later(self) -> None:
        if self._find is not None and self._rest_timer is None and not self._calls and self._transport is not None:
            self._rest_timer = asyncio.get_running_loop().call_later(REST_AFTER, self._rest)

    def _stay_awake(self) -> None:
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None

    def _rest(self) -> None:
        self._rest_timer = None
        if self._transport is not None and (self._pidfd >= 0 or self._watch_process()):
            self._resting = asyncio.Event()
            self._acknowledge()
            self._transport.close()

    def _watch_process(self) -> bool:
        """Learn of the shim's end by its process; False if that is not to be had."""
        where = self._find() if self._find is not None else None
        if where is None:
            return False
        try:
            self._pidfd = os.pidfd_open(where.pid)
        except OSError:
            return False
        self._path = where.path
        asyncio.get_running_loop().add_reader(self._pidfd, self._process_ended)
        return True

    def _forget_process(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _process_ended(self) -> None:
        self._forget_process()
        if self._transport is None:
            self._lost()

    def _lost(self) -> None:
        self._gone.set()
        if self.on_close is not None:
            self.on_close()

    async def _connect_again(self, method: str) -> asyncio.Transport:
        async with self._connecting:
            if self._resting is not None:
                await self._resting.wait()
                self._resting = None
            if self._transport is None:
                if self._pidfd < 0:
                    raise ShimGone(f"{self._name}: {method}: ttrpc: closed")
                connection = _connect(self._path, self._name)
                self._decoder = ttrpc.FrameDecoder()
                self._next_id = 1
                await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=connection)
            assert self._transport is not None
            return self._transport


def _connect(path: str, name: str) -> socket.socket:
    """Return a socket connected to a listening shim; raises what `ShimClient.connect` does."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        # Connecting to a unix socket never blocks: it succeeds, or fails with EAGAIN when the backlog is full.
        connection.connect(path)
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    except OSError as error:
        connection.close()
        raise ShimGone(f"{name}: shim at {path}: {os.strerror(error.errno or 0)}") from error
    if uid != os.geteuid():
        connection.close()
        raise PermissionDenied(f"{name}: shim at {path} runs as user {uid}")
    return connection


def _expire(future: "asyncio.Future[bytes]") -> None:
    if not future.done():
        future.set_exception(TimeoutError())
