"""A CDI file's document: checked, so that whoever applies it finds what the specification promises.

Keys that nobody knows are errors, as are those of a later version than the document says it is of.
Source: CDI specification 1.1.0, "CDI JSON Specification".
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from pyctrd.cdi import names

Edits = Mapping[str, Any]  # a `containerEdits` object that was checked

_VERSIONS: Final = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
_HOOKS: Final = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_ENTRY: Final = re.compile(r"[^=\0]+=[^\0]*", re.DOTALL)
_LONGEST_GROUP: Final = 4096  # bytes of a closID

Check = Callable[[Any, str], None]  # a value and where it stands; raises DocumentError


class DocumentError(ValueError):
    """A document is not as it should be; the text names the place in it."""


class Kind(NamedTuple):
    """The devices that one file describes: what each needs, and what all of them do, which is done once."""

    kind: str
    devices: Mapping[str, Edits]
    edits: Edits


def parse(document: Any) -> Kind:
    """Return what a document says. Raises DocumentError."""
    _SPEC(document, "")
    version, kind = document["cdiVersion"].removeprefix("v"), document["kind"]
    if version not in _VERSIONS:
        raise DocumentError(f"cdiVersion {version!r} is not known: {_VERSIONS[0]} to {_VERSIONS[-1]} are")
    if not names.is_kind(kind):
        raise DocumentError(f"kind {kind!r} is not VENDOR/CLASS")
    devices: dict[str, Edits] = {}
    for device in document["devices"]:
        name = device["name"]
        if name in devices:
            raise DocumentError(f"device {name!r} is there twice")
        if not any(device["containerEdits"].values()):
            raise DocumentError(f"device {name!r} has no edits")
        devices[name] = device["containerEdits"]
    if not devices:
        raise DocumentError("devices: there is none")
    for since, what in _features(document):
        if _VERSIONS.index(version) < _VERSIONS.index(since):
            raise DocumentError(f"{what} is of version {since}, and cdiVersion says {version}")
    return Kind(kind, devices, document.get("containerEdits") or {})


def _features(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a document has that version 0.3.0 had not, and since when it may."""
    if "." in document["kind"].partition("/")[2]:
        yield "0.6.0", "a dot in the class of a kind"
    if document.get("annotations") or any(device.get("annotations") for device in document["devices"]):
        yield "0.6.0", "annotations"
    if any(device["name"][0].isdecimal() for device in document["devices"]):
        yield "0.5.0", "a device's name that begins with a digit"
    for edits in (document.get("containerEdits") or {}, *(device["containerEdits"] for device in document["devices"])):
        if any(mount.get("type") for mount in edits.get("mounts") or ()):
            yield "0.4.0", "type of a mount"
        if any(node.get("hostPath") for node in edits.get("deviceNodes") or ()):
            yield "0.5.0", "hostPath of a device node"
        for key in ("intelRdt", "additionalGids"):
            if edits.get(key):
                yield "0.7.0", key
        if edits.get("netDevices"):
            yield "1.1.0", "netDevices"
        rdt = edits.get("intelRdt") or {}
        for key in ("schemata", "enableMonitoring"):
            if rdt.get(key):
                yield "1.1.0", f"intelRdt.{key}"


# -- what each key must be


def _object(required: tuple[str, ...] = (), **fields: Check) -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise DocumentError(f"{where or 'the document'}: it must be an object")
        prefix = f"{where}." if where else ""
        for key in required:
            if value.get(key) in (None, ""):
                raise DocumentError(f"{prefix}{key} is missing")
        for key, one in value.items():
            if key not in fields:
                raise DocumentError(f"{prefix}{key} is not known")
            if one is not None:
                fields[key](one, f"{prefix}{key}")

    return check


def _list(item: Check) -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, list):
            raise DocumentError(f"{where}: it must be a list")
        for number, one in enumerate(value):
            item(one, f"{where}[{number}]")

    return check


def _if(accepts: Callable[[Any], bool], what: str) -> Check:
    def check(value: Any, where: str) -> None:
        if not accepts(value):
            raise DocumentError(f"{where}: {str(value)[:80]!r} is not {what}")

    return check


def _between(least: int, most: int) -> Check:
    return _if(lambda value: type(value) is int and least <= value <= most, f"a number from {least} to {most}")


def _one_of(*texts: str) -> Check:
    return _if(lambda value: value in texts, f"one of {', '.join(text for text in texts if text)}")


def _is_group(value: Any) -> bool:
    return isinstance(value, str) and value not in (".", "..") and len(value) < _LONGEST_GROUP and "/" not in value


_TEXT: Final = _if(lambda value: isinstance(value, str) and "\0" not in value, "a text")
_LINE: Final = _if(lambda value: isinstance(value, str) and not {"\0", "\n"} & set(value), "a line of text")
_PATH: Final = _if(lambda value: isinstance(value, str) and value.startswith("/") and "\0" not in value, "a full path")
_BOOL: Final = _if(lambda value: isinstance(value, bool), "true or false")
_ID: Final = _between(0, (1 << 32) - 2)
_ENTRIES: Final = _list(_if(lambda value: isinstance(value, str) and bool(_ENTRY.fullmatch(value)), "NAME=VALUE"))
_ANNOTATIONS: Final = _if(
    lambda value: isinstance(value, dict) and all(isinstance(one, str) for pair in value.items() for one in pair),
    "an object of texts",
)
_NODE: Final = _object(
    ("path",),
    path=_PATH,
    hostPath=_PATH,
    type=_one_of("", "b", "c", "u", "p"),
    major=_between(0, (1 << 12) - 1),  # Linux's dev_t
    minor=_between(0, (1 << 20) - 1),
    fileMode=_between(0, 0o177777),
    permissions=_if(lambda value: isinstance(value, str) and set(value) <= set("rwm"), "letters of rwm"),
    uid=_ID,
    gid=_ID,
)
_MOUNT: Final = _object(
    ("hostPath", "containerPath"), hostPath=_TEXT, containerPath=_PATH, type=_TEXT, options=_list(_TEXT)
)
_HOOK: Final = _object(
    ("hookName", "path"),
    hookName=_one_of(*_HOOKS),
    path=_PATH,
    args=_list(_TEXT),
    env=_ENTRIES,
    timeout=_between(1, 1 << 31),
)
_RDT: Final = _object(
    closID=_if(lambda value: _is_group(value) and "\n" not in value, "the name of a group"),
    l3CacheSchema=_TEXT,
    memBwSchema=_TEXT,
    schemata=_list(_LINE),
    enableCMT=_BOOL,
    enableMBM=_BOOL,
    enableMonitoring=_BOOL,
)
_NET_DEVICE: Final = _object(("hostInterfaceName", "name"), hostInterfaceName=_LINE, name=_LINE)
_EDITS: Final = _object(
    env=_ENTRIES,
    deviceNodes=_list(_NODE),
    netDevices=_list(_NET_DEVICE),
    mounts=_list(_MOUNT),
    hooks=_list(_HOOK),
    intelRdt=_RDT,
    additionalGids=_list(_ID),
)
_DEVICE: Final = _object(
    ("name", "containerEdits"),
    name=_if(lambda value: isinstance(value, str) and names.is_name(value), "a device's name"),
    annotations=_ANNOTATIONS,
    containerEdits=_EDITS,
)
_SPEC: Final = _object(
    ("cdiVersion", "kind", "devices"),
    cdiVersion=_TEXT,
    kind=_TEXT,
    annotations=_ANNOTATIONS,
    devices=_list(_DEVICE),
    containerEdits=_EDITS,
)
