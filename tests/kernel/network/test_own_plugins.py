"""The plugins that run in the daemon do what Debian's programs do: to the kernel, to files, to packets."""

import asyncio
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pyctrd.network.errors import PluginError
from pyctrd.network.pod_network import Bandwidth, PortMapping
from support.pod_networks import OWN_PLUGINS, REAL_PLUGINS, Lab, command, own_host, pod

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not (REAL_PLUGINS / "bridge").exists(), reason="containernetworking-plugins is not installed"),
]

_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_VETH = re.compile(r"veth[0-9a-f]{8}")
_FIREWALLS = ("iptables", "ip6tables")
_PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
# What a kernel, a clock or chance decides, and what an interface's queue may hold.
_UNTOLD = frozenset(
    {"ifalias", "ifindex", "link_index", "link_netnsid", "address", "valid_life_time", "preferred_life_time", "txqlen"}
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
    queues = json.loads(command("tc", "-json", "qdisc", netns=netns))
    filters = [command("tc", "-json", "filter", "show", "dev", name, "ingress", netns=netns) for name in names]
    saved = [command(f"{name}-save", "-t", "filter", netns=netns).splitlines() for name in _FIREWALLS]
    seen = {
        "queues": told(sorted(queues, key=lambda one: (_VETH.sub("", one["dev"]), one["kind"]))),
        "filters": [told(_first_actions(json.loads(text or "[]"))) for text in filters],
        "firewall": [[line for line in lines if line[0] != "#"] for lines in saved],
        "links": ask("-details", "link"),
        "addresses": ask("address"),
        "routes": [ask("-4", "route"), ask("-6", "route", "show", "table", "main")],
        "settings": _VETH.sub("veth*", settings).splitlines(),
    }
    return list(flat(seen, "host" if netns is None else "pod"))


def _first_actions(filters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Filters without what is behind the action that takes the packet: the program's second one never happens."""
    for one in filters:
        for action in one.get("options", {}).pop("actions", [])[:1]:
            one["takes"] = {key: value for key, value in action.items() if key not in ("index", "ref", "bind")}
    return filters


def files_of(lab: Lab) -> dict[str, bytes]:
    return {str(path.relative_to(lab.ips)): path.read_bytes() for path in lab.ips.rglob("*") if path.is_file()}


_LIMITS = {"ingressRate": 10**7, "ingressBurst": 10**6, "egressRate": 2 * 10**7, "egressBurst": 3 * 10**6}
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
    "limits": lambda lab: ("1.0.0", [lab.bridge(mtu=1400), {"type": "bandwidth", **_LIMITS}]),
    "one limit": lambda lab: ("0.4.0", [lab.bridge(), {"type": "bandwidth", "egressRate": 64000, "egressBurst": 8000}]),
    "no limit": lambda lab: ("1.0.0", [lab.bridge(), {"type": "bandwidth"}]),
    "firewall": lambda lab: ("1.0.0", [lab.bridge(), {"type": "firewall"}]),
    "own chain": lambda lab: (
        "0.4.0",
        [lab.bridge(), {"type": "firewall", "backend": "iptables", "iptablesAdminChainName": "MINE"}],
    ),
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


# What differs from another case in little.
_LONG = ("one limit", "no limit", "own chain")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.full if case in _LONG else ()) for case in _CASES]
)
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
                    ports, limits = [PortMapping(8080 + number, 80)], Bandwidth(10**7, 2 * 10**7)
                    given = await lab.network.set_up(pod(str(number)), netns, port_mappings=ports, bandwidth=limits)
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


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("bridge", {"vlan": 7}),
        ("bridge", {}),
        ("portmap", {"markMasqBit": 5}),
        ("portmap", {}),
        ("bandwidth", {"unshapedSubnets": ["10.0.0.0/8"]}),
        ("bandwidth", {}),
        ("firewall", {"ingressPolicy": "same-bridge"}),
        ("firewall", {"backend": "firewalld"}),
        ("firewall", {}),
    ],
)
async def test_what_we_do_not_know_is_the_programs(lab: Lab, kind: str, changed: dict[str, Any]) -> None:
    """And what we do is ours: the program here says no to everything."""
    lab.in_process = OWN_PLUGINS
    lab.network = lab.started()
    program = lab.programs / kind
    program.write_text('#!/bin/sh\necho \'{"code": 7, "msg": "by the program"}\'; exit 1\n')
    program.chmod(0o755)
    plugins = [lab.bridge(), _PORTMAP, {"type": "bandwidth", **_LIMITS}, {"type": "firewall"}]
    lab.configure(*({**one, **(changed if one["type"] == kind else {})} for one in plugins))
    netns = lab.namespaces.create()

    if changed:
        with pytest.raises(PluginError, match=rf'plugin type="{kind}" failed \(add\): by the program \(code 7\)'):
            await lab.network.set_up(pod(), netns)
    else:
        assert (await lab.network.set_up(pod(), netns)).primary == "10.201.0.2"


async def test_addresses_may_come_from_a_program(lab: Lab) -> None:
    lab.in_process = OWN_PLUGINS
    lab.network = lab.started()
    lab.configure({**lab.bridge(), "ipam": {"type": "static", "addresses": [{"address": "10.201.0.77/24"}]}})

    assert (await lab.network.set_up(pod(), lab.namespaces.create())).primary == "10.201.0.77"


async def test_whoever_did_it_undoes_it(lab: Lab) -> None:
    lab.configure(lab.bridge(), _PORTMAP)
    first, second = lab.namespaces.create(), lab.namespaces.create()
    await lab.network.set_up(pod(), first, port_mappings=[PortMapping(8080, 80)])
    lab.in_process = OWN_PLUGINS
    await lab.started().set_up(pod("two"), second, port_mappings=[PortMapping(8081, 80)])
    assert lab.reserved() == {"10.201.0.2", "10.201.0.3", "fd00:201::2", "fd00:201::3"}

    await lab.started().tear_down(pod(), first)
    lab.in_process = ()
    await lab.started().tear_down(pod("two"), second)

    assert not lab.reserved()
    assert "8080" not in command("iptables-save")
    assert "pyctr_cni" not in command("nft", "list", "tables")


async def test_addresses_run_out_and_come_back(lab: Lab) -> None:
    lab.in_process = OWN_PLUGINS
    lab.network = lab.started()
    lab.configure({**lab.bridge(), "ipam": _one_range(lab)})
    for name in ("one", "two"):
        await lab.network.set_up(pod(name), lab.namespaces.create())

    with pytest.raises(PluginError, match=r"no IP addresses available in range set: 10.201.0.5-10.201.0.6"):
        await lab.network.set_up(pod("three"), lab.namespaces.create())
    await lab.network.tear_down(pod("one"), None)

    assert (await lab.network.set_up(pod("three"), lab.namespaces.create())).primary == "10.201.0.5"


async def test_a_check_finds_what_is_missing(lab: Lab) -> None:
    lab.in_process = OWN_PLUGINS
    lab.network = lab.started()
    lab.configure(lab.bridge(), _PORTMAP)
    netns = lab.namespaces.create()
    await lab.network.set_up(pod(), netns, port_mappings=[PortMapping(8080, 80)])
    await lab.network.check(pod())

    command("nft", "flush", "chain", "inet", "pyctr_cni", "host_ports")
    command("nft", "flush", "chain", "inet", "pyctr_cni", "postrouting")
    with pytest.raises(PluginError, match=r'plugin type="portmap" failed \(check\): rules of one are missing'):
        await lab.network.check(pod())
    command("ip", "address", "flush", "dev", "eth0", netns=netns)
    with pytest.raises(PluginError, match=r"eth0 has lost 10.201.0.2/24, fd00:201::2/64"):
        await lab.network.check(pod())
    command("ip", "link", "delete", "eth0", netns=netns)
    with pytest.raises(PluginError, match="eth0 is missing"):
        await lab.network.check(pod())


async def test_what_the_kernel_refuses_is_told_with_what_it_was_for(lab: Lab) -> None:
    lab.in_process = OWN_PLUGINS
    lab.network = lab.started()
    netns = lab.namespaces.create()
    command("ip", "link", "add", "labbr", "type", "veth")
    lab.configure(lab.bridge())
    with pytest.raises(PluginError, match=r'plugin type="bridge" failed \(add\): labbr is there and is no bridge'):
        await lab.network.set_up(pod(), netns)

    lab.configure(lab.bridge(bridge="a-name-that-is-too-long"))
    with pytest.raises(PluginError, match="cannot make bridge a-name-that-is-too-long: "):
        await lab.network.set_up(pod(), netns)

    command("ip", "link", "add", "eth0", "type", "veth", netns=netns)
    lab.configure(lab.bridge(bridge="other"))
    with pytest.raises(PluginError, match=f"there is an interface eth0 in {netns} already"):
        await lab.network.set_up(pod(), netns)
    assert not lab.reserved()


async def test_many_at_once_get_an_address_each(lab: Lab) -> None:
    """The first of them also make the bridge and the rules' table."""
    lab.in_process = OWN_PLUGINS
    lab.network = lab.started()
    lab.configure(lab.bridge(), _PORTMAP)
    names = [str(number) for number in range(8)]
    namespaces = {name: lab.namespaces.create() for name in names}

    async with asyncio.TaskGroup() as group:
        ports = {name: [PortMapping(8000 + int(name), 80)] for name in names}
        tasks = [
            group.create_task(lab.network.set_up(pod(name), namespaces[name], port_mappings=ports[name]))
            for name in names
        ]
    assert {task.result().primary for task in tasks} == {f"10.201.0.{number}" for number in range(2, 10)}
    assert command("nft", "list", "chain", "inet", "pyctr_cni", "prerouting").count("jump host_ports") == 1

    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(lab.network.tear_down(pod(name), namespaces[name]))
    assert not lab.reserved()
    assert "veth" not in command("ip", "link")


async def test_what_has_lost_its_record_is_collected(lab: Lab) -> None:
    """As after a power cut, which takes what was not yet on disk."""
    lab.in_process = OWN_PLUGINS
    lab.network = lab.started()
    lab.configure(lab.bridge(), _PORTMAP)
    for name, port in (("lost", 8080), ("kept", 8081)):
        await lab.network.set_up(pod(name), lab.namespaces.create(), port_mappings=[PortMapping(port, 80)])
    for record in (lab.directory / "records").glob("*-lost-*"):
        record.unlink()

    await lab.started().collect(["kept"])

    assert lab.reserved() == {"10.201.0.3", "fd00:201::3"}
    rules = command("nft", "list", "table", "inet", "pyctr_cni")
    assert "lost" not in rules
    assert "8080" not in rules
    assert "8081" in rules


@pytest.mark.parametrize(
    "wrong",
    [
        {"mtu": "large"},
        {"ipam": "host-local"},
        {"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.201.0.1/24"}]]}},
        {"ipam": {"type": "host-local", "ranges": [{"subnet": "10.201.0.0/24"}]}},
        {"ipam": {"type": "host-local", "subnet": "10.201.0.0/24", "rangeStart": "10.202.0.1"}},
        {"ipam": {"type": "host-local"}},
    ],
)
async def test_configurations_that_cannot_be_are_refused(lab: Lab, wrong: dict[str, Any]) -> None:
    lab.in_process = OWN_PLUGINS
    lab.network = lab.started()
    if isinstance(wrong.get("ipam"), dict):
        wrong = {"ipam": {**wrong["ipam"], "dataDir": str(lab.ips)}}
    lab.configure({**lab.bridge(), **wrong})

    with pytest.raises(
        PluginError, match=r'plugin type="(bridge|host-local)" failed \(add\): its configuration cannot be: '
    ):
        await lab.network.set_up(pod(), lab.namespaces.create())

    assert not lab.reserved()


_LIMITED = {"type": "bandwidth", "capabilities": {"bandwidth": True}}


def queues() -> dict[str, dict[str, Any]]:
    """The limits that there are on this host, by link."""
    found = json.loads(command("tc", "-json", "qdisc"))
    return {_VETH.sub("veth*", one["dev"]): one["options"] for one in found if one["kind"] == "tbf"}


async def test_a_pods_own_limits_hold_with_the_longest_burst_that_the_kernel_knows(lab: Lab) -> None:
    """Kubernetes knows no bursts, so they are without end: the program cuts off the upper bits."""
    lab.in_process = OWN_PLUGINS
    lab.network = lab.started()
    lab.configure(lab.bridge(), _LIMITED)
    netns = lab.namespaces.create()

    await lab.network.set_up(pod(), netns, bandwidth=Bandwidth(10**7, 2 * 10**7))

    found = sorted((one["rate"], one["burst"]) for one in queues().values())
    assert [rate for rate, _ in found] == [10**7 // 8, 2 * 10**7 // 8]
    assert 270 < found[0][1] / found[0][0] < 275  # seconds
    assert found[1][1] == pytest.approx((1 << 32) // 8, rel=0.001)
    await lab.network.tear_down(pod(), netns)
    assert queues() == {}


async def test_what_a_pod_sends_and_receives_is_as_fast_as_it_may_be(lab: Lab) -> None:
    lab.in_process = OWN_PLUGINS
    lab.network = lab.started()
    lab.configure(lab.bridge(), {"type": "bandwidth", **_LIMITS, "ingressRate": 8 * 10**6})
    netns = lab.namespaces.create()
    given = await lab.network.set_up(pod(), netns)
    # 2 MiB beyond the burst take two seconds at a million bytes in each.
    receive = "import socket; s = socket.create_server(('10.201.0.1', 700)); print('ready', flush=True)\n"
    receive += "import time; c, _ = s.accept(); t = time.monotonic(); n = 0\n"
    receive += "while d := c.recv(1 << 16): n += len(d)\nprint(n, time.monotonic() - t)"
    assert given.primary == "10.201.0.2"
    receive = receive.replace("10.201.0.1", given.primary)
    with subprocess.Popen(
        ["nsenter", f"--net={netns}", sys.executable, "-c", receive], stdout=subprocess.PIPE, text=True
    ) as receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
        with socket.create_connection((given.primary, 700)) as connection:
            connection.sendall(bytes(3 << 20))
        count, seconds = receiver.stdout.read().split()
    assert int(count) == 3 << 20
    assert float(seconds) > 1


async def test_a_check_finds_limits_and_rules_that_are_missing(lab: Lab) -> None:
    lab.in_process = OWN_PLUGINS
    lab.network = lab.started()
    lab.configure(lab.bridge(), {"type": "bandwidth", **_LIMITS}, {"type": "firewall"})
    await lab.network.set_up(pod(), lab.namespaces.create())
    await lab.network.check(pod())

    command("iptables", "-D", "CNI-FORWARD", "-s", "10.201.0.2/32", "-j", "ACCEPT")
    with pytest.raises(PluginError, match=r"a rule is missing: CNI-FORWARD -s 10.201.0.2/32 -j ACCEPT"):
        await lab.network.check(pod())
    device = next(name for name in queues() if name.startswith("bwp"))
    command("tc", "qdisc", "delete", "dev", device, "root")
    with pytest.raises(PluginError, match="what one sends is not limited any more"):
        await lab.network.check(pod())
    host_end = next(one["ifname"] for one in json.loads(command("ip", "-json", "link")) if "veth" in one["ifname"])
    command("tc", "qdisc", "delete", "dev", host_end, "root")
    with pytest.raises(PluginError, match="what one receives is not limited any more"):
        await lab.network.check(pod())


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"ingressRate": 1000}, "ingressRate and ingressBurst need each other"),
        ({"egressBurst": 1000}, "egressRate and egressBurst need each other"),
        ({"egressRate": "fast", "egressBurst": 1}, "its configuration cannot be"),
    ],
)
async def test_limits_that_cannot_be_are_refused(lab: Lab, limits: dict[str, Any], text: str) -> None:
    lab.in_process = OWN_PLUGINS
    lab.network = lab.started()
    lab.configure(lab.bridge(), {"type": "bandwidth", **limits})
    with pytest.raises(PluginError, match=text):
        await lab.network.set_up(pod(), lab.namespaces.create())
    assert not lab.reserved()


@pytest.mark.parametrize("first", [(), OWN_PLUGINS])
async def test_limits_and_rules_are_undone_by_either_way(lab: Lab, first: tuple[str, ...]) -> None:
    """A record that says otherwise is what a daemon has that was told to run programs meanwhile."""
    lab.in_process = first
    lab.network = lab.started()
    lab.configure(lab.bridge(ipMasq=False), {"type": "bandwidth", **_LIMITS}, {"type": "firewall"})
    netns = lab.namespaces.create()
    await lab.network.set_up(pod(), netns)
    assert "10.201.0.2" in command("iptables-save")
    record = next((lab.directory / "records").glob("*-one-*"))
    other = list(OWN_PLUGINS) if not first else []
    record.write_text(json.dumps({**json.loads(record.read_text()), "in_process": other}))

    await lab.started().tear_down(pod(), netns)

    assert "10.201.0.2" not in command("iptables-save")
    assert "fd00:201::2" not in command("ip6tables-save")
    assert "bwp" not in command("ip", "link")


async def test_rules_of_many_pods_at_once_are_all_there(lab: Lab) -> None:
    """While programs that are not ours add theirs."""
    lab.in_process = OWN_PLUGINS
    lab.network = lab.started()
    lab.configure(lab.bridge(), {"type": "firewall"})
    namespaces = [lab.namespaces.create() for _ in range(6)]
    async with asyncio.TaskGroup() as group:
        for number, netns in enumerate(namespaces):
            group.create_task(lab.network.set_up(pod(str(number)), netns))
    saved = command("iptables-save", "-t", "filter")
    assert saved.count("-j CNI-FORWARD") == saved.count("-j CNI-ADMIN") == 1
    assert all(f"-A CNI-FORWARD -s 10.201.0.{number}/32 -j ACCEPT" in saved for number in range(2, 8))


async def test_what_limited_a_pod_that_has_lost_its_record_is_collected(lab: Lab) -> None:
    lab.in_process = OWN_PLUGINS
    lab.network = lab.started()
    lab.configure(lab.bridge(), {"type": "bandwidth", **_LIMITS})
    for name in ("lost", "kept"):
        await lab.network.set_up(pod(name), lab.namespaces.create())
    for record in (lab.directory / "records").glob("*-lost-*"):
        record.unlink()

    await lab.started().collect(["kept"])

    links = json.loads(command("ip", "-json", "link"))
    assert [one["ifalias"] for one in links if one["ifname"].startswith("bwp")] == ["pyctr_cni labnet kept"]
