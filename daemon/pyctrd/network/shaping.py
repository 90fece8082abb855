"""Limits on what a link sends: a bucket of tokens; and a link that gets what another one receives.

Packets can be kept waiting only where they are sent. What a link receives is therefore sent through another one first.
Source: tc-tbf(8), tc-mirred(8), kernel Documentation on ifb; rtnetlink(7).
"""

from typing import Any, Final, NamedTuple

_ROOT_HANDLE: Final = 0x0001_0000
_INGRESS_HANDLE: Final = 0xFFFF_0000
_ALL_PROTOCOLS: Final = 0x0003  # ETH_P_ALL
_LATENCY: Final = 0.025  # seconds that a packet may wait for tokens
# The kernel has a burst as the time in which it is sent, in 32 bits of 64 ns.
_LONGEST: Final = (1 << 32) * 64e-9 * 0.999
_MOST_BYTES: Final = (1 << 32) - 1
MAX_RATE: Final = 8 * _MOST_BYTES  # bits per second that the kernel's 32 bits of bytes can say


class Limit(NamedTuple):
    """Bits per second, and bits that may be sent at once after a pause."""

    rate: int
    burst: int


def set_limit(route: Any, index: int, limit: Limit) -> None:
    """Limit what a link sends; a burst that the kernel cannot express is the longest one that it can."""
    rate, burst = limit.rate // 8, limit.burst // 8
    burst = min(burst, int(rate * _LONGEST))
    waiting = min(int(rate * _LATENCY) + burst, _MOST_BYTES)
    route.tc("add", "tbf", index, _ROOT_HANDLE, rate=rate, burst=burst, limit=waiting)


def limit_of(route: Any, index: int) -> int:
    """Return the bits per second to which a link is limited, 0 if it is not."""
    for one in route.get_qdiscs(index):
        if one.get_attr("TCA_KIND") == "tbf":
            return int(one.get_attr("TCA_OPTIONS").get_attr("TCA_TBF_PARMS")["rate"]) * 8
    return 0


def redirect(route: Any, index: int, target: int) -> None:
    """Let what a link receives be sent by `target` first, which then hands it on as if nothing had happened."""
    route.tc("add", "ingress", index, _INGRESS_HANDLE)
    route.tc(
        "add-filter",
        "u32",
        index,
        parent=_INGRESS_HANDLE,
        prio=1,
        protocol=_ALL_PROTOCOLS,
        target=0x1_0001,
        keys=["0x0/0x0+0"],
        action={"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": target},
    )
