"""A bad config.json is refused by the name of the field; what nobody specifies is ignored."""

import json
from pathlib import Path
from typing import Any

import pytest

from pyctr_shim.oci import validate
from pyctr_shim.oci.errors import OciError
from support.oci_bundle import plain_spec


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return a plain spec with one field set, by its dotted path."""
    spec: dict[str, Any] = plain_spec("true")
    *parents, last = path.split(".")
    place = spec
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = value
    return spec


def test_a_plain_spec_is_fine() -> None:
    validate.check_spec(plain_spec("true"))


def test_null_is_the_same_as_absence() -> None:
    for path in ("hooks", "annotations", "process.capabilities", "linux.seccomp", "linux.resources", "hostname"):
        validate.check_spec(changed(path, None))


def test_unknown_properties_are_ignored() -> None:
    validate.check_spec(changed("process.someThingNew", {"a": 1}))
    validate.check_spec(changed("linux.resources.memory.future", 1))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("ociVersion", "2.0.0"),
        ("ociVersion", None),
        ("root", None),
        ("root.path", ""),
        ("process.args", []),
        ("process.args", "true"),
        ("process.args", ["a\0b"]),
        ("process.cwd", ""),
        ("process.cwd", "relative"),
        ("process.terminal", "yes"),
        ("process.user", {"uid": -1}),
        ("process.user", {"uid": 1 << 32}),
        ("process.user", {"uid": (1 << 32) - 1}),
        ("process.user", {"uid": True}),
        ("process.user", {"gid": "0"}),
        ("process.user", {"umask": 0o1000}),
        ("process.rlimits", [{"type": "RLIMIT_WISHES", "soft": 1, "hard": 1}]),
        ("process.rlimits", [{"type": "RLIMIT_CORE", "soft": 1}]),
        ("process.oomScoreAdj", 1001),
        ("process.scheduler", {"policy": "SCHED_FAIR"}),
        ("process.ioPriority", {"class": "IOPRIO_CLASS_BE", "priority": 8}),
        ("mounts", [{"type": "tmpfs"}]),
        ("mounts", {"destination": "/x"}),
        ("hostname", 5),
        ("hooks", {"prestart": [{"path": "relative"}]}),
        ("hooks", {"prestart": [{"path": "/x", "timeout": 0}]}),
        ("annotations", {"a": 1}),
        ("linux.namespaces", [{"type": "galaxy"}]),
        ("linux.devices", [{"type": "c", "path": "dev/x"}]),
        ("linux.devices", [{"type": "x", "path": "/dev/x"}]),
        ("linux.devices", [{"type": "c", "path": "/dev/x", "major": 1}]),
        ("linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [], "action": "SCMP_ACT_LOG"}]}),
        ("linux.rootfsPropagation", "everywhere"),
        ("linux.maskedPaths", ["relative"]),
        ("linux.resources.memory", {"swappiness": 101}),
        ("linux.resources.cpu", {"shares": -5}),
        ("linux.resources.blockIO", {"weight": 1001}),
        ("linux.seccomp", {"syscalls": []}),
        ("linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["x"]}]}),
        ("linux.personality", {"domain": "MSDOS"}),
        ("linux.personality", {"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]}),
        ("linux.memoryPolicy", {"mode": "MPOL_NEAR"}),
        ("linux.memoryPolicy", {"mode": "MPOL_BIND", "flags": ["MPOL_F_ALL"]}),
        ("linux.netDevices", {"eth0": {"name": "a/b"}}),
        ("linux.netDevices", {"eth0": {"name": "longer-than-15-bytes"}}),
        ("linux.intelRdt", {"schemata": ["L3:0=f\nMB:0=10"]}),
        ("process.rlimits", [{"type": "RLIMIT_CORE", "soft": 1, "hard": 1}] * 2),
        ("linux.resources.blockIO", {"weightDevice": [{"major": 8, "minor": 0}]}),
    ],
)
def test_a_wrong_field_is_named(path: str, value: Any) -> None:
    with pytest.raises(OciError) as caught:
        validate.check_spec(changed(path, value))

    assert path.split(".")[-1] in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("process.user.username", "me"),
        ("linux.intelRdt.enableCMT", True),
        ("linux.resources.memory.kernel", 1),
        ("linux.resources.blockIO.leafWeight", 10),
        ("windows", {"layerFolders": ["x"]}),
        ("vm", {"kernel": {"path": "/x"}}),
    ],
)
def test_what_is_not_done_is_refused_by_name_unless_it_asks_for_nothing(path: str, value: Any) -> None:
    with pytest.raises(OciError, match=path.replace(".", r"\.")):
        validate.check_spec(changed(path, value))

    validate.check_spec(changed(path, type(value)()))


def test_id_maps_of_mounts_that_do_not_fit_together_are_refused() -> None:
    maps = [{"containerID": 0, "hostID": 0, "size": 1}]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"destination": "/x", "uidMappings": maps}, "mounts: /x: uidMappings and gidMappings go together"),
        ({"destination": "/x", "options": ["idmap"]}, "mounts: /x: idmap needs uidMappings and gidMappings"),
    ]
    for item, text in cases:
        with pytest.raises(OciError, match=text):
            validate.check_spec(changed("mounts", [item]))


def test_network_devices_need_a_network_namespace() -> None:
    spec = changed("linux.netDevices", {"eth0": {}})
    validate.check_spec(spec)
    spec["linux"]["namespaces"] = [{"type": "mount"}]

    with pytest.raises(OciError, match=r"linux\.netDevices: needs a network namespace"):
        validate.check_spec(spec)


def test_namespaces_that_do_not_fit_together_are_refused() -> None:
    kinds = [{"type": kind} for kind in ("pid", "mount")]
    cases: list[tuple[dict[str, Any], str]] = [
        (changed("linux.namespaces", [{"type": "user"}]), "a new user namespace needs a new mount namespace"),
        (
            changed("linux", {"rootfsPropagation": "unbindable"}),
            "unbindable needs a new mount namespace",
        ),
        (changed("linux.namespaces", [*kinds, {"type": "pid"}]), "pid is there twice"),
        (changed("linux.namespaces", [*kinds, {"type": "user"}]), "needs both"),
        (changed("linux.uidMappings", [{"containerID": 0, "hostID": 0, "size": 1}]), "needs a new user namespace"),
        (changed("linux.timeOffsets", {"boottime": {"secs": 1}}), "needs a new time namespace"),
        ({**changed("linux.namespaces", kinds), "hostname": "x"}, "hostname: needs a UTS namespace"),
    ]
    for spec, text in cases:
        with pytest.raises(OciError, match=text):
            validate.check_spec(spec)


@pytest.mark.parametrize(
    ("name", "without", "allowed"),
    [
        ("net.ipv4.ip_forward", "", True),
        ("net/ipv4/conf/eth0.100/forwarding", "", True),
        ("net.ipv4.ip_forward", "network", False),
        ("kernel.shmmax", "", True),
        ("kernel.shmmax", "ipc", False),
        ("fs.mqueue.msg_max", "", True),
        ("kernel.domainname", "", True),
        ("kernel.core_pattern", "", False),
        ("kernel/core_pattern", "", False),
        ("net/../kernel/core_pattern", "", False),
        ("vm.overcommit_memory", "", False),
        ("", "", False),
    ],
)
def test_only_sysctls_of_the_containers_own_namespaces(name: str, without: str, allowed: bool) -> None:
    spec = changed("linux.sysctl", {name: "1"})
    spec["linux"]["namespaces"] = [item for item in spec["linux"]["namespaces"] if item["type"] != without]

    if allowed:
        validate.check_spec(spec)
    else:
        with pytest.raises(OciError, match=r"linux\.sysctl"):
            validate.check_spec(spec)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'"x"', b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(data)

    with pytest.raises(OciError, match=r"config\.json|not a JSON object"):
        validate.load_spec(str(tmp_path / "config.json"))
    with pytest.raises(OciError):
        validate.load_process(data)


def test_documents_are_read(tmp_path: Path) -> None:
    spec = plain_spec("true")
    (tmp_path / "config.json").write_text(json.dumps(spec))

    assert validate.load_spec(str(tmp_path / "config.json")) == spec
    assert validate.load_process(json.dumps(spec["process"]).encode()) == spec["process"]
    assert validate.load_resources(b'{"pids": {"limit": 5}}') == {"pids": {"limit": 5}}
    with pytest.raises(OciError, match=r"process\.args: is required"):
        validate.load_process(b'{"cwd": "/"}')
