"""portmap: ports of the host that lead to a pod's. Source: the CNI plugins' documentation, "Port-mapping plugin".

The program marks packets; here their connection tracking says the same: to which of the host's ports they came.
"""

from collections.abc import Mapping
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from typing import Any, Final

from pyctrd.network import firewall, links, results
from pyctrd.network.errors import PluginError
from pyctrd.network.own.keys import knows
from pyctrd.network.plugins import Call, Plugins

_PROTOCOLS: Final = ("tcp", "udp", "sctp")

_Address = IPv4Interface | IPv6Interface


class Portmap:
    """The plugin."""

    def can(self, configuration: Mapping[str, Any]) -> bool:
        """Return whether we know all that is asked for."""
        return knows(configuration, frozenset({"snat"})) and firewall.is_there()

    def call(self, call: Call, _: Plugins) -> Mapping[str, Any] | None:
        """Do it. Raises PluginError, OSError."""
        configuration = call.configuration
        comment = _comment(call)
        match call.command:
            case "ADD":
                previous = configuration.get("prevResult")
                if previous is None:
                    raise PluginError(
                        call.kind, call.command, "it must come after a plugin that gives the pod addresses"
                    )
                _add(call, previous, comment)
                return dict(previous)
            case "DEL":
                firewall.remove(comment)
            case "GC":
                valid = configuration.get("cni.dev/valid-attachments") or ()
                firewall.keep(_group(call), [one["containerID"] for one in valid])
            case "CHECK":
                wanted = len(_mappings(call)) * len(_targets(call, configuration.get("prevResult") or {}))
                if bool(firewall.count(comment)) != bool(wanted):
                    raise PluginError(call.kind, call.command, f"rules of {call.container} are missing")
        return None


def _add(call: Call, previous: Mapping[str, Any], comment: str) -> None:
    targets, snat = _targets(call, previous), call.configuration.get("snat", True)
    forward: list[str] = []
    back: list[str] = []
    for mapping in _mappings(call):
        for target in targets:
            rules = _rules(call, mapping, target)
            if rules is not None:
                forward.append(rules[0])
                back += rules[1] if snat else ()
    if not forward:
        return
    if snat and any(target.version == 4 for target in targets):
        # Else what comes from 127.0.0.1 is not let out.
        with links.netlink() as route, links.doing("find the way to the pod"):
            name = links.leads_to(route, next(target.ip for target in targets if target.version == 4))
        links.set_sysctl(f"ipv4/conf/{name}/route_localnet", "1")
    firewall.add({"host_ports": forward, "postrouting": back}, comment)
    with links.doing("forget earlier datagrams"):
        for mapping in _mappings(call):
            if str(mapping.get("protocol")).lower() == "udp":
                links.forget_datagrams(int(mapping["hostPort"]))


def _rules(call: Call, mapping: Mapping[str, Any], target: _Address) -> tuple[str, list[str]] | None:
    """Return the rule that leads to the pod and those for the way back, None if the port is one of another family."""
    family = "ip" if target.version == 4 else "ip6"
    try:
        port, inner = int(mapping["hostPort"]), int(mapping["containerPort"])
        protocol = str(mapping.get("protocol") or "tcp").lower()
        host = ip_address(mapping["hostIP"]) if mapping.get("hostIP") else None
    except (KeyError, ValueError, TypeError) as error:
        raise PluginError(call.kind, call.command, f"{dict(mapping)} is no port mapping: {error}") from error
    if protocol not in _PROTOCOLS or not (0 < port < 1 << 16 and 0 < inner < 1 << 16):
        raise PluginError(call.kind, call.command, f"{dict(mapping)} is no port mapping")
    if host is not None and host.version != target.version:
        return None
    only = f"{family} daddr {host} " if host is not None and not host.is_unspecified else ""
    to = f"{target.ip}:{inner}" if target.version == 4 else f"[{target.ip}]:{inner}"
    forward = (
        f"meta nfproto {'ipv4' if target.version == 4 else 'ipv6'} {only}{protocol} dport {port} dnat {family} to {to}"
    )
    here = f"{family} daddr {target.ip} {protocol} dport {inner} ct status dnat ct original proto-dst {port} masquerade"
    sources = [str(target.network), *(["127.0.0.1"] if target.version == 4 else [])]
    return forward, [f"{family} saddr {source} {here}" for source in sources]


def _mappings(call: Call) -> list[Mapping[str, Any]]:
    return list((call.configuration.get("runtimeConfig") or {}).get("portMappings") or ())


def _targets(call: Call, previous: Mapping[str, Any]) -> list[_Address]:
    """Return the pod's first address of each family."""
    result = results.parse(previous, call.configuration["cniVersion"])
    found: dict[int, _Address] = {}
    for one in result.addresses:
        inside = one.interface is None or bool(result.interfaces[one.interface].sandbox)
        if inside:
            found.setdefault(one.address.version, one.address)
    return list(found.values())


def _group(call: Call) -> str:
    return f"portmap:{call.configuration['name']}"


def _comment(call: Call) -> str:
    return firewall.owner(_group(call), call.container)
