"""What CDI devices change in an OCI spec."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pyctr_wire.errors import FailedPrecondition
from pyctr_wire.oci import default_spec
from pyctrd.cdi.edits import apply


@pytest.fixture
def spec() -> dict[str, Any]:
    """A container's, whose user is 1000:0."""
    spec = default_spec.default_spec()
    spec["process"] = default_spec.default_process() | {"env": ["PATH=/bin", "A=1"]}
    spec["process"]["user"] = {"uid": 1000, "gid": 0, "additionalGids": [0]}
    spec["mounts"] = [{"destination": place, "type": "tmpfs", "source": "x", "options": []} for place in ("/a/b", "/c")]
    return spec


def test_variables_replace_those_that_are_there(spec: dict[str, Any]) -> None:
    apply(spec, [{"env": ["A=2", "B=1"]}, {"env": ["B=2"]}, {}])
    assert spec["process"]["env"] == ["PATH=/bin", "A=2", "B=2"]


def test_a_node_is_as_this_machine_has_it_unless_the_file_says_so(spec: dict[str, Any]) -> None:
    rules = len(spec["linux"]["resources"]["devices"])
    said = {"path": "/dev/said", "type": "b", "major": 7, "minor": 9, "fileMode": 0o660, "uid": 5, "gid": 6}
    nodes = [{"path": "/dev/zero"}, {"path": "/dev/other", "hostPath": "/dev/full", "permissions": "r"}, said]
    apply(spec, [{"deviceNodes": nodes}, {"deviceNodes": [{"path": "/dev/zero", "hostPath": "/dev/null"}]}])
    assert spec["linux"]["devices"] == [
        {"path": "/dev/other", "type": "c", "major": 1, "minor": 7, "uid": 1000},
        said,
        {"path": "/dev/zero", "type": "c", "major": 1, "minor": 3, "uid": 1000},
    ]
    assert spec["linux"]["resources"]["devices"][rules:] == [
        {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
        {"allow": True, "type": "c", "major": 1, "minor": 7, "access": "r"},
        {"allow": True, "type": "b", "major": 7, "minor": 9, "access": "rwm"},
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
    ]


def test_a_pipe_has_neither_numbers_nor_a_rule(spec: dict[str, Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    rules = len(spec["linux"]["resources"]["devices"])
    apply(spec, [{"deviceNodes": [{"path": "/dev/pipe", "hostPath": str(tmp_path / "pipe")}]}])
    assert spec["linux"]["devices"] == [{"path": "/dev/pipe", "type": "p", "uid": 1000}]
    assert len(spec["linux"]["resources"]["devices"]) == rules


@pytest.mark.parametrize(
    ("node", "complaint"),
    [
        ({"path": "/dev/no-such-card"}, "device node /dev/no-such-card: No such file or directory: is its driver"),
        ({"path": "/etc/passwd"}, "device node /etc/passwd: it is no device node"),
        ({"path": "/dev/null", "type": "b"}, "device node /dev/null: it is no b node"),
    ],
)
def test_a_node_that_is_not_here_is_named(spec: dict[str, Any], node: dict[str, Any], complaint: str) -> None:
    with pytest.raises(FailedPrecondition, match=complaint):
        apply(spec, [{"deviceNodes": [node]}])


def test_mounts_replace_those_at_their_place_and_stand_behind_their_parents(spec: dict[str, Any]) -> None:
    mounts = [
        {"hostPath": "/lib", "containerPath": "/a", "options": ["ro", "nosuid"]},
        {"hostPath": "/lib", "containerPath": "/a/b", "options": ["ro", "bind"]},
        {"hostPath": "none", "containerPath": "/a/b/d", "type": "tmpfs"},
    ]
    apply(spec, [{"mounts": mounts}])
    assert [(one["destination"], one["type"], one["options"]) for one in spec["mounts"]] == [
        ("/c", "tmpfs", []),
        ("/a", "bind", ["rbind", "ro", "nosuid"]),
        ("/a/b", "bind", ["ro", "bind"]),
        ("/a/b/d", "tmpfs", []),
    ]


def test_hooks_groups_network_devices_and_resource_control(spec: dict[str, Any]) -> None:
    hook = {"path": "/bin/hook", "args": ["hook", "1"], "timeout": 5}
    edits = {
        "hooks": [{"hookName": "poststop", **hook}, {"hookName": "createContainer", "path": "/bin/other", "env": None}],
        "additionalGids": [44, 0, 44],
        "netDevices": [{"hostInterfaceName": "eth7", "name": "net0"}],
        "intelRdt": {"closID": "group", "l3CacheSchema": "L3:0=f", "enableMBM": True, "memBwSchema": ""},
    }
    apply(spec, [edits, {"additionalGids": [44, 45]}])
    assert spec["hooks"] == {"poststop": [hook], "createContainer": [{"path": "/bin/other"}]}
    assert spec["process"]["user"]["additionalGids"] == [0, 44, 45]
    assert spec["linux"]["netDevices"] == {"eth7": {"name": "net0"}}
    assert spec["linux"]["intelRdt"] == {"closID": "group", "l3CacheSchema": "L3:0=f", "enableMonitoring": True}
    json.dumps(spec)
