"""firewall: pods may be forwarded to and from, whatever the machine's rules say of others.

The rules are the program's to the letter, so that either can remove the other's. What isolates bridges, and firewalld,
are the program's. Source: the CNI plugins' documentation, "firewall plugin".
"""

from collections.abc import Iterator, Mapping
from ipaddress import ip_interface
from pathlib import Path
from typing import Any, Final

from pyctrd.network import iptables, results
from pyctrd.network.errors import PluginError
from pyctrd.network.own.keys import knows
from pyctrd.network.plugins import Call, Plugins

_FORWARD: Final = "CNI-FORWARD"
_ADMIN: Final = "CNI-ADMIN"
_FIREWALLD: Final = Path("/run/firewalld.pid")
_ENTRY: Final = f'FORWARD -m comment --comment "CNI firewall plugin rules" -j {_FORWARD}'


class Firewall:
    """The plugin."""

    def can(self, configuration: Mapping[str, Any]) -> bool:
        """Return whether we know all that is asked for."""
        backend, policy = configuration.get("backend") or "", configuration.get("ingressPolicy") or "open"
        ours = backend == "iptables" or (not backend and not _FIREWALLD.exists())
        known = knows(configuration, frozenset({"backend", "ingressPolicy", "iptablesAdminChainName"}))
        return known and ours and policy == "open" and iptables.is_there(4) and iptables.is_there(6)

    def call(self, call: Call, _: Plugins) -> Mapping[str, Any] | None:
        """Do it. Raises PluginError, OSError."""
        previous = call.configuration.get("prevResult")
        if call.command == "DEL":
            for version, wanted in _rules(call, previous or {}):
                iptables.remove(version, wanted)
            return None
        if call.command not in ("ADD", "CHECK"):
            return None  # whose rules are whose cannot be seen: nothing of them is collected
        if previous is None:
            raise PluginError(call.kind, call.command, "it must come after a plugin that gives the pod addresses")
        admin = str(call.configuration.get("iptablesAdminChainName") or _ADMIN)
        first = (_ENTRY, f'{_FORWARD} -m comment --comment "CNI firewall plugin admin overrides" -j {admin}')
        for version, wanted in _rules(call, previous):
            if call.command == "ADD":
                iptables.add(version, (_FORWARD, admin), first, wanted)
            elif missing := [one for one in (*first, *wanted) if f"-A {one}" not in iptables.rules(version)]:
                raise PluginError(call.kind, call.command, f"a rule is missing: {missing[0]}")
        return dict(previous) if call.command == "ADD" else None


def _rules(call: Call, previous: Mapping[str, Any]) -> Iterator[tuple[int, list[str]]]:
    """Yield each family that the pod has addresses of, with its rules."""
    found = results.parse(previous, call.configuration["cniVersion"]).addresses
    for version in (4, 6):
        addresses = [ip_interface(one.address.ip) for one in found if one.address.version == version]
        wanted = []
        for address in addresses:
            wanted.append(f"{_FORWARD} -d {address} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
            wanted.append(f"{_FORWARD} -s {address} -j ACCEPT")
        if wanted:
            yield version, wanted
