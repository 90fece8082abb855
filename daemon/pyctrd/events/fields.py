"""What a filter sees of an event.

namespace topic event.FIELD     texts, maps of texts (labels) and messages; never a number
"""

from collections.abc import Mapping

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

# Filters look into events of these packages: importing the modules makes their types known.
from pyctr_wire.containerd.events import (  # noqa: F401
    container_pb2,
    content_pb2,
    image_pb2,
    namespace_pb2,
    sandbox_pb2,
    snapshot_pb2,
    task_pb2,
)
from pyctrd.core.anys import AnyValue
from pyctrd.core.filters import Adaptor, label_field, text_field

_ABSENT = ("", False)


def adaptor_for(namespace: str, topic: str, event: AnyValue) -> Adaptor:
    """Return the adaptor of an event; `event` is decoded only if a filter asks for a field of it."""

    def field(path: tuple[str, ...]) -> tuple[str, bool]:
        match path:
            case ("namespace",):
                return text_field(namespace)
            case ("topic",):
                return text_field(topic)
            case ("event", _, *_):
                message = _decode(event)
                return _walk(message, path[1:]) if message is not None else _ABSENT
        return _ABSENT

    return field


def _decode(event: AnyValue) -> Message | None:
    """Return the message in `event`, or None if its type is unknown or its bytes are not of that type."""
    name = event.type_url.rpartition("/")[2]
    try:
        descriptor = descriptor_pool.Default().FindMessageTypeByName(name)
        message: Message = message_factory.GetMessageClass(descriptor).FromString(event.value)
    except (KeyError, DecodeError):
        return None
    return message


def _walk(message: Message, path: tuple[str, ...]) -> tuple[str, bool]:
    descriptor = message.DESCRIPTOR.fields_by_name.get(path[0])
    if descriptor is None:
        return _ABSENT
    value = getattr(message, path[0])
    if descriptor.type == FieldDescriptor.TYPE_STRING and len(path) == 1:
        return text_field(value) if isinstance(value, str) else _ABSENT
    if len(path) == 1:
        return _ABSENT
    if isinstance(value, Message):
        return _walk(value, path[1:])
    # Clients publish messages of any type that there is, and some have maps of other things than texts.
    entry = descriptor.message_type if isinstance(value, Mapping) else None
    is_of_texts = entry is not None and all(one.type == one.TYPE_STRING for one in entry.fields)
    return label_field(value, path[1:]) if is_of_texts else _ABSENT
