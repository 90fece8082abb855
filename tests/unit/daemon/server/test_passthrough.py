"""Calls on the old daemon's connections reach the new one, unchanged in both directions."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from pyctr_wire.errors import NotFound
from pyctrd.server.dispatch import Dispatch
from pyctrd.server.listener import Listener
from pyctrd.server.passthrough import PassThrough

Call = Any
SUBSCRIBE = "/containerd.services.events.v1.Events/Subscribe"


async def unary(request: str, context: Call) -> str:
    if request == "missing":
        raise NotFound('container "x"')
    headers = dict(context.invocation_metadata())
    return f"{request} of {headers['containerd-namespace']}"


async def many(request: str, context: Call) -> None:
    for word in request.split():
        await context.write(word)
    if request.endswith("missing"):
        raise NotFound("more")


async def both(requests: AsyncIterator[str], context: Call) -> None:
    async for request in requests:
        await context.write(request.upper())


async def endless(request: str, context: Call) -> None:
    await context.write(request)
    await asyncio.Event().wait()


async def serve(dispatch: Dispatch, path: Path) -> Listener:
    listener = Listener(dispatch, [path], uid=-1, gid=-1, connection_age=600)
    await listener.start()
    return listener


@pytest.fixture
async def passthrough(tmp_path: Path) -> AsyncIterator[PassThrough]:
    """Two servers: calls to `old` go to `new` once it is open."""
    new, old = Dispatch(), Dispatch()
    for name, kind, behaviour in (
        ("One", grpc.unary_unary_rpc_method_handler, unary),
        ("Many", grpc.unary_stream_rpc_method_handler, many),
        ("Both", grpc.stream_stream_rpc_method_handler, both),
    ):
        new.register(f"/t.T/{name}", kind, behaviour, bytes.decode, str.encode)
    new.register(SUBSCRIBE, grpc.unary_stream_rpc_method_handler, endless, bytes.decode, str.encode)
    passing = PassThrough()
    old.divert(passing.handler_for)
    listeners = [await serve(new, tmp_path / "new"), await serve(old, tmp_path / "old")]
    yield passing
    for listener in listeners:
        await listener.stop(0)
    await passing.close()


@pytest.fixture
async def client(tmp_path: Path, passthrough: PassThrough) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 'old'}") as channel:
        yield channel


def one(channel: grpc.aio.Channel, request: str) -> Any:
    return channel.unary_unary("/t.T/One")(request.encode(), metadata=[("containerd-namespace", "a")], timeout=10)


async def test_calls_wait_for_the_successor(tmp_path: Path, passthrough: PassThrough, client: grpc.aio.Channel) -> None:
    answer = asyncio.ensure_future(asyncio.wait_for(one(client, "web"), 10))
    await asyncio.sleep(0.05)
    assert not answer.done()
    passthrough.open(tmp_path / "new")
    assert await answer == b"web of a"


async def test_statuses_pass(tmp_path: Path, passthrough: PassThrough, client: grpc.aio.Channel) -> None:
    passthrough.open(tmp_path / "new")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await one(client, "missing")
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.NOT_FOUND, 'container "x": not found')
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await client.unary_unary("/t.T/None")(b"")
    assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_streams_pass(tmp_path: Path, passthrough: PassThrough, client: grpc.aio.Channel) -> None:
    passthrough.open(tmp_path / "new")
    assert [word async for word in client.unary_stream("/t.T/Many")(b"a b c")] == [b"a", b"b", b"c"]
    call = client.unary_stream("/t.T/Many")(b"a missing")
    words = []
    with pytest.raises(grpc.aio.AioRpcError, match="more"):  # noqa: PT012
        async for word in call:
            words.append(word)
    assert words == [b"a", b"missing"]

    both_ways = client.stream_stream("/t.T/Both")()
    for word in (b"x", b"y"):
        await both_ways.write(word)
        assert await both_ways.read() == word.upper()
    await both_ways.done_writing()
    assert await both_ways.read() is grpc.aio.EOF


async def test_cancellation_passes(tmp_path: Path, passthrough: PassThrough, client: grpc.aio.Channel) -> None:
    """The successor must not go on for a client that has left."""
    passthrough.open(tmp_path / "new")
    call = client.stream_stream("/t.T/Both")()
    await call.write(b"x")
    assert await call.read() == b"X"
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.read()


async def test_a_subscription_is_ended_and_other_streams_are_not(
    tmp_path: Path, passthrough: PassThrough, client: grpc.aio.Channel
) -> None:
    passthrough.open(tmp_path / "new")
    both_ways = client.stream_stream("/t.T/Both")()
    await both_ways.write(b"x")
    assert await both_ways.read() == b"X"
    subscription = client.unary_stream(SUBSCRIBE)(b"a")
    assert await subscription.read() == b"a"

    passthrough.end_subscriptions()

    with pytest.raises(grpc.aio.AioRpcError, match="the daemon is stopping") as ended:
        await subscription.read()
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    await both_ways.write(b"y")
    assert await both_ways.read() == b"Y"
    await both_ways.done_writing()
