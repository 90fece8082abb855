"""Network devices that move into a container."""

import contextlib
import subprocess
import uuid
from collections.abc import Iterator

import pytest

from pyctr_shim.oci.errors import OciError
from support.oci_bundle import Lab, Spec

pytestmark = pytest.mark.root
SHOW = "cat /sys/class/net/{0}/mtu /sys/class/net/{0}/address /sys/class/net/{0}/flags; busybox ip addr show {0}"


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def device() -> Iterator[str]:
    """A virtual device with an address of each family."""
    name = f"pt{uuid.uuid4().hex[:10]}"
    try:
        ip("link", "add", name, "address", "02:11:22:33:44:55", "mtu", "1400", "type", "veth", "peer", f"{name}p")
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no veth can be made: {error}")
    ip("addr", "add", "192.0.2.7/24", "dev", name)
    ip("addr", "add", "2001:db8::7/64", "dev", name, "nodad")
    yield name
    with contextlib.suppress(subprocess.CalledProcessError):  # gone with the container's network namespace
        ip("link", "del", f"{name}p")


def moving(lab: Lab, devices: dict[str, dict[str, str]], script: str) -> Spec:
    spec = lab.spec("sh", "-c", script)
    spec["linux"]["netDevices"] = devices
    return spec


@pytest.mark.parametrize(("wanted", "name"), [({}, None), ({"name": "eth7"}, "eth7"), ({"name": "eth%d"}, "eth0")])
def test_a_device_keeps_its_address_and_comes_up(lab: Lab, device: str, wanted: dict[str, str], name: str) -> None:
    output = lab.run(moving(lab, {device: wanted}, SHOW.format(name or device))).output

    lines = output.splitlines()
    assert lines[:2] == ["1400", "02:11:22:33:44:55"]
    assert int(lines[2], 16) & 1  # up
    assert "inet 192.0.2.7/24" in output
    assert "inet6 2001:db8::7/64 scope global" in output


def test_into_a_user_namespace(lab: Lab, device: str) -> None:
    spec = moving(lab, {device: {"name": "eth0"}}, SHOW.format("eth0"))
    spec["linux"]["namespaces"].append({"type": "user"})
    spec["linux"]["uidMappings"] = spec["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 100_000, "size": 1000}]

    assert "inet 192.0.2.7/24" in lab.run(spec).output


def test_into_a_joined_network_namespace(lab: Lab, device: str) -> None:
    other = lab.running()
    spec = moving(lab, {device: {"name": "eth0"}}, SHOW.format("eth0"))
    for item in spec["linux"]["namespaces"]:
        if item["type"] == "network":
            item["path"] = f"/proc/{other.pid}/ns/net"

    assert "inet 192.0.2.7/24" in lab.run(spec).output


def test_a_device_that_is_not_there_is_named(lab: Lab) -> None:
    with pytest.raises(OciError, match=r"linux\.netDevices: nosuch0: "):
        lab.create(moving(lab, {"nosuch0": {}}, "true"))


def test_a_name_that_is_taken_is_refused(lab: Lab, device: str) -> None:
    with pytest.raises(OciError, match=rf"linux\.netDevices: {device}: File exists"):
        lab.create(moving(lab, {device: {"name": "lo"}}, "true"))

    assert "192.0.2.7" in ip("addr", "show", device)
