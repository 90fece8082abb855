"""What a plugin's configuration may say, and whether we know all of it."""

from collections.abc import Mapping, Set
from typing import Any, Final

# Of every plugin's configuration; they are read by those who run plugins.
_COMMON: Final = frozenset(
    {"cniVersion", "name", "type", "capabilities", "prevResult", "runtimeConfig", "dns", "args"}
    | {"cni.dev/valid-attachments"}
)


def knows(configuration: Mapping[str, Any], known: Set[str]) -> bool:
    """Return whether `configuration` says nothing but what is `known`; what is empty or false says nothing."""
    return all(key in known or key in _COMMON or not value for key, value in configuration.items())
