"""Names of CDI devices: VENDOR/CLASS=NAME, as they are written on command lines and in annotations.

Source: CDI specification 1.1.0, "Kind" and "CDI Devices".
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from pyctr_wire.errors import InvalidArgument

_ANNOTATION: Final = "cdi.k8s.io/"
_VENDOR: Final = "[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"
_NAME: Final = "[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?"
_KIND: Final = re.compile(f"(?P<vendor>{_VENDOR})/(?P<class>{_VENDOR})")
_DEVICE: Final = re.compile(f"(?P<kind>{_VENDOR}/{_VENDOR})=(?P<name>{_NAME})")
# The part of an annotation's key behind the prefix. Source: Kubernetes, "Labels and Selectors", syntax.
_KEY: Final = re.compile("[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_SHOWN: Final = 80


class DeviceName(NamedTuple):
    """A device's full name; `kind` is VENDOR/CLASS."""

    kind: str
    name: str

    def __str__(self) -> str:
        """Return it as it is written."""
        return f"{self.kind}={self.name}"


def is_kind(text: str) -> bool:
    """Return whether `text` is VENDOR/CLASS."""
    return bool(_KIND.fullmatch(text))


def is_name(text: str) -> bool:
    """Return whether a device may be called so among those of its kind."""
    return bool(re.fullmatch(_NAME, text))


def find(text: str) -> DeviceName | None:
    """Return the device that `text` is the full name of, None if it is no such name."""
    match = _DEVICE.fullmatch(text)
    return DeviceName(match["kind"], match["name"]) if match else None


def wanted(fields: Iterable[str], annotations: Mapping[str, str]) -> tuple[DeviceName, ...]:
    """Return the devices that a container asks for, by name and by annotation, each once and in that order.

    Raises InvalidArgument naming the field or the annotation.
    """
    found = [_parse(text, "CDI_devices") for text in fields]
    for key, value in annotations.items():
        if key.startswith(_ANNOTATION):
            if not _KEY.fullmatch(key.removeprefix(_ANNOTATION)):
                raise InvalidArgument(f"annotation {key[:_SHOWN]!r}: what follows {_ANNOTATION} is no key")
            found += [_parse(text, f"annotation {key}") for text in value.split(",")]
    return tuple(dict.fromkeys(found))


def _parse(text: str, where: str) -> DeviceName:
    found = find(text)
    if found is None:
        raise InvalidArgument(f"{where}: {text[:_SHOWN]!r} is not the name of a CDI device: VENDOR/CLASS=NAME")
    return found
