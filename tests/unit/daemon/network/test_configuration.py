"""Which network is chosen, and what plugins are told of a pod."""

import json
from pathlib import Path
from typing import Any

import pytest

from pyctrd.network.configuration import Configuration, parse
from pyctrd.network.errors import NetworkNotReady
from pyctrd.network.pod_network import Bandwidth, Dns, PortMapping, _runtime


def network(**more: Any) -> str:
    return json.dumps({"name": "net", "cniVersion": "1.0.0", "plugins": [{"type": "bridge"}], **more})


def test_the_first_usable_file_counts_and_changes_are_seen(tmp_path: Path) -> None:
    configuration = Configuration(tmp_path / "net.d")
    with pytest.raises(NetworkNotReady, match=r"no network config found in .*net.d: cni plugin not initialized"):
        configuration.network()
    (tmp_path / "net.d").mkdir()
    files = {
        "05-readme.txt": network(name="no-network"),
        "10-broken.conflist": "{",
        "20-old.conf": json.dumps({"name": "old", "type": "bridge", "bridge": "br0"}),
        "30-new.conflist": network(name="new"),
    }
    for name, text in files.items():
        (tmp_path / "net.d" / name).write_text(text)

    old = configuration.network()
    assert (old.name, old.version, old.plugins) == ("old", "0.1.0", ({"type": "bridge", "bridge": "br0"},))

    (tmp_path / "net.d" / "20-old.conf").unlink()
    assert configuration.network().name == "new"
    (tmp_path / "net.d" / "10-broken.conflist").write_text(network(name="mended"))
    assert configuration.network().name == "mended"


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ({"cniVersion": "0.4.0"}, "0.4.0"),
        ({"cniVersions": ["1.0.0", "1.1.0", "7.0.0"]}, "1.1.0"),
        ({"cniVersion": ""}, "0.1.0"),
    ],
)
def test_the_newest_version_that_is_allowed_and_known_is_spoken(said: dict[str, Any], version: str) -> None:
    assert parse(network(**said)).version == version


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        (network(name="../escape"), '"name" must be'),
        (network(name=""), '"name" must be'),
        (network(plugins=[]), '"plugins" is not a list'),
        (network(plugins=[{"type": "../../bin/sh"}]), 'a "type" that is a program\'s name'),
        (network(plugins=["bridge"]), 'a "type" that is a program\'s name'),
        (network(cniVersion="2.0.0"), '"cniVersion" 2.0.0 is none of'),
    ],
)
def test_files_that_cannot_be_used_say_why(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_a_network_survives_being_written_down() -> None:
    written = network(disableCheck=True, disableGC="true")

    assert parse(json.dumps(parse(written).document())) == parse(written)
    assert (parse(written).disable_check, parse(written).disable_gc) == (True, True)


def test_capabilities_get_only_what_there_is() -> None:
    assert _runtime((), Bandwidth(), Dns(), "", {}) == {}

    told = _runtime(
        [PortMapping(8080, 80, "TCP"), PortMapping(0, 81)],
        Bandwidth(ingress=1000),
        Dns(("192.0.2.1",)),
        "/pods",
        {"a": "b"},
    )

    assert told == {
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}],
        "bandwidth": {"ingressRate": 1000, "ingressBurst": (1 << 32) - 1},
        "dns": {"servers": ["192.0.2.1"], "searches": [], "options": []},
        "cgroupPath": "/pods",
        "io.kubernetes.cri.pod-annotations": {"a": "b"},
    }
