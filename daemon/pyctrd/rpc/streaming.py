"""containerd.services.streaming.v1."""

import asyncio
from collections.abc import AsyncIterator
from typing import ClassVar, Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from pyctr_wire.containerd.services.streaming.v1 import streaming_pb2 as pb
from pyctr_wire.errors import FailedPrecondition, InvalidArgument
from pyctrd.rpc.convert.well_known import any_from_proto, any_to_proto
from pyctrd.rpc.headers import Context, namespace_of
from pyctrd.streams.manager import Stream, StreamManager

# Seconds within which grpc tells of a cancellation.
_CANCELLATION: Final = 0.01
_EMPTY: Final = AnyMessage(type_url=Empty.DESCRIPTOR.full_name)


class Streaming:
    """Streams that another call of the same client will use, by the name that it gives them here."""

    SERVICE: ClassVar = pb.DESCRIPTOR.services_by_name["Streaming"]

    def __init__(self, streams: StreamManager) -> None:
        """Register streams at `streams`."""
        self._streams = streams

    async def Stream(self, requests: AsyncIterator[AnyMessage], context: Context) -> None:
        """Carry messages both ways until a component closes the stream or the client goes. AlreadyExists."""
        name = await _name_of(requests)
        ns = _namespace_of(context)
        stream = self._streams.open(ns, name)
        try:
            await context.write(_EMPTY)
            async with asyncio.TaskGroup() as tasks:
                feeding = tasks.create_task(_feed(stream, requests))
                async for message in stream.drain():
                    await context.write(any_to_proto(message))
                feeding.cancel()
        finally:
            self._streams.remove(ns, name)


def _namespace_of(context: Context) -> str:
    """Return the caller's namespace; this service serves those without one too."""
    try:
        return namespace_of(context)
    except FailedPrecondition:
        return ""


async def _name_of(requests: AsyncIterator[AnyMessage]) -> str:
    async for first in requests:
        if first.type_url.rpartition("/")[2] == pb.StreamInit.DESCRIPTOR.full_name:
            try:
                if name := pb.StreamInit.FromString(first.value).id:
                    return name
            except DecodeError as error:
                raise InvalidArgument("the first message is a damaged StreamInit") from error
        break
    raise InvalidArgument("the first message must be a StreamInit with an id")


async def _feed(stream: Stream, requests: AsyncIterator[AnyMessage]) -> None:
    async for request in requests:
        await stream.feed(any_from_proto(request))
    # grpc ends the iteration of a cancelled call as if the client had said its last, and cancels us a turn of the
    # loop later: half an archive must not pass for a whole one.
    await asyncio.sleep(_CANCELLATION)
    await stream.feed(None)
