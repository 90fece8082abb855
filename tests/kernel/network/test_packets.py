"""Where packets of pods go, with Debian's plugins and with those that run in the daemon."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from threading import Thread

import pytest

from pyctrd.network.netns import inside
from pyctrd.network.pod_network import PortMapping
from support.pod_networks import OWN_PLUGINS, REAL_PLUGINS, Lab, command, pod

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not (REAL_PLUGINS / "bridge").exists(), reason="containernetworking-plugins is not installed"),
]

_PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
_HOST, _OUTSIDE = {4: "192.0.2.1", 6: "2001:db8::1"}, {4: "192.0.2.2", 6: "2001:db8::2"}
_BRIDGE = {4: "10.201.0.1", 6: "fd00:201::1"}
_POD = {4: "10.201.0.2", 6: "fd00:201::2"}


class Neighbourhood:
    """A host with a pod, and a machine beside the host that knows no way to pods. Servers tell clients who they are."""

    def __init__(self, lab: Lab, stack: ExitStack) -> None:
        self.lab, self._stack = lab, stack
        self.pod, self.outside = lab.namespaces.create(), lab.namespaces.create()
        command("ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth9")
        command("ip", "link", "set", "eth9", "netns", self.outside)
        for netns, name, addresses in ((None, "up0", _HOST), (self.outside, "eth9", _OUTSIDE)):
            command("ip", "address", "add", f"{addresses[4]}/24", "dev", name, netns=netns)
            command("ip", "address", "add", f"{addresses[6]}/64", "dev", name, "nodad", netns=netns)
            command("ip", "link", "set", name, "up", netns=netns)

    async def attach(self, *mappings: PortMapping) -> None:
        self.lab.configure(self.lab.bridge(hairpinMode=True), _PORTMAP)
        await self.lab.network.set_up(pod(), self.pod, port_mappings=mappings)

    def serve(self, netns: Path, port: int) -> None:
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            server = inside(netns, partial(socket.socket, family, socket.SOCK_STREAM))
            if family == socket.AF_INET6:
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((address, port))
            server.listen()
            thread = Thread(target=_answer, args=(server,))
            thread.start()
            self._stack.callback(thread.join)
            self._stack.callback(server.shutdown, socket.SHUT_RDWR)


def _answer(server: socket.socket) -> None:
    with server:
        while True:
            try:
                connection, peer = server.accept()
            except OSError:  # shut down
                return
            with connection:
                connection.sendall(peer[0].encode())


def ask(netns: Path | None, address: str, port: int) -> str:
    """Return as whom the server at an address sees who connects from `netns`, the host's if it is None."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def connect() -> str:
        with socket.socket(family, socket.SOCK_STREAM) as client:
            client.settimeout(20)
            client.connect((address, port))
            return client.recv(100).decode()

    return connect() if netns is None else inside(netns, connect)


def refuses(netns: Path | None, address: str, port: int) -> bool:
    try:
        ask(netns, address, port)
    except ConnectionRefusedError:
        return True
    return False


@pytest.fixture(params=[(), OWN_PLUGINS], ids=["programs", "own"])
def place(host: None, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Neighbourhood]:
    with closing(Lab(tmp_path, request.param)) as lab, ExitStack() as stack:
        yield Neighbourhood(lab, stack)


async def test_a_port_of_the_host_leads_to_the_pod_from_everywhere(place: Neighbourhood) -> None:
    await place.attach(PortMapping(8080, 80))
    place.serve(place.pod, 80)

    for family in (4, 6):
        assert ask(place.outside, _HOST[family], 8080) == _OUTSIDE[family]
        assert ask(None, _HOST[family], 8080) == _HOST[family]
        # The pod reaches itself by the host's port, and sees the bridge, not itself.
        assert ask(place.pod, _HOST[family], 8080) == _BRIDGE[family]
    assert ask(None, "127.0.0.1", 8080) == _BRIDGE[4]
    assert refuses(place.outside, _HOST[4], 8081)

    await place.lab.network.tear_down(pod(), place.pod)
    assert refuses(place.outside, _HOST[4], 8080)
    assert refuses(None, _HOST[6], 8080)


async def test_a_port_of_one_address_is_one_of_that_only(place: Neighbourhood) -> None:
    await place.attach(PortMapping(8080, 80, host_ip=_HOST[4]), PortMapping(8081, 80, host_ip="0.0.0.0"))
    place.serve(place.pod, 80)

    assert ask(place.outside, _HOST[4], 8080) == _OUTSIDE[4]
    assert ask(place.outside, _HOST[4], 8081) == _OUTSIDE[4]
    assert refuses(None, "127.0.0.1", 8080)
    assert refuses(place.outside, _HOST[6], 8080)
    assert refuses(place.outside, _HOST[6], 8081)


async def test_elsewhere_a_pod_is_the_host_and_at_home_it_is_itself(place: Neighbourhood) -> None:
    await place.attach()
    other = place.lab.namespaces.create()
    await place.lab.network.set_up(pod("two"), other)
    place.serve(place.outside, 70)
    place.serve(other, 80)

    for family in (4, 6):
        assert ask(place.pod, _OUTSIDE[family], 70) == _HOST[family]
    assert ask(place.pod, "10.201.0.3", 80) == _POD[4]
    assert ask(place.pod, "fd00:201::3", 80) == _POD[6]


async def test_rules_of_others_stay(place: Neighbourhood) -> None:
    """Two pods, of which one goes; and a table that is not ours."""
    command("nft", "add table inet theirs; add chain inet theirs mine")
    await place.attach(PortMapping(8080, 80))
    other = place.lab.namespaces.create()
    await place.lab.network.set_up(pod("two"), other, port_mappings=[PortMapping(8081, 80)])
    place.serve(other, 80)

    await place.lab.network.tear_down(pod(), place.pod)

    assert ask(place.outside, _HOST[4], 8081) == _OUTSIDE[4]
    assert refuses(place.outside, _HOST[4], 8080)
    assert "chain mine" in command("nft", "list", "table", "inet", "theirs")

    await place.lab.network.tear_down(pod("two"), other)
    assert "table inet" not in command("nft", "list", "tables").replace("table inet theirs", "")


async def test_datagrams_find_a_pod_that_came_later(place: Neighbourhood) -> None:
    """Who has sent to the port before is remembered by the kernel, as somebody who wants the host."""
    await place.attach(PortMapping(8081, 80))  # from now on it keeps track
    later = place.lab.namespaces.create()
    with inside(place.outside, partial(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)) as client:
        client.settimeout(20)
        client.bind((_OUTSIDE[4], 5000))
        client.sendto(b"too early", (_HOST[4], 8080))
        await place.lab.network.set_up(pod("two"), later, port_mappings=[PortMapping(8080, 80, "UDP")])
        with inside(later, partial(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)) as server:
            server.settimeout(20)
            server.bind(("0.0.0.0", 80))
            client.sendto(b"now", (_HOST[4], 8080))
            assert server.recvfrom(100) == (b"now", (_OUTSIDE[4], 5000))
            server.sendto(b"answer", (_OUTSIDE[4], 5000))
        assert client.recvfrom(100) == (b"answer", (_HOST[4], 8080))
