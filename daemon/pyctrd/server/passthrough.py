"""Calls on old connections, passed to the daemon that has taken over: raw bytes, whatever the method.

Clients keep a connection for minutes after the public path shows another daemon, and a call that is sent on it must
not fail. Calls wait here until the successor serves.
"""

import asyncio
from pathlib import Path
from typing import Any, Final

import grpc.aio

from pyctr_wire.errors import ApiError, error_for
from pyctrd.server.http2.call import MAX_MESSAGE_BYTES, Call, Handler

# What grpc sets for itself on each hop.
_HOP: Final = frozenset({"user-agent", "te", "content-type", "host"})


class PassThrough:
    """Forwards every call, once `open` has been called."""

    def __init__(self) -> None:
        """Hold calls back."""
        self._channel: asyncio.Future[grpc.aio.Channel] = asyncio.get_running_loop().create_future()

    def open(self, address: Path) -> None:
        """Let all calls go, to the server that listens at `address`."""
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ]
        self._channel.set_result(grpc.aio.insecure_channel(f"unix:{address}", options))

    async def close(self) -> None:
        """Close the connection to the successor; calls under way fail."""
        if self._channel.done():
            await self._channel.result().close(None)

    def handler_for(self, method: str) -> Handler:
        """Return the handler that forwards a call; on the wire all kinds of calls are streams of messages."""

        async def relay(requests: Any, call: Call) -> None:
            await self._relay(method, call)

        return Handler(relay, client_streams=True, server_streams=True, deserialize=bytes, serialize=bytes)

    async def unary(self, method: str, request: bytes, call: Call) -> bytes:
        """Forward one unary call that had been decoded already."""
        channel = await self._channel
        passed = channel.unary_unary(method, None, None)
        answer = passed(request, metadata=_passed_on(call), timeout=call.time_remaining())
        try:
            response: bytes = await answer
        except grpc.aio.AioRpcError as error:
            raise _as_ended(error) from error
        return response

    async def _relay(self, method: str, call: Call) -> None:
        channel = await self._channel
        passed = channel.stream_stream(method, None, None)(
            call, metadata=_passed_on(call), timeout=call.time_remaining()
        )
        try:
            await call.send_initial_metadata(await passed.initial_metadata())
            async for response in passed:
                await call.write(response)
        except grpc.aio.AioRpcError as error:
            raise _as_ended(error) from error
        code = await passed.code()
        if code is not grpc.StatusCode.OK:
            raise error_for(code.value[0], await passed.details())


def _as_ended(error: grpc.aio.AioRpcError) -> ApiError:
    """Return the error with which the successor ended a call."""
    return error_for(error.code().value[0], error.details() or "")


def _passed_on(call: Call) -> list[tuple[str, str | bytes]]:
    """Return the caller's metadata without what belongs to its connection to us."""
    return [
        (key, value) for key, value in call.invocation_metadata() if key not in _HOP and not key.startswith("grpc-")
    ]
