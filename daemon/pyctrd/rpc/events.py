"""containerd.services.events.v1."""

from typing import ClassVar

from google.protobuf.empty_pb2 import Empty

from pyctr_wire.containerd.services.events.v1 import events_pb2 as pb
from pyctr_wire.containerd.types import event_pb2
from pyctr_wire.errors import InvalidArgument, UnknownError
from pyctrd.events.exchange import Exchange
from pyctrd.rpc.convert.well_known import any_from_proto, any_to_proto, time_from_proto, time_to_proto
from pyctrd.rpc.headers import Context, namespace_of


class Events:
    """What happens, told to whoever asks."""

    SERVICE: ClassVar = pb.DESCRIPTOR.services_by_name["Events"]

    def __init__(self, exchange: Exchange) -> None:
        """Publish to and subscribe at `exchange`."""
        self._exchange = exchange

    async def Publish(self, request: pb.PublishRequest, context: Context) -> Empty:
        """Tell subscribers of an event that happens now, in the caller's namespace. InvalidArgument."""
        self._exchange.publish(namespace_of(context), request.topic, any_from_proto(request.event))
        return Empty()

    async def Forward(self, request: pb.ForwardRequest, context: Context) -> Empty:
        """Tell subscribers of an event that happened elsewhere. InvalidArgument."""
        envelope = request.envelope
        if not envelope.HasField("timestamp"):
            raise InvalidArgument("timestamp must be set on forwarded event")
        self._exchange.publish(
            envelope.namespace,
            envelope.topic,
            any_from_proto(envelope.event),
            time_from_proto(envelope.timestamp),
        )
        return Empty()

    async def Subscribe(self, request: pb.SubscribeRequest, context: Context) -> None:
        """Send events of all namespaces as they happen.

        The headers go out at once: clients wait for them before they do what they want to see. A
        subscriber that does not keep up gets ResourceExhausted.
        """
        try:
            subscription = self._exchange.subscribe(tuple(request.filters))
        except InvalidArgument as error:  # this one call reports it so, and clients know the text
            raise UnknownError(f"subscription error: failed parsing subscription filters: {error}") from error
        with subscription:
            await context.send_initial_metadata(())
            async for envelope in subscription:
                await context.write(
                    event_pb2.Envelope(
                        timestamp=time_to_proto(envelope.timestamp),
                        namespace=envelope.namespace,
                        topic=envelope.topic,
                        event=any_to_proto(envelope.event),
                    )
                )
