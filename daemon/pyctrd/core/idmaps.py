"""User id mappings as snapshot labels carry them: `CONTAINER:HOST:SIZE`, several joined by commas."""

from typing import Final

from pyctr_wire.errors import InvalidArgument
from pyctrd.core.labels import Labels

UID_LABEL: Final = "containerd.io/snapshot/uidmapping"
GID_LABEL: Final = "containerd.io/snapshot/gidmapping"

_UNCHANGED: Final = -1  # as chown(2) takes it


def mapped_root(labels: Labels) -> tuple[int, int] | None:
    """Return the host's ids of the container's root, -1 for one that is not mapped, None if neither is.

    Raises InvalidArgument, naming the label, for a malformed mapping or one without id 0.
    """
    if UID_LABEL not in labels and GID_LABEL not in labels:
        return None
    return _host_root(labels, UID_LABEL), _host_root(labels, GID_LABEL)


def _host_root(labels: Labels, label: str) -> int:
    if label not in labels:
        return _UNCHANGED
    for item in labels[label].split(","):
        parts = item.split(":")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise InvalidArgument(f'label {label}: "{item}" is not CONTAINER:HOST:SIZE')
        container, host, size = map(int, parts)
        if container == 0 and size:
            return host
    raise InvalidArgument(f"label {label} does not map id 0")
