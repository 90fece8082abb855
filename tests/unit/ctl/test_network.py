"""`pyctr network init`."""

import ipaddress
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pyctr.cli import root


def init(directory: Path, *options: str) -> Result:
    return CliRunner().invoke(root, ["network", "init", "--directory", str(directory), *options])


def test_it_writes_a_network_for_both_families(tmp_path: Path) -> None:
    result = init(tmp_path / "net.d")

    path = tmp_path / "net.d" / "10-pyctr.conflist"
    assert result.output == f"{path}\n"
    conflist = json.loads(path.read_text())
    assert [plugin["type"] for plugin in conflist["plugins"]] == ["bridge", "portmap", "loopback"]
    subnets = [ipaddress.ip_network(one[0]["subnet"]) for one in conflist["plugins"][0]["ipam"]["ranges"]]
    assert [subnet.version for subnet in subnets] == ([4, 6] if Path("/proc/net/if_inet6").exists() else [4])
    assert all(subnet.is_private for subnet in subnets)


def test_what_is_there_stays_unless_it_is_forced(tmp_path: Path) -> None:
    (tmp_path / "05-flannel.conflist").write_text("theirs")

    refused = init(tmp_path)
    assert refused.exit_code == 1
    assert "has 05-flannel.conflist already; --force" in refused.output
    assert [path.name for path in tmp_path.iterdir()] == ["05-flannel.conflist"]

    forced = init(tmp_path, "--force", "--subnet", "192.0.2.0/24")
    assert "goes on using 05-flannel.conflist, which comes first" in forced.output
    assert (tmp_path / "05-flannel.conflist").read_text() == "theirs"
    ours = tmp_path / "10-pyctr.conflist"
    ipam = json.loads(ours.read_text())["plugins"][0]["ipam"]
    assert (ipam["ranges"], ipam["routes"]) == ([[{"subnet": "192.0.2.0/24"}]], [{"dst": "0.0.0.0/0"}])

    assert init(tmp_path).exit_code == 1
    assert json.loads(ours.read_text())["plugins"][0]["ipam"] == ipam


@pytest.mark.parametrize(
    ("subnet", "message"),
    [("10.0.0.1/24", "has host bits set"), ("here", "does not appear to be"), ("10.0.0.0/30", "too small for pods")],
)
def test_subnets_that_cannot_be(tmp_path: Path, subnet: str, message: str) -> None:
    result = init(tmp_path, "--subnet", subnet)

    assert result.exit_code == 1
    assert message in result.output
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert f"pyctr: {tmp_path}/file: File exists" in init(tmp_path / "file").output
