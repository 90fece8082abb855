"""bandwidth: how fast a pod may send and receive.

What the pod receives is limited where the host's end of its pair sends it; what the pod sends goes through a device of
its own (ifb) before the host has it. That device alone outlives the pod's namespace; its alias says whose it is.
Source: the CNI plugins' documentation, "bandwidth plugin".
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from pyctrd.network import links, results, shaping
from pyctrd.network.errors import PluginError
from pyctrd.network.own.keys import knows
from pyctrd.network.plugins import Call, Plugins
from pyctrd.network.results import Interface, Result
from pyctrd.network.shaping import Limit

_KEYS: Final = ("ingressRate", "ingressBurst", "egressRate", "egressBurst")
_ALIAS: Final = "pyctr_cni"
_MOST_ALIAS: Final = 255  # bytes
_MOST_BURST: Final = 8 * ((1 << 32) - 1)


class Bandwidth:
    """The plugin."""

    def can(self, configuration: Mapping[str, Any]) -> bool:
        """Return whether we know all that is asked for."""
        wanted = _wanted(configuration)
        rates = (wanted.get("ingressRate") or 0, wanted.get("egressRate") or 0)
        known = knows(configuration, frozenset(_KEYS)) and knows(wanted, frozenset(_KEYS))
        return known and all(not isinstance(rate, int) or rate <= shaping.MAX_RATE for rate in rates)

    def call(self, call: Call, _: Plugins) -> Mapping[str, Any] | None:
        """Do it. Raises PluginError, OSError."""
        match call.command:
            case "ADD":
                return _add(call)
            case "DEL":
                with links.netlink() as host, links.doing(f"remove {_device(call)}"):
                    device = links.find(host, _device(call))
                    if device is not None:
                        host.link("del", index=device["index"])
            case "CHECK":
                with links.doing(f"look at the limits of {call.container}"):
                    _check(call)
            case "GC":
                valid = call.configuration.get("cni.dev/valid-attachments") or ()
                _collect(call, {one["containerID"] for one in valid})
        return None


def _add(call: Call) -> Mapping[str, Any]:
    result, previous = _previous(call)
    ingress, egress = _limit(call, "ingress"), _limit(call, "egress")
    if ingress is None and egress is None:
        return previous
    with links.netlink() as host:
        outer = _outer(host, call, result)
        if ingress is not None:
            with links.doing(f"limit what {call.container} receives"):
                shaping.set_limit(host, outer["index"], ingress)
        if egress is None:
            return previous
        with links.doing(f"limit what {call.container} sends"):
            mtu, name, alias = outer.get_attr("IFLA_MTU"), _device(call), f"{_group(call)} {call.container}"
            host.link("add", ifname=name, kind="ifb", mtu=mtu)
            device = links.find(host, name)
            assert device is not None
            host.link("set", index=device["index"], ifalias=alias[:_MOST_ALIAS], state="up")
            shaping.redirect(host, outer["index"], device["index"])
            shaping.set_limit(host, device["index"], egress)
    interfaces = (*result.interfaces, Interface(name, str(device.get_attr("IFLA_ADDRESS"))))
    return results.render(result._replace(interfaces=interfaces), call.configuration["cniVersion"])


def _check(call: Call) -> None:
    result, _ = _previous(call)
    ingress, egress = _limit(call, "ingress"), _limit(call, "egress")
    with links.netlink() as host:
        if ingress is not None and not shaping.limit_of(host, _outer(host, call, result)["index"]):
            raise PluginError(call.kind, call.command, f"what {call.container} receives is not limited any more")
        if egress is not None:
            device = links.find(host, _device(call))
            if device is None or not shaping.limit_of(host, device["index"]):
                raise PluginError(call.kind, call.command, f"what {call.container} sends is not limited any more")


def _collect(call: Call, valid: set[str]) -> None:
    """Remove the devices of this network's pods that are not there any more."""
    wanted = {f"{_group(call)} {container}"[:_MOST_ALIAS] for container in valid}
    with links.netlink() as host, links.doing("remove what limited pods that are gone"):
        for link in list(host.get_links(kind="ifb")):
            alias = link.get_attr("IFLA_IFALIAS") or ""
            if alias.startswith(f"{_group(call)} ") and alias not in wanted:
                host.link("del", index=link["index"])


def _previous(call: Call) -> tuple[Result, Mapping[str, Any]]:
    previous = call.configuration.get("prevResult")
    if previous is None:
        raise PluginError(call.kind, call.command, "it must come after a plugin that connects the pod")
    return results.parse(previous, call.configuration["cniVersion"]), previous


def _outer(host: Any, call: Call, result: Result) -> Any:
    """Return the host's end of the pod's interface, which is one of those that the plugins before have made."""

    def peer(route: Any) -> int:
        link = links.find(route, call.interface)
        return int(link.get_attr("IFLA_LINK") or 0) if link is not None else 0

    index = links.netlink_inside(call.netns, peer)
    for one in result.interfaces:
        link = links.find(host, one.name) if not one.sandbox else None
        if link is not None and link["index"] == index:
            return link
    raise PluginError(call.kind, call.command, f"no interface of this machine leads to {call.interface}")


def _limit(call: Call, direction: str) -> Limit | None:
    """Return what is asked for, None for no limit."""
    wanted = _wanted(call.configuration)
    rate, burst = int(wanted.get(f"{direction}Rate") or 0), int(wanted.get(f"{direction}Burst") or 0)
    if not rate and not burst:
        return None
    if rate < 8 or burst < 8 or burst > _MOST_BURST:
        text = f"{direction}Rate and {direction}Burst need each other, in bits, and a burst is at most {_MOST_BURST}"
        raise PluginError(call.kind, call.command, text)
    return Limit(rate, burst)


def _wanted(configuration: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the limits: the administrator's for all pods, or else the pod's own."""
    if any(key in configuration for key in _KEYS):
        return {key: configuration[key] for key in _KEYS if key in configuration}
    return (configuration.get("runtimeConfig") or {}).get("bandwidth") or {}


def _device(call: Call) -> str:
    """Return the name of the pod's device, as the program forms it, so that either can remove the other's."""
    text = f"{call.configuration['name']}{call.container}"
    return f"bwp{hashlib.sha512(text.encode()).hexdigest()[:12]}"


def _group(call: Call) -> str:
    return f"{_ALIAS} {call.configuration['name']}"
