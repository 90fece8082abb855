"""The figures of several containers as those of one."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from pyctr_wire.containerd.cgroups.v1 import metrics_pb2 as v1
from pyctr_wire.containerd.cgroups.v2 import metrics_pb2 as v2

_MOST: Final = (1 << 64) - 1  # what stands for no limit
_KINDS: Final[dict[str, type[Message]]] = {kind.DESCRIPTOR.full_name: kind for kind in (v1.Metrics, v2.Metrics)}


def added_up(figures: Sequence[AnyMessage]) -> AnyMessage:
    """Return metrics of cgroups in which every count, size and limit is the sum of those in `figures`, at least one.

    All are of one machine, so of one version. Pressure, which cannot be added, is the highest.
    """
    kind = _KINDS[figures[0].type_url.rpartition("/")[2]]
    total = kind.FromString(figures[0].value)
    for other in figures[1:]:
        _add(total, kind.FromString(other.value))
    return AnyMessage(type_url=kind.DESCRIPTOR.full_name, value=total.SerializeToString())


def _add(total: Message, other: Message) -> None:
    for field, value in other.ListFields():
        ours = getattr(total, field.name)
        if isinstance(value, Message):
            _add(ours, value)
        elif isinstance(value, int) and not isinstance(value, bool):
            setattr(total, field.name, min(ours + value, _MOST))
        elif isinstance(value, float):
            setattr(total, field.name, max(ours, value))
        elif field.message_type is not None:  # a device, an interface each: those of one container beside the other's
            ours.extend(value)
        else:
            ours[:] = [sum(pair) for pair in zip_longest(ours, value, fillvalue=0)]
