"""Dispatch, over a real socket: what a servicer raises becomes the status that clients understand."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from pyctr_wire.errors import AlreadyExists, InvalidArgument, NotFound
from pyctr_wire.health.v1 import health_pb2, health_pb2_grpc
from pyctrd.server.dispatch import Dispatch
from pyctrd.server.listener import Listener

Call = Any


class Servicer:
    """Behaviours of every kind."""

    def __init__(self) -> None:
        self.sending = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def Echo(self, request: str, context: Call) -> str:
        return request

    async def Encoded(self, request: str, context: Call) -> bytes:
        return b"as it is"

    async def Fail(self, request: str, context: Call) -> str:
        errors: dict[str, Exception] = {
            "not found": NotFound('container "x" in namespace "y"'),
            "exists": AlreadyExists("content sha256:1"),
            "full": OSError(errno.ENOSPC, "No space left on device", "/var/lib/x"),
            "io": OSError(errno.EIO, "Input/output error"),
            "long": InvalidArgument("x" * 100_000),
            "no text": NotFound(f"there is no {os.fsdecode(bytes([0xFC]))}"),
        }
        raise errors[request]

    async def Write(self, request: str, context: Call) -> None:
        await context.write("one")
        raise NotFound("the second")

    async def Generate(self, request: str, context: Call) -> AsyncIterator[str]:
        yield "one"
        raise NotFound("the second")

    async def Park(self, request: str, context: Call) -> None:
        self.sending.set()
        try:
            await context.send_initial_metadata(())
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


@pytest.fixture
async def servicer() -> Servicer:
    return Servicer()


@pytest.fixture
async def dispatch(servicer: Servicer) -> Dispatch:
    dispatch = Dispatch()
    unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
    for name, kind in (("Echo", unary), ("Encoded", unary), ("Fail", unary), ("Write", stream), ("Generate", stream)):
        dispatch.register(f"/test.Test/{name}", kind, getattr(servicer, name), bytes.decode, str.encode)
    subscribe = "/containerd.services.events.v1.Events/Subscribe"
    dispatch.register(subscribe, stream, servicer.Park, bytes.decode, str.encode)
    return dispatch


@pytest.fixture
async def channel(tmp_path: Path, dispatch: Dispatch) -> AsyncIterator[grpc.aio.Channel]:
    listener = Listener(dispatch, [tmp_path / "s"], uid=-1, gid=-1, connection_age=600)
    await listener.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
        yield channel
    await listener.stop(0)


def _unary(channel: grpc.aio.Channel, method: str, request: str) -> Call:
    return channel.unary_unary(f"/test.Test/{method}")(request.encode(), timeout=30)


async def test_an_answer_is_serialized_or_passed_as_it_is(channel: grpc.aio.Channel) -> None:
    assert await _unary(channel, "Echo", "hello") == b"hello"
    assert await _unary(channel, "Encoded", "hello") == b"as it is"


@pytest.mark.parametrize(
    ("request_text", "code", "details"),
    [
        ("not found", grpc.StatusCode.NOT_FOUND, 'container "x" in namespace "y": not found'),
        ("exists", grpc.StatusCode.ALREADY_EXISTS, "content sha256:1: already exists"),
        (
            "full",
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "/test.Test/Fail: [Errno 28] No space left on device: '/var/lib/x': resource exhausted",
        ),
        ("io", grpc.StatusCode.UNKNOWN, "/test.Test/Fail: [Errno 5] Input/output error"),
        ("long", grpc.StatusCode.INVALID_ARGUMENT, "x" * 4096),
        ("no text", grpc.StatusCode.NOT_FOUND, "there is no ?: not found"),  # as an image's files may be called
    ],
)
async def test_an_error_becomes_its_status(
    channel: grpc.aio.Channel, request_text: str, code: grpc.StatusCode, details: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await _unary(channel, "Fail", request_text)

    assert (raised.value.code(), raised.value.details()) == (code, details)


@pytest.mark.parametrize("method", ["Write", "Generate"])
async def test_a_stream_may_fail_after_its_first_message(channel: grpc.aio.Channel, method: str) -> None:
    stream = channel.unary_stream(f"/test.Test/{method}")(b"", timeout=30)

    assert await stream.read() == b"one"
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stream.read()
    assert raised.value.details() == "the second: not found"


@pytest.mark.parametrize(
    ("method", "details"),
    [
        ("/test.Test/Nothing", "unknown method Nothing for service test.Test"),
        ("/no.Such/Thing", "unknown service no.Such"),
    ],
)
async def test_what_is_not_there_is_named(channel: grpc.aio.Channel, method: str, details: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await channel.unary_unary(method)(b"x", timeout=30)

    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.UNIMPLEMENTED, details)


async def test_a_daemon_that_stops_ends_parked_calls_as_unavailable(
    channel: grpc.aio.Channel, dispatch: Dispatch, servicer: Servicer
) -> None:
    subscribe = channel.unary_stream("/containerd.services.events.v1.Events/Subscribe")
    stream = subscribe(b"", timeout=30)
    await stream.initial_metadata()

    dispatch.end_parked()

    for call in (stream, subscribe(b"", timeout=30)):  # the one that waits, and one that comes too late
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert servicer.cancelled.is_set()


async def test_a_client_that_goes_cancels_its_call(channel: grpc.aio.Channel, servicer: Servicer) -> None:
    stream = channel.unary_stream("/containerd.services.events.v1.Events/Subscribe")(b"", timeout=30)
    await stream.initial_metadata()

    stream.cancel()

    await asyncio.wait_for(servicer.cancelled.wait(), 30)


async def test_every_call_can_be_diverted(channel: grpc.aio.Channel, dispatch: Dispatch) -> None:
    """A daemon that has a successor passes late calls on as raw bytes, whatever their method."""

    async def relay(request: bytes, context: Call) -> bytes:
        return b"relayed " + request

    handler = grpc.unary_unary_rpc_method_handler(relay)
    dispatch.divert(lambda _: handler)

    assert await _unary(channel, "Echo", "hello") == b"relayed hello"
    assert await _unary(channel, "Nothing", "hello") == b"relayed hello"


async def test_services_are_known_by_name(dispatch: Dispatch) -> None:
    assert dispatch.services() == {"test.Test", "containerd.services.events.v1.Events"}


async def test_a_parked_call_is_not_cut_while_it_sends(
    channel: grpc.aio.Channel, dispatch: Dispatch, servicer: Servicer
) -> None:
    """The client would not hear why it ended, and the daemon would wait for it until its grace is over."""
    stream = channel.unary_stream("/containerd.services.events.v1.Events/Subscribe")(b"", timeout=30)
    await servicer.sending.wait()

    dispatch.end_parked()

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stream.read()
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


class Partial:
    """A servicer that has one of two methods."""

    SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"]

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Call) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


async def test_a_method_that_a_servicer_lacks_is_unimplemented(channel: grpc.aio.Channel, dispatch: Dispatch) -> None:
    dispatch.add(Partial())
    stub = health_pb2_grpc.HealthStub(channel)

    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Watch(health_pb2.HealthCheckRequest()).read()
    assert raised.value.details() == "unknown method Watch for service grpc.health.v1.Health"


async def test_services_that_are_expected_are_added_when_one_is_called(
    channel: grpc.aio.Channel, dispatch: Dispatch
) -> None:
    dispatch.expect(frozenset({"grpc.health.v1.Health"}), lambda: dispatch.add(Partial()))
    assert "grpc.health.v1.Health" in dispatch.services()

    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())

    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    dispatch.complete()  # once is enough
