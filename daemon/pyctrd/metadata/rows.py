"""Columns as core values, and the namespaces that come to be by being used."""

import json

from pyctrd.core.labels import Labels
from pyctrd.metadata.database import Transaction

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def encode_labels(labels: Labels) -> str:
    """Return labels or annotations as their column holds them."""
    return _encode(dict(labels)) if labels else "{}"


def decode_labels(text: str) -> dict[str, str]:
    """Return the labels that a column holds."""
    return json.loads(text) if text != "{}" else {}


def ensure_namespace(transaction: Transaction, ns: str) -> None:
    """Make `ns` exist: any write in a namespace does, without an event."""
    transaction.execute("INSERT OR IGNORE INTO namespaces (name) VALUES (?)", (ns,))
