"""A cgroup's counters as the messages that containerd's clients expect."""

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.message import Message

from pyctr_wire.containerd.cgroups.v1 import metrics_pb2 as v1
from pyctr_wire.containerd.cgroups.v2 import metrics_pb2 as v2

_V1_URL: Final = "io.containerd.cgroups.v1.Metrics"
_V2_URL: Final = "io.containerd.cgroups.v2.Metrics"


def of_version_1(counters: Mapping[str, Any]) -> tuple[str, bytes]:
    """Return type URL and bytes of what version 1 has counted; `counters` has the message's shape."""
    return _V1_URL, _filled(v1.Metrics(), counters).SerializeToString()


def of_version_2(counters: Mapping[str, Any]) -> tuple[str, bytes]:
    """Return type URL and bytes of what version 2 has counted."""
    return _V2_URL, _filled(v2.Metrics(), counters).SerializeToString()


def _filled(message: Message, values: Mapping[str, Any]) -> Message:
    """Set the fields of a message that `values` has; what it has besides is left out, and so is what is empty."""
    message.SetInParent()
    for name, value in values.items():
        field = message.DESCRIPTOR.fields_by_name.get(name)
        if field is None:
            continue
        if isinstance(value, Mapping):
            if value:
                _filled(getattr(message, name), value)
        elif isinstance(value, list) and field.message_type is not None:
            for one in value:
                _filled(getattr(message, name).add(), one)
        elif isinstance(value, list):
            getattr(message, name).extend(value)
        elif field.message_type is None:
            setattr(message, name, value)
    return message
