"""Columns as core values, and the namespaces that come to be by being used."""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping

from pyctrd.core.anys import AnyValue
from pyctrd.core.labels import Labels
from pyctrd.metadata.database import Transaction

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def encode_labels(labels: Labels) -> str:
    """Return labels or annotations as their column holds them."""
    return _encode(dict(labels)) if labels else "{}"


def decode_labels(text: str) -> dict[str, str]:
    """Return the labels that a column holds."""
    return json.loads(text) if text != "{}" else {}


def columns_of(value: AnyValue | None) -> tuple[str | None, bytes | None]:
    """Return an optional Any as its two columns hold it."""
    return (None, None) if value is None else value


def any_of(type_url: str | None, value: bytes) -> AnyValue | None:
    """Return the Any that two columns hold."""
    return None if type_url is None else AnyValue(type_url, value)


def encode_extensions(extensions: Mapping[str, AnyValue]) -> str:
    """Return extensions as their column holds them."""
    return json.dumps({name: (url, b64encode(value).decode()) for name, (url, value) in extensions.items()})


def decode_extensions(text: str) -> dict[str, AnyValue]:
    """Return the extensions that a column holds."""
    if text == "{}":
        return {}
    return {name: AnyValue(url, b64decode(value)) for name, (url, value) in json.loads(text).items()}


def ensure_namespace(transaction: Transaction, ns: str) -> None:
    """Make `ns` exist: any write in a namespace does, without an event."""
    transaction.execute("INSERT OR IGNORE INTO namespaces (name) VALUES (?)", (ns,))
