"""containerd.services.events.ttrpc.v1: how shims tell what happens."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from pyctr_wire.containerd.services.ttrpc.events.v1 import events_pb2 as pb
from pyctr_wire.errors import InvalidArgument
from pyctr_wire.ttrpc import Request
from pyctrd.core.anys import AnyValue
from pyctrd.rpc.convert.well_known import any_from_proto, time_from_proto

SERVICE: Final = "containerd.services.events.ttrpc.v1.Events"
_INSTANCE: Final = "pyctr-instance"
_SEQUENCE: Final = "pyctr-sequence"


class EventSink(Protocol):
    """Who takes in what shims tell."""

    def forward(
        self, namespace: str, topic: str, event: AnyValue, timestamp: datetime, instance: str, sequence: int
    ) -> None:
        """Take in an event of the shim `instance`; `sequence` 0 is not numbered."""


def services(sink: EventSink) -> Mapping[str, Mapping[str, Callable[[Request], bytes]]]:
    """Return the handlers for a ttrpc listener."""

    def forward(request: Request) -> bytes:
        """Pass an event on. The empty answer tells the shim that it may forget it. InvalidArgument."""
        try:
            envelope = pb.ForwardRequest.FromString(request.payload).envelope
        except DecodeError as error:
            raise InvalidArgument("payload is not a ForwardRequest") from error
        if not envelope.HasField("timestamp"):
            raise InvalidArgument("timestamp must be set on forwarded event")
        sequence = request.metadata.get(_SEQUENCE, "")
        try:
            sink.forward(
                envelope.namespace,
                envelope.topic,
                any_from_proto(envelope.event),
                time_from_proto(envelope.timestamp),
                request.metadata.get(_INSTANCE, ""),
                int(sequence) if sequence.isdecimal() else 0,
            )
        except DecodeError as error:
            raise InvalidArgument(f"event is not a {envelope.event.type_url}") from error
        return b""

    return {SERVICE: {"Forward": forward}}
