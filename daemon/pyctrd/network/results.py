"""What a CNI plugin answers: interfaces, addresses, routes and name servers.

Three forms have been in use: 0.1 and 0.2 know one address of each family, 0.3 to 0.4 name the family of each
address, 1.0 and later do not. Inside there is one form only. Source: CNI specification, "ADD Success", 0.1.0 to 1.1.0.
"""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Any, Final, NamedTuple

# From the oldest to the newest.
VERSIONS: Final = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
_ONE_OF_EACH: Final = ("0.1.0", "0.2.0")
_NAMED_FAMILY: Final = ("0.3.0", "0.3.1", "0.4.0")


class Interface(NamedTuple):
    """A network interface; `sandbox` is the path of its network namespace, "" for the host's."""

    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0


class Address(NamedTuple):
    """An address with its prefix length; `interface` is the place of its interface in the result, None if unknown."""

    address: IPv4Interface | IPv6Interface
    gateway: str = ""
    interface: int | None = None


class Route(NamedTuple):
    """A route; `gateway` "" means the address's own. `more` has what 1.1 may say beside: mtu, advmss, priority …"""

    destination: str
    gateway: str = ""
    more: Mapping[str, Any] = {}


class Result(NamedTuple):
    """What is there after an ADD."""

    interfaces: tuple[Interface, ...] = ()
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Mapping[str, Any] = {}

    def of_interface(self, name: str) -> list[str]:
        """Return the addresses, without prefixes, of a pod's interface `name`, those of none in particular too."""
        return [str(one.address.ip) for one in self.addresses if self._belongs(one, name)]

    def _belongs(self, address: Address, name: str) -> bool:
        if address.interface is None:
            return True
        if not 0 <= address.interface < len(self.interfaces):
            return False
        interface = self.interfaces[address.interface]
        return interface.name == name and bool(interface.sandbox)


def parse(document: Mapping[str, Any], version: str) -> Result:
    """Return what `document` says, which is of `version` unless it names another.

    Raises ValueError for a document that is no result.
    """
    try:
        if (document.get("cniVersion") or version) in _ONE_OF_EACH:
            return _parse_oldest(document)
        return Result(
            tuple(
                Interface(one["name"], one.get("mac") or "", one.get("sandbox") or "", one.get("mtu") or 0)
                for one in document.get("interfaces") or ()
            ),
            tuple(
                Address(ip_interface(one["address"]), one.get("gateway") or "", one.get("interface"))
                for one in document.get("ips") or ()
            ),
            _parse_routes(document.get("routes")),
            document.get("dns") or {},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"it is no CNI result: {type(error).__name__}: {error}") from error


def render(result: Result, version: str) -> dict[str, Any]:
    """Return `result` as a document of `version`."""
    document: dict[str, Any] = {"cniVersion": version}
    if version in _ONE_OF_EACH:
        return document | _render_oldest(result)
    newest = version == VERSIONS[-1]
    if result.interfaces:
        document["interfaces"] = [_render_interface(one, newest=newest) for one in result.interfaces]
    if result.addresses:
        named = version in _NAMED_FAMILY
        document["ips"] = [_render_address(one, named=named) for one in result.addresses]
    if result.routes:
        document["routes"] = [_render_route(one, newest=newest) for one in result.routes]
    return document | {"dns": dict(result.dns)}


def _parse_routes(routes: Iterable[Mapping[str, Any]] | None) -> tuple[Route, ...]:
    return tuple(
        Route(one["dst"], one.get("gw") or "", {key: one[key] for key in one if key not in ("dst", "gw")})
        for one in routes or ()
    )


def _parse_oldest(document: Mapping[str, Any]) -> Result:
    parts = [document[family] for family in ("ip4", "ip6") if document.get(family)]
    return Result(
        (),
        tuple(Address(ip_interface(one["ip"]), one.get("gateway") or "") for one in parts),
        tuple(route for one in parts for route in _parse_routes(one.get("routes"))),
        document.get("dns") or {},
    )


def _render_oldest(result: Result) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    for family, number in (("ip4", 4), ("ip6", 6)):
        of_family = [one for one in result.addresses if one.address.version == number]
        if of_family:
            routes = [one for one in result.routes if (":" in one.destination) == (number == 6)]
            parts[family] = {"ip": str(of_family[0].address)}
            if of_family[0].gateway:
                parts[family]["gateway"] = of_family[0].gateway
            if routes:
                parts[family]["routes"] = [_render_route(one, newest=False) for one in routes]
    return parts | {"dns": dict(result.dns)}


def _render_interface(interface: Interface, *, newest: bool) -> dict[str, Any]:
    fields = interface._asdict()
    if not newest:
        del fields["mtu"]
    return {key: value for key, value in fields.items() if value}


def _render_address(address: Address, *, named: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {"version": str(address.address.version)} if named else {}
    if address.interface is not None:
        fields["interface"] = address.interface
    fields["address"] = str(address.address)
    if address.gateway:
        fields["gateway"] = address.gateway
    return fields


def _render_route(route: Route, *, newest: bool) -> dict[str, Any]:
    fields = {"dst": route.destination}
    if route.gateway:
        fields["gw"] = route.gateway
    return {**fields, **route.more} if newest else fields
