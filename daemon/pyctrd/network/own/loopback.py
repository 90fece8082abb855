"""loopback: the pod's `lo` is up. Source: the CNI plugins' documentation, "loopback"."""

from collections.abc import Mapping
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from pyctrd.network import results
from pyctrd.network.netns import inside, set_loopback_up
from pyctrd.network.own.keys import knows
from pyctrd.network.plugins import Call, Plugins
from pyctrd.network.results import Address, Interface, Result

_NO_MAC = "00:00:00:00:00:00"


class Loopback:
    """The plugin."""

    def can(self, configuration: Mapping[str, Any]) -> bool:
        """Return whether we know all that is asked for."""
        return knows(configuration, frozenset())

    def call(self, call: Call, _: Plugins) -> Mapping[str, Any] | None:
        """Do it. There is nothing to undo: `lo` goes with the namespace."""
        if call.command != "ADD":
            return None
        inside(Path(call.netns), set_loopback_up)
        if previous := call.configuration.get("prevResult"):
            return dict(previous)
        addresses = tuple(Address(ip_interface(text), interface=0) for text in ("127.0.0.1/8", "::1/128"))
        result = Result((Interface(call.interface, _NO_MAC, call.netns),), addresses)
        return results.render(result, call.configuration["cniVersion"])
