"""Calls on old connections, passed to the daemon that has taken over: raw bytes, whatever the method.

Clients keep a connection for minutes after the public path shows another daemon, and a call that is sent on it must
not fail. Calls wait here until the successor serves.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias

import grpc
import grpc.aio
from grpc.aio import ServicerContext

from pyctrd.server.dispatch import SUBSCRIPTIONS
from pyctrd.server.listener import MAX_MESSAGE_BYTES

Context: TypeAlias = "ServicerContext[Any, Any]"

# What grpc sets for itself on each hop.
_HOP: Final = frozenset({"user-agent", "te", "content-type", "host"})


class PassThrough:
    """Forwards every call, once `open` has been called."""

    def __init__(self) -> None:
        """Hold calls back."""
        self._channel: asyncio.Future[grpc.aio.Channel] = asyncio.get_running_loop().create_future()
        self._subscriptions: set[grpc.aio.Call] = set()

    def open(self, address: Path) -> None:
        """Let all calls go, to the server that listens at `address`."""
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ]
        self._channel.set_result(grpc.aio.insecure_channel(f"unix:{address}", options))

    def end_subscriptions(self) -> None:
        """End the streams that would never end with UNAVAILABLE; their readers come back, to the successor itself."""
        ended, self._subscriptions = self._subscriptions, set()
        for call in ended:
            call.cancel()

    async def close(self) -> None:
        """Close the connection to the successor; calls under way fail."""
        if self._channel.done():
            await self._channel.result().close(None)

    def handler_for(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any]":
        """Return the handler that forwards a call; on the wire all kinds of calls are streams of messages."""
        method = details.method

        async def relay(requests: AsyncIterator[bytes], context: Context) -> None:
            await self._relay(method, requests, context)

        return grpc.stream_stream_rpc_method_handler(relay)

    async def unary(self, method: str, request: bytes, context: Context) -> bytes:
        """Forward one unary call that had been decoded already."""
        channel = await self._channel
        call = channel.unary_unary(method, None, None)
        answer = call(request, metadata=_passed_on(context), timeout=context.time_remaining())
        try:
            response: bytes = await answer
        except grpc.aio.AioRpcError as error:
            await _abort(context, error)
        return response

    async def _relay(self, method: str, requests: AsyncIterator[bytes], context: Context) -> None:
        channel = await self._channel
        call = channel.stream_stream(method, None, None)(
            requests, metadata=_passed_on(context), timeout=context.time_remaining()
        )
        if method in SUBSCRIPTIONS:
            self._subscriptions.add(call)
        try:
            await context.send_initial_metadata(await call.initial_metadata())
            async for response in call:
                await context.write(response)
            if await call.code() is not grpc.StatusCode.OK:
                await context.abort(await call.code(), await call.details())
        except grpc.aio.AioRpcError as error:
            await _abort(context, error)
        except asyncio.CancelledError:
            if method not in SUBSCRIPTIONS or call in self._subscriptions:
                raise  # the client has left
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the daemon is stopping")
        finally:
            self._subscriptions.discard(call)


async def _abort(context: Context, error: grpc.aio.AioRpcError) -> NoReturn:
    """End the call as the successor ended it."""
    await context.abort(error.code(), error.details() or "")


def _passed_on(context: Context) -> list[tuple[str, str | bytes]]:
    """Return the caller's metadata without what belongs to its connection to us."""
    pairs = context.invocation_metadata() or ()
    return [(key, value) for key, value in pairs if key not in _HOP and not key.startswith((":", "grpc-"))]
