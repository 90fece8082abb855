"""bridge: pods on a bridge of the host, each by a pair of virtual devices.

Source: the CNI plugins' documentation, "bridge plugin".
"""

import errno
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from pyctrd.network import firewall, links, results
from pyctrd.network.errors import PluginError
from pyctrd.network.own.keys import knows
from pyctrd.network.plugins import Call, Plugins
from pyctrd.network.results import Address, Interface, Result, Route

_KNOWN: Final = frozenset(
    {"bridge", "isGateway", "isDefaultGateway", "forceAddress", "ipMasq", "mtu", "hairpinMode", "promiscMode", "ipam"}
)
_DEFAULT_NAME: Final = "cni0"
_IFF_PROMISC: Final = 0x100
_TAKEN: Final = frozenset({errno.EEXIST})


class Bridge:
    """The plugin."""

    def can(self, configuration: Mapping[str, Any]) -> bool:
        """Return whether we know all that is asked for."""
        args = (configuration.get("args") or {}).get("cni") or {}
        runtime = configuration.get("runtimeConfig") or {}
        masked = not configuration.get("ipMasq") or firewall.is_there()
        return knows(configuration, _KNOWN) and masked and not args.get("mac") and not runtime.get("mac")

    def call(self, call: Call, delegate: Plugins) -> Mapping[str, Any] | None:
        """Do it. Raises PluginError, OSError."""
        match call.command:
            case "ADD":
                return results.render(_add(call, delegate), call.configuration["cniVersion"])
            case "DEL":
                _delete(call, delegate)
            case "CHECK":
                with links.doing(f"look at {call.interface} in {call.netns}"):
                    _check(call, delegate)
            case "GC":
                _collect(call, delegate)
            case "STATUS":
                if kind := _ipam_of(call):
                    delegate.run(call.of(kind))
        return None


def _add(call: Call, delegate: Plugins) -> Result:
    conf = call.configuration
    if conf.get("isDefaultGateway") and conf.get("hairpinMode") and conf.get("promiscMode"):
        raise PluginError(call.kind, call.command, "hairpinMode and promiscMode exclude each other")
    name = str(conf.get("bridge") or _DEFAULT_NAME)
    with links.netlink() as host:
        with links.doing(f"make bridge {name}"):
            bridge = _ensure(host, call, name)
        with links.doing(f"connect {call.netns} to bridge {name}"):
            outer = _connect(host, call, bridge)
        given = _addresses(call, delegate)
        gateway = bool(conf.get("isGateway") or conf.get("isDefaultGateway"))
        if gateway:
            given = given._replace(addresses=tuple(map(_with_gateway, given.addresses)))
        if conf.get("isDefaultGateway"):
            given = given._replace(routes=_with_default(given))
        with links.doing(f"configure {call.interface} in {call.netns}"):
            inner = _configure(call, given)
        if gateway:
            with links.doing(f"give bridge {name} its addresses"):
                _be_gateway(host, call, bridge, given.addresses)
        if conf.get("ipMasq"):
            _masquerade(call, given.addresses)
        with links.doing(f"look at bridge {name}"):
            interfaces = (_interface(host, name), _interface(host, outer), inner)
    return Result(interfaces, given.addresses, given.routes, conf.get("dns") or given.dns)


def _ensure(host: Any, call: Call, name: str) -> Any:
    """Return the bridge, made if it was not there, and set up."""
    from pyroute2.netlink.exceptions import NetlinkError

    conf = call.configuration
    found = links.find(host, name)
    if found is None:
        try:
            host.link("add", ifname=name, kind="bridge", **({"mtu": int(conf["mtu"])} if conf.get("mtu") else {}))
        except NetlinkError as error:
            if error.code not in _TAKEN:  # another pod may have been faster
                raise
        found = links.find(host, name)
        assert found is not None
        # Else it has the address of the port that has the lowest, and changes it with them.
        host.link("set", index=found["index"], address=found.get_attr("IFLA_ADDRESS"))
        links.set_sysctl(f"ipv6/conf/{name}/accept_ra", "0")
    if links.kind_of(found) != "bridge":
        raise PluginError(call.kind, call.command, f"{name} is there and is no bridge")
    if conf.get("promiscMode"):
        host.link("set", index=found["index"], flags=_IFF_PROMISC, change=_IFF_PROMISC)
    if not found["flags"] & 1:
        host.link("set", index=found["index"], state="up")
    return found


def _connect(host: Any, call: Call, bridge: Any) -> str:
    """Make the pod's interface and the host's end of it, which is a port of the bridge; return the latter's name."""
    from pyroute2.netlink.exceptions import NetlinkError

    conf = call.configuration
    mtu = {"mtu": int(conf["mtu"])} if conf.get("mtu") else {}
    netns_fd = os.open(call.netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        name = f"veth{secrets.token_hex(4)}"
        peer = {"ifname": call.interface, "net_ns_fd": netns_fd, **mtu}
        host.link("add", ifname=name, kind="veth", master=bridge["index"], peer=peer, **mtu)
    except NetlinkError as error:
        if error.code in _TAKEN:
            message = f"there is an interface {call.interface} in {call.netns} already"
            raise PluginError(call.kind, call.command, message) from error
        raise
    finally:
        os.close(netns_fd)
    links.set_sysctl(f"ipv6/conf/{name}/accept_ra", "0")
    found = links.find(host, name)
    assert found is not None
    if conf.get("hairpinMode"):
        host.brport("set", index=found["index"], mode=1)
    host.link("set", index=found["index"], state="up")
    return name


def _addresses(call: Call, delegate: Plugins) -> Result:
    """Return what the IPAM plugin gives the pod, nothing if there is none."""
    kind = _ipam_of(call)
    if not kind:
        return Result()
    answer = delegate.run(call.of(kind))
    assert answer is not None
    try:
        result = results.parse(answer, call.configuration["cniVersion"])
    except ValueError as error:
        raise PluginError(kind, call.command, str(error)) from error
    if not result.addresses:
        raise PluginError(kind, call.command, "it gave no address")
    # Whose interface it is the IPAM plugin does not know: the third of ours.
    return result._replace(addresses=tuple(one._replace(interface=2) for one in result.addresses))


def _with_gateway(address: Address) -> Address:
    return address if address.gateway else address._replace(gateway=str(address.address.network[1]))


def _with_default(given: Result) -> tuple[Route, ...]:
    routes = list(given.routes)
    for address in given.addresses:
        default = "0.0.0.0/0" if address.address.version == 4 else "::/0"
        if not any(route.destination == default for route in routes):
            routes.append(Route(default, address.gateway))
    return tuple(routes)


def _configure(call: Call, given: Result) -> Interface:
    """Give the pod's interface its addresses and routes, set it up, and return what it is."""

    def configure(route: Any) -> Interface:
        link = links.find(route, call.interface)
        assert link is not None
        index = link["index"]
        links.set_sysctl(f"ipv4/conf/{call.interface}/arp_notify", "1")
        if any(one.address.version == 6 for one in given.addresses):
            links.set_sysctl(f"ipv6/conf/{call.interface}/disable_ipv6", "0")
            # The link-local address too: one that others are asked about cannot be used for a second.
            links.set_sysctl(f"ipv6/conf/{call.interface}/accept_dad", "0")
        route.link("set", index=index, state="up")
        for one in given.addresses:
            links.add_address(route, index, one.address)
        gateways: dict[int, str] = {
            one.address.version: one.gateway for one in reversed(given.addresses) if one.gateway
        }
        for way in given.routes:
            version = 6 if ":" in way.destination else 4
            links.add_route(route, index, way.destination, way.gateway or gateways.get(version, ""))
        return Interface(call.interface, str(link.get_attr("IFLA_ADDRESS")), call.netns)

    return links.netlink_inside(call.netns, configure)


def _be_gateway(host: Any, call: Call, bridge: Any, given: tuple[Address, ...]) -> None:
    """Give the bridge the gateways' addresses, and let this machine forward."""
    present = links.addresses_of(host, bridge["index"])
    for one in given:
        network = one.address.network
        wanted = type(one.address)(f"{one.gateway}/{network.prefixlen}")
        others = [each for each in present if each != wanted and each.version == wanted.version]
        if wanted.version == 6:
            others = [each for each in others if each.network.overlaps(network)]
        if others and not call.configuration.get("forceAddress"):
            names = ", ".join(map(str, others))
            message = f"the bridge has an address already that is not {wanted}: {names}"
            raise PluginError(call.kind, call.command, message)
        for each in others:
            host.addr("del", index=bridge["index"], address=str(each.ip), prefixlen=each.network.prefixlen)
        if wanted not in present:
            links.add_address(host, bridge["index"], wanted)
        links.set_sysctl("ipv4/ip_forward" if wanted.version == 4 else "ipv6/conf/all/forwarding", "1")


def _masquerade(call: Call, given: tuple[Address, ...]) -> None:
    """Let what pods send elsewhere come from this machine."""
    rules = []
    for one in given:
        family, multicast = ("ip", "224.0.0.0/4") if one.address.version == 4 else ("ip6", "ff00::/8")
        nowhere = f"{family} daddr != {{ {one.address.network}, {multicast} }}"
        rules.append(f"{family} saddr {one.address.ip} {nowhere} masquerade")
    firewall.add({"postrouting": rules}, _comment(call))


def _delete(call: Call, delegate: Plugins) -> None:
    if kind := _ipam_of(call):
        delegate.run(call.of(kind))
    if call.netns:

        def delete(route: Any) -> None:
            link = links.find(route, call.interface)
            if link is not None:
                route.link("del", index=link["index"])

        with suppress(FileNotFoundError), links.doing(f"remove {call.interface} from {call.netns}"):
            links.netlink_inside(call.netns, delete)
    if call.configuration.get("ipMasq"):
        firewall.remove(_comment(call))


def _check(call: Call, delegate: Plugins) -> None:
    conf = call.configuration
    if kind := _ipam_of(call):
        delegate.run(call.of(kind))
    result = results.parse(conf.get("prevResult") or {}, conf["cniVersion"])

    def present(route: Any) -> set[str]:
        link = links.find(route, call.interface)
        if link is None:
            raise PluginError(call.kind, call.command, f"{call.interface} is missing in {call.netns}")
        return set(map(str, links.addresses_of(route, link["index"])))

    there = links.netlink_inside(call.netns, present)
    mine = {str(one.address) for one in result.addresses}
    if missing := mine - there:
        raise PluginError(call.kind, call.command, f"{call.interface} has lost {', '.join(sorted(missing))}")
    with links.netlink() as host:
        for one in result.interfaces:
            if not one.sandbox and links.find(host, one.name) is None:
                raise PluginError(call.kind, call.command, f"{one.name} is missing on this machine")


def _collect(call: Call, delegate: Plugins) -> None:
    if kind := _ipam_of(call):
        delegate.run(call.of(kind))
    if call.configuration.get("ipMasq"):
        valid = call.configuration.get("cni.dev/valid-attachments") or ()
        firewall.keep(_group(call), [one["containerID"] for one in valid])


def _ipam_of(call: Call) -> str:
    return str((call.configuration.get("ipam") or {}).get("type") or "")


def _interface(host: Any, name: str) -> Interface:
    link = links.find(host, name)
    assert link is not None
    return Interface(name, str(link.get_attr("IFLA_ADDRESS")))


def _group(call: Call) -> str:
    return f"bridge:{call.configuration['name']}"


def _comment(call: Call) -> str:
    return firewall.owner(_group(call), call.container)
