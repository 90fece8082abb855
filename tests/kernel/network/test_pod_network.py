"""Pods that are attached to a network by Debian's plugins."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pyctr.cli import root
from pyctrd.network.netns import is_open
from support.pod_networks import OWN_PLUGINS, REAL_PLUGINS, Lab, command, pod

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not (REAL_PLUGINS / "bridge").exists(), reason="containernetworking-plugins is not installed"),
]


async def test_a_pod_is_attached_and_detached_without_a_trace(lab: Lab) -> None:
    lab.configure(lab.bridge())
    netns = lab.namespaces.create()

    addresses = await lab.network.set_up(pod(), netns)
    await lab.network.check(pod())

    assert (addresses.primary, addresses.additional) == ("10.201.0.2", ("fd00:201::2",))
    assert "inet 10.201.0.2/24" in command("ip", "addr", "show", "eth0", netns=netns)
    assert "<LOOPBACK,UP" in command("ip", "link", "show", "lo", netns=netns)
    assert await lab.started().addresses(pod()) == addresses
    assert lab.reserved() == {"10.201.0.2", "fd00:201::2"}

    await lab.started().tear_down(pod(), netns)
    lab.namespaces.remove(netns)

    assert not lab.reserved()
    assert not list(lab.records)
    assert "veth" not in command("ip", "link")
    assert "10.201.0.2" not in command("iptables-save")
    assert str(netns) not in Path("/proc/self/mounts").read_text()


async def test_addresses_come_back_when_the_namespace_is_gone(lab: Lab) -> None:
    """As after a reboot: nothing is left of the pod but what is on disk."""
    lab.configure(lab.bridge())
    netns = lab.namespaces.create()
    await lab.network.set_up(pod(), netns)
    lab.namespaces.remove(netns)

    await lab.started().tear_down(pod(), netns)
    await lab.network.tear_down(pod(), None)

    assert not is_open(netns)
    assert not lab.reserved()
    assert not list(lab.records)


async def test_what_belongs_to_no_sandbox_is_collected(lab: Lab) -> None:
    lab.configure(lab.bridge())
    for name in ("kept", "lost"):
        await lab.network.set_up(pod(name), lab.namespaces.create())

    await lab.started().collect(["kept"])

    assert lab.reserved() == {"10.201.0.2", "fd00:201::2"}
    assert [one.container for one in lab.records] == ["kept"]


async def test_what_is_attached_during_a_collection_stays(lab: Lab) -> None:
    """Whoever asks for it has not heard of it yet."""
    lab.configure(lab.bridge())
    await lab.network.set_up(pod(), lab.namespaces.create())

    await lab.network.collect([])
    assert lab.reserved() == {"10.201.0.2", "fd00:201::2"}

    await lab.started().collect([])
    assert not lab.reserved()


async def test_an_attachment_that_is_asked_for_again_is_the_same(lab: Lab) -> None:
    lab.configure(lab.bridge())
    netns = lab.namespaces.create()

    first = await lab.network.set_up(pod(), netns)

    assert await lab.started().set_up(pod(), netns) == first
    other = await lab.started().set_up(pod(), lab.namespaces.create())
    assert other.primary == "10.201.0.3"
    assert lab.reserved() == {"10.201.0.3", "fd00:201::3"}


@pytest.mark.parametrize("in_process", [(), OWN_PLUGINS], ids=["programs", "own"])
async def test_the_network_that_pyctr_writes_works(host: None, tmp_path: Path, in_process: tuple[str, ...]) -> None:
    lab = Lab(tmp_path, in_process)
    written = CliRunner().invoke(root, ["network", "init", "--directory", str(lab.configurations)])
    assert written.exit_code == 0, written.output
    path = Path(written.output.strip())
    conflist = json.loads(path.read_text())
    conflist["plugins"][0]["ipam"]["dataDir"] = str(lab.ips)
    path.write_text(json.dumps(conflist))
    netns = lab.namespaces.create()
    try:
        addresses = await lab.network.set_up(pod(), netns)

        assert addresses.primary == "10.204.0.2"
        assert [address[:2] for address in addresses.additional] == ["fd"]
        for address in ("10.204.0.1", addresses.additional[0]):
            command("busybox", "ping", "-c1", "-W9", address, netns=netns)
        await lab.network.tear_down(pod(), netns)
    finally:
        lab.close()
