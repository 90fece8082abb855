"""Links, addresses and routes by rtnetlink, and what /proc/sys says of them.

pyroute2 takes long to load, so it is when the first pod is attached; its sockets belong to the network namespace of the
thread that makes them. Source: rtnetlink(7); kernel Documentation/networking/ip-sysctl.rst.
"""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import Any, Final, TypeVar

from pyctrd.network.netns import inside

_T = TypeVar("_T")

_SYSCTLS: Final = Path("/proc/sys/net")
_IFA_F_NODAD: Final = 0x02
_LINK_SCOPE: Final = 253
_BOOT: Final = 3  # who set a route: what programs say that are no routing daemons


@contextmanager
def netlink() -> Iterator[Any]:
    """Yield pyroute2's IPRoute for the calling thread's network namespace."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        yield route


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Raise OSError, saying `what` it is that failed, for what the kernel refuses in the block."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        raise OSError(error.code, f"cannot {what}: {os.strerror(error.code)}") from error


def netlink_inside(netns: str, function: Callable[[Any], _T]) -> _T:
    """Return what `function` does with an IPRoute of the network namespace at `netns`.

    Raises OSError if there is none.
    """

    def call() -> _T:
        with netlink() as route:
            return function(route)

    return inside(Path(netns), call)


def find(route: Any, name: str) -> Any | None:
    """Return the link of that name, None if there is none."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        return next(iter(route.link("get", ifname=name)), None)
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise


def kind_of(link: Any) -> str:
    """Return a link's kind: bridge, veth …; "" for a device of the machine."""
    information = link.get_attr("IFLA_LINKINFO")
    return str(information.get_attr("IFLA_INFO_KIND")) if information else ""


def addresses_of(route: Any, index: int) -> list[IPv4Interface | IPv6Interface]:
    """Return a link's addresses, but for the kernel's own link-local ones."""
    from ipaddress import ip_interface

    found = [
        ip_interface(f"{one.get_attr('IFA_LOCAL') or one.get_attr('IFA_ADDRESS')}/{one['prefixlen']}")
        for one in route.get_addr(index=index)
    ]
    return [one for one in found if not one.is_link_local]


def add_address(route: Any, index: int, address: IPv4Interface | IPv6Interface) -> None:
    """Give a link an address that it may have already, and that nobody else has: it can be used at once."""
    more: dict[str, Any] = {"flags": _IFA_F_NODAD}
    if address.version == 4:
        more = {"broadcast": str(address.network.broadcast_address)}
    _unless_there(
        lambda: route.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen, **more)
    )


def add_route(route: Any, index: int, destination: str, gateway: str) -> None:
    """Add a route, which may be there."""
    via = {"gateway": gateway} if gateway else {"scope": _LINK_SCOPE}
    _unless_there(lambda: route.route("add", dst=destination, oif=index, proto=_BOOT, **via))


def _unless_there(add: Callable[[], object]) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        add()
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise


def leads_to(route: Any, address: IPv4Address | IPv6Address) -> str:
    """Return the name of the link by which an address is reached."""
    found = route.route("get", dst=str(address))[0]
    link = route.link("get", index=found.get_attr("RTA_OIF"))[0]
    return str(link.get_attr("IFLA_IFNAME"))


def forget_datagrams(port: int) -> None:
    """Let the kernel forget who has sent UDP to a port of this machine, so that the next datagram is looked at anew."""
    from pyroute2 import Conntrack
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

    for family in (socket.AF_INET, socket.AF_INET6):
        wanted = NFCTAttrTuple(family=family, proto=socket.IPPROTO_UDP, dport=port)
        with Conntrack(nfgen_family=family) as connections:
            for entry in list(connections.dump_entries(tuple_orig=wanted)):
                try:
                    connections.delete(entry)
                except NetlinkError as error:
                    if error.code != errno.ENOENT:  # over by itself
                        raise


def set_sysctl(name: str, value: str) -> None:
    """Set one of /proc/sys/net, in the calling thread's network namespace; one that is not there says nothing."""
    path = _SYSCTLS / name
    try:
        if path.read_text().strip() != value:
            path.write_text(value)
    except FileNotFoundError:  # a kernel without IPv6
        return
