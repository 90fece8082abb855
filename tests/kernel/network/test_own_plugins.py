"""The plugins that run in the daemon do what Debian's programs do: to the kernel, to files, to packets."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pyctrd.network.pod_network import PortMapping
from support.pod_networks import OWN_PLUGINS, REAL_PLUGINS, Lab, command, own_host, pod

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not (REAL_PLUGINS / "bridge").exists(), reason="containernetworking-plugins is not installed"),
]

_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_VETH = re.compile(r"veth[0-9a-f]{8}")
_PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
# What a kernel, a clock or chance decides, and what an interface's queue may hold.
_UNTOLD = frozenset(
    {"ifindex", "link_index", "link_netnsid", "address", "valid_life_time", "preferred_life_time", "txqlen"}
    | {"bridge_id", "root_id", "designated_bridge", "designated_root", "tentative", "nodad", "operstate"}
)
_SYSCTLS = ("ipv4/conf/{}/arp_notify", "ipv4/conf/{}/route_localnet", "ipv6/conf/{}/accept_ra")


def told(value: Any) -> Any:
    """What `ip -json` says, without what differs from one time to the next."""
    if isinstance(value, list):
        # Whether there is a carrier the kernel says when it finds time to.
        kept = [one for one in value if one not in ("NO-CARRIER", "LOWER_UP", "linkdown")]
        return [
            told(one) for one in kept if not (isinstance(one, dict) and one.get("scope") == "link" and "local" in one)
        ]
    if isinstance(value, dict):
        return {key: told(one) for key, one in value.items() if key not in _UNTOLD and not key.endswith("_timer")}
    return _VETH.sub("veth*", _MAC.sub("MAC", value)) if isinstance(value, str) else value


def flat(value: Any, path: str) -> Iterator[str]:
    """Nested values as lines, which can be compared at a glance."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in items:
            yield from flat(one, f"{path}.{key}")
    else:
        yield f"{path}: {value}"


def state_of(netns: Path | None) -> list[str]:
    """Links, addresses, routes and settings."""

    def ask(*words: str) -> Any:
        return told(json.loads(command("ip", "-json", *words, netns=netns) or "[]"))

    names = [link["ifname"] for link in json.loads(command("ip", "-json", "link", netns=netns))]
    patterns = [pattern.format(name) for name in names if name != "lo" for pattern in _SYSCTLS]
    settings = command("sh", "-c", f"cd /proc/sys/net; grep . {' '.join(patterns)} ipv4/ip_forward", netns=netns)
    seen = {
        "links": ask("-details", "link"),
        "addresses": ask("address"),
        "routes": [ask("-4", "route"), ask("-6", "route", "show", "table", "main")],
        "settings": _VETH.sub("veth*", settings).splitlines(),
    }
    return list(flat(seen, "host" if netns is None else "pod"))


def files_of(lab: Lab) -> dict[str, bytes]:
    return {str(path.relative_to(lab.ips)): path.read_bytes() for path in lab.ips.rglob("*") if path.is_file()}


_CASES: dict[str, Callable[[Lab], tuple[str, list[dict[str, Any]]]]] = {
    "two families": lambda lab: ("1.0.0", [lab.bridge()]),
    "every option": lambda lab: (
        "1.0.0",
        [
            lab.bridge(
                routes=False, isDefaultGateway=True, mtu=1400, hairpinMode=True, dns={"nameservers": ["192.0.2.1"]}
            ),
            _PORTMAP,
        ],
    ),
    "no gateway": lambda lab: ("0.4.0", [lab.bridge(isGateway=False, ipMasq=False, promiscMode=True)]),
    "one range": lambda lab: ("0.3.1", [{**lab.bridge(), "ipam": _one_range(lab)}, {"type": "loopback"}]),
}


def _one_range(lab: Lab) -> dict[str, Any]:
    return {
        "type": "host-local",
        "dataDir": str(lab.ips),
        "subnet": "10.201.0.0/28",
        "rangeStart": "10.201.0.5",
        "rangeEnd": "10.201.0.6",
        "gateway": "10.201.0.14",
        "routes": [{"dst": "192.0.2.0/24"}, {"dst": "198.51.100.0/24", "gw": "10.201.0.13"}],
    }


@pytest.mark.parametrize("case", _CASES)
async def test_both_ways_leave_the_same(tmp_path: Path, case: str) -> None:
    seen = []
    for way in ((), OWN_PLUGINS):
        with own_host():
            (directory := tmp_path / ("own" if way else "programs")).mkdir()
            with closing(Lab(directory, way)) as lab:
                version, plugins = _CASES[case](lab)
                lab.configure(*plugins, version=version)
                namespaces = [lab.namespaces.create() for _ in range(2)]
                results = []
                for number, netns in enumerate(namespaces):
                    ports = [PortMapping(8080 + number, 80)]
                    given = await lab.network.set_up(pod(str(number)), netns, port_mappings=ports)
                    text = _VETH.sub("veth*", _MAC.sub("MAC", json.dumps(given.result))).replace(str(netns), "NETNS")
                    results.append((given[:2], json.loads(text)))
                states = [state_of(netns) for netns in (None, *namespaces)]
                attached = files_of(lab)
                for number, netns in enumerate(namespaces):
                    await lab.network.tear_down(pod(str(number)), netns)
                seen.append((results, [*states, state_of(None)], attached, files_of(lab)))

    programs, own = seen
    assert own[0] == programs[0]
    for mine, theirs in zip(own[1], programs[1], strict=True):
        assert set(mine) ^ set(theirs) == set()
    assert own[2:] == programs[2:]
