"""A pod has one address that it is known by, and may have others."""

from collections.abc import Iterable
from enum import StrEnum


class Preference(StrEnum):
    """Which of a pod's addresses is its first."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"
    CNI = "cni"


def ordered(addresses: Iterable[str], preference: Preference) -> list[str]:
    """Return `addresses`, the preferred family's first one in front."""
    found = list(addresses)
    if preference is Preference.CNI:
        return found
    wanted = [one for one in found if (":" in one) == (preference is Preference.IPV6)]
    first = wanted[:1]
    return first + [one for one in found if one not in first]
