"""Identifiers: names of namespaces, containers, tasks, execs and sandboxes, and the parts of event topics.

Source: containerd pkg/identifiers.
"""

import re
from functools import lru_cache
from typing import Final

from pyctr_wire.errors import InvalidArgument

MAX_LENGTH: Final = 76

_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")


def validate_identifier(kind: str, text: str) -> str:
    """Return `text`, or raise InvalidArgument, its message starting with `kind`, if it is no identifier.

    An identifier is 1 to 76 ASCII letters and digits, in runs joined by single `.`, `_` or `-`;
    so it is safe as a file name.
    """
    if len(text) <= MAX_LENGTH and _IDENTIFIER.fullmatch(text):
        return text
    if not text:
        raise InvalidArgument(f"{kind}: identifier must not be empty")
    if len(text) > MAX_LENGTH:
        raise InvalidArgument(f'{kind}: identifier "{text}" greater than maximum length ({MAX_LENGTH} characters)')
    raise InvalidArgument(f'{kind}: identifier "{text}" must match {_IDENTIFIER.pattern}')


def validate_namespace(text: str) -> str:
    """Return `text`, or raise InvalidArgument if it cannot name a namespace."""
    return validate_identifier("namespace validation", text)


@lru_cache(maxsize=64)  # there are some twenty, and each event has one
def validate_topic(topic: str) -> str:
    """Return `topic`, or raise InvalidArgument unless it is `/` and identifiers joined by `/`."""
    if not topic.startswith("/"):
        raise InvalidArgument(f'topic "{topic}" must start with "/"')
    if topic == "/":
        raise InvalidArgument('topic "/" must have at least one component')
    for component in topic[1:].split("/"):
        validate_identifier(f'failed validation on component "{component}"', component)
    return topic
