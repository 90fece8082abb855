"""What plugins of all ages answer."""

from typing import Any

import pytest

from pyctrd.core.pod_addresses import Preference, ordered
from pyctrd.network.results import VERSIONS, Result, parse, render

_OLDEST = {
    "cniVersion": "0.2.0",
    "ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
    "ip6": {"ip": "fd00::2/64"},
    "dns": {"nameservers": ["10.0.0.53"]},
}
_MIDDLE = {
    "cniVersion": "0.4.0",
    "interfaces": [{"name": "br0", "mac": "02:00:00:00:00:01"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
    "ips": [
        {"version": "4", "interface": 1, "address": "10.0.0.2/24", "gateway": "10.0.0.1"},
        {"version": "6", "interface": 1, "address": "fd00::2/64"},
    ],
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {"nameservers": ["10.0.0.53"]},
}
_NEW = {
    **_MIDDLE,
    "cniVersion": "1.0.0",
    "ips": [
        {"interface": 1, "address": "10.0.0.2/24", "gateway": "10.0.0.1"},
        {"interface": 1, "address": "fd00::2/64"},
    ],
}
_NEWEST = {
    **_NEW,
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "br0", "mtu": 1400}, {"name": "eth0", "sandbox": "/run/netns/x", "mtu": 1400}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1", "mtu": 1300, "priority": 5}],
}


@pytest.mark.parametrize("document", [_OLDEST, _MIDDLE, _NEW, _NEWEST], ids=lambda document: document["cniVersion"])
def test_a_result_is_the_same_after_reading_and_writing(document: dict[str, Any]) -> None:
    result = parse(document, "1.1.0")

    assert render(result, document["cniVersion"]) == document
    assert result.of_interface("eth0") == ["10.0.0.2", "fd00::2"]


@pytest.mark.parametrize("version", VERSIONS)
def test_addresses_and_routes_survive_each_version(version: str) -> None:
    result = parse(_MIDDLE, "0.4.0")

    again = parse(render(result, version), version)

    assert [one.address for one in again.addresses] == [one.address for one in result.addresses]
    assert (again.routes, again.dns) == (result.routes, result.dns)


def test_addresses_of_other_interfaces_are_not_the_pods() -> None:
    ips = [{"interface": place, "address": f"10.0.0.{abs(place)}/24"} for place in (0, 1, 2, 9, -3)] + [
        {"address": "10.0.0.7/24"}
    ]
    interfaces = [{"name": "eth0"}, {"name": "eth0", "sandbox": "/x"}, {"name": "net1", "sandbox": "/x"}]

    assert parse({"ips": ips, "interfaces": interfaces}, "1.0.0").of_interface("eth0") == ["10.0.0.1", "10.0.0.7"]


@pytest.mark.parametrize(
    "document",
    [{"ips": [{"address": "10.0.0.300/24"}]}, {"ips": [{}]}, {"ips": 7}, {"interfaces": ["eth0"]}, {"routes": [{}]}],
)
def test_what_is_no_result_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="it is no CNI result"):
        parse(document, "1.0.0")


def test_an_empty_result_is_one() -> None:
    assert parse({}, "1.0.0") == Result()


@pytest.mark.parametrize(
    ("preference", "expected"),
    [
        (Preference.IPV4, ["10.0.0.1", "fd00::1", "fd00::2", "10.0.0.2"]),
        (Preference.IPV6, ["fd00::1", "fd00::2", "10.0.0.1", "10.0.0.2"]),
        (Preference.CNI, ["fd00::1", "fd00::2", "10.0.0.1", "10.0.0.2"]),
    ],
)
def test_the_preferred_address_comes_first(preference: Preference, expected: list[str]) -> None:
    assert ordered(["fd00::1", "fd00::2", "10.0.0.1", "10.0.0.2"], preference) == expected
    assert ordered(["fd00::1"], preference) == ["fd00::1"]
    assert ordered([], preference) == []
