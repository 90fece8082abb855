"""A ttrpc client on the event loop: one connection to one shim, any number of calls at once, a deadline on each."""

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Final, TypeVar, cast

from google.protobuf.message import Message

from pyctr_wire import ttrpc
from pyctr_wire.errors import ApiError, DeadlineExceeded, PermissionDenied, ResourceExhausted, Unavailable

TASK_SERVICE: Final = "containerd.task.v3.Task"

Reply = TypeVar("Reply", bound=Message)


class ShimGone(Unavailable):
    """The connection to the shim is closed."""


class ShimClient(asyncio.Protocol):
    """The connection; `on_close` is called once when the peer has closed it, not after `close`."""

    def __init__(self, name: str, metadata: Mapping[str, str]) -> None:
        """Name the peer for error texts ("task web") and give the metadata of every call."""
        self._name = name
        self._metadata = metadata
        self._decoder = ttrpc.FrameDecoder()
        self._calls: dict[int, asyncio.Future[bytes]] = {}
        self._next_id = 1
        self._transport: asyncio.Transport | None = None
        self._gone = asyncio.Event()
        self.on_close: Callable[[], None] | None = None

    @classmethod
    async def over(cls, connection: socket.socket, name: str, metadata: Mapping[str, str]) -> "ShimClient":
        """Return a client on a connected socket, which it owns from now on."""
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        _, client = await loop.create_unix_connection(lambda: cls(name, metadata), sock=connection)
        return client

    @classmethod
    async def connect(cls, path: str, name: str, metadata: Mapping[str, str]) -> "ShimClient":
        """Return a client connected to a listening shim.

        Raises ShimGone if nobody listens there, PermissionDenied if the listener is another user's.
        """
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
        return await cls.over(connection, name, metadata)

    @property
    def closed(self) -> bool:
        """Whether no call can be made any more."""
        return self._transport is None

    async def call(
        self, method: str, request: Message, reply: type[Reply], seconds: float, *, service: str = TASK_SERVICE
    ) -> Reply:
        """Make one call and return its answer, `seconds` from now at the latest.

        Raises the ApiError that the shim answers, DeadlineExceeded if it does not answer in time, ShimGone if the
        connection is or gets closed. Cancelling only forgets the call: the shim carries it out.
        """
        if self._transport is None:
            raise ShimGone(f"{self._name}: {method}: ttrpc: closed")
        stream_id = self._next_id
        self._next_id += 2
        data = ttrpc.encode_request(
            ttrpc.Request(service, method, request.SerializeToString(), int(seconds * 1e9), self._metadata)
        )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes] = loop.create_future()
        self._calls[stream_id] = future
        # Cheaper than asyncio.timeout, and every call has one.
        timer = loop.call_later(seconds, _expire, future)
        self._transport.write(ttrpc.encode_frame(stream_id, ttrpc.FrameType.REQUEST, data))
        try:
            return reply.FromString(await future)
        except ConnectionResetError:
            raise ShimGone(f"{self._name}: {method}: ttrpc: closed") from None
        except TimeoutError:
            raise DeadlineExceeded(f"{self._name}: {method}: the shim did not answer in {seconds:g} s") from None
        finally:
            timer.cancel()
            self._calls.pop(stream_id, None)

    async def wait_closed(self, seconds: float) -> None:
        """Return when the peer has closed the connection; raises TimeoutError if it has not in `seconds`."""
        async with asyncio.timeout(seconds):
            await self._gone.wait()

    def close(self) -> None:
        """Close the connection; calls under way fail with ShimGone."""
        self.on_close = None
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol. An answer to a call that has been given up is dropped."""
        for frame in self._decoder.feed(data):
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
        self._gone.set()
        for future in self._calls.values():
            if not future.done():
                future.set_exception(ConnectionResetError())
        if self.on_close is not None:
            self.on_close()


def _expire(future: "asyncio.Future[bytes]") -> None:
    if not future.done():
        future.set_exception(TimeoutError())
