"""What systemd is told of a container, by a stand-in for it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyctr_shim.oci.cgroups import Hierarchies, cgroup_path, dbus, systemd
from pyctr_shim.oci.errors import OciError
from support.dbus_peer import MARK, Peer, reply

NONE = (1 << 64) - 1
Answer = Callable[[str, list[Any]], list[bytes]]
MakePeer = Callable[[Answer], Peer]


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ("", "system.slice:pyctr:c1"),
        ("::", ""),
        ("user.slice:docker:abc", "user.slice:docker:abc"),
        (":docker:abc", "system.slice:docker:abc"),
        ("a-b.slice::x", "a-b.slice::x"),
    ],
)
def test_paths(spec: str, path: str) -> None:
    if not path:
        with pytest.raises(OciError, match=r"linux\.cgroupsPath"):
            cgroup_path(spec, "c1", of_systemd=True)
        return
    assert cgroup_path(spec, "c1", of_systemd=True) == path


@pytest.mark.parametrize(
    "spec",
    ["/a/b", "a:b", "system:x:y", "a--b.slice:x:y", "../x.slice:a:b", ":a/b:c", ":a:b c", ":a:" + "x" * 260, ":a:b\n"],
)
def test_what_is_no_unit_is_refused(spec: str) -> None:
    with pytest.raises(OciError, match="cgroupsPath"):
        cgroup_path(spec, "c1", of_systemd=True)


@pytest.mark.parametrize(
    ("slice_", "path"),
    [("-.slice", ""), ("a.slice", "/a.slice"), ("a-b-c.slice", "/a.slice/a-b.slice/a-b-c.slice")],
)
def test_slices_lie_in_each_other(slice_: str, path: str) -> None:
    assert systemd.expand(slice_) == path


@pytest.mark.parametrize(
    ("resources", "properties"),
    [
        ({}, {}),
        (
            {"memory": {"limit": 100, "reservation": 50, "swap": 150}},
            {"MemoryMax": 100, "MemoryLow": 50, "MemorySwapMax": 50},
        ),
        ({"memory": {"limit": 100, "swap": 100}}, {"MemoryMax": 100, "MemorySwapMax": 0}),
        ({"memory": {"limit": -1, "swap": -1}}, {"MemoryMax": NONE, "MemorySwapMax": NONE}),
        ({"cpu": {"shares": 1024}}, {"CPUWeight": 39}),
        ({"cpu": {"quota": 50_000, "period": 100_000}}, {"CPUQuotaPeriodUSec": 100_000, "CPUQuotaPerSecUSec": 500_000}),
        ({"cpu": {"quota": 1_001}}, {"CPUQuotaPerSecUSec": 20_000}),
        ({"cpu": {"quota": -1}}, {"CPUQuotaPerSecUSec": NONE}),
        ({"cpu": {"cpus": "0,9", "mems": "0"}}, {"AllowedCPUs": [1, 2], "AllowedMemoryNodes": [1]}),
        ({"pids": {"limit": 0}}, {"TasksMax": 1}),
        ({"pids": {"limit": -1}}, {"TasksMax": NONE}),
        ({"devices": [{"allow": False, "access": "rwm"}]}, {}),
    ],
)
def test_limits_on_version_2(resources: dict[str, Any], properties: dict[str, Any]) -> None:
    assert {name: value for name, (_, value) in systemd.properties_of(resources, is_v2=True)} == properties


def test_limits_on_version_1() -> None:
    rules = [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "b", "major": 8, "minor": 1, "access": "r"},
        {"allow": True, "type": "c", "major": -1, "minor": -1, "access": "m"},
    ]

    found = systemd.properties_of({"memory": {"limit": 5}, "cpu": {"shares": 7}, "devices": rules}, is_v2=False)

    assert found[:3] == [("MemoryLimit", ("t", 5)), ("CPUShares", ("t", 7)), ("DevicePolicy", ("s", "strict"))]
    assert found[3] == ("DeviceAllow", ("a(ss)", []))
    assert {("/dev/block/8:1", "r"), ("char-*", "m"), ("/dev/char/1:3", "rwm")} <= set(found[4][1][1])


@pytest.fixture
def hierarchies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hierarchies:
    monkeypatch.setattr(systemd, "_PRIVATE", str(tmp_path / "bus"))
    monkeypatch.setattr(systemd, "_SYSTEM_BUS", str(tmp_path / "nobody"))
    return Hierarchies({}, str(tmp_path / "cgroup"))


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[MakePeer]:
    made: list[Peer] = []

    def make(answer: Answer) -> Peer:
        made.append(Peer(tmp_path / "bus", answer))
        return made[-1]

    yield make
    for item in made:
        item.close()


def job(result: str) -> Answer:
    """Return what answers a call that starts a job, which then ends so."""
    removed = dbus.pack_message(dbus.SIGNAL, 2, {3: "JobRemoved"}, "uoss", (1, "/job/1", "x.scope", result))
    other = dbus.pack_message(dbus.SIGNAL, 2, {3: "JobRemoved"}, "uoss", (2, "/job/2", "y.scope", "failed"))

    def answer(member: str, _body: list[Any]) -> list[bytes]:
        return [reply(MARK, "o", "/job/1"), other, removed] if member in {"StartTransientUnit", "StopUnit"} else []

    return answer


def test_a_scope_lives(tmp_path: Path, hierarchies: Hierarchies, peer: MakePeer) -> None:
    made = peer(job("done"))
    (tmp_path / "cgroup/a.slice/p-n.scope").mkdir(parents=True)
    cgroup = systemd.cgroup_of(hierarchies, "a.slice:p:n")
    assert cgroup.path == "/a.slice/p-n.scope"

    cgroup.create(77)
    (tmp_path / "cgroup/a.slice/p-n.scope/pids.max").touch()
    cgroup.apply({"pids": {"limit": 5}})
    (tmp_path / "cgroup/a.slice/p-n.scope/pids.max").unlink()
    cgroup.remove()

    start, change, stop = [call for call in made.calls if call[0] != "Subscribe"]
    assert start[0] == "StartTransientUnit"
    assert start[1][:2] == ["p-n.scope", "fail"]
    properties = dict(start[1][2])
    assert (properties["Slice"], properties["Delegate"]) == (("s", "a.slice"), ("b", 1))
    assert properties["PIDs"] == ("au", [77])
    assert change == ("SetUnitProperties", ["p-n.scope", 1, [("TasksMax", ("t", 5))]])
    assert stop == ("StopUnit", ["p-n.scope", "replace"])


def test_a_job_that_fails_is_told(hierarchies: Hierarchies, peer: MakePeer) -> None:
    peer(job("failed"))

    with pytest.raises(OciError, match=r"systemd: p-n\.scope: job failed"):
        systemd.cgroup_of(hierarchies, "a.slice:p:n").create()


def test_a_unit_that_is_gone_needs_no_end(hierarchies: Hierarchies, peer: MakePeer) -> None:
    error = dbus.pack_message(dbus.ERROR, 1, {4: "org.freedesktop.systemd1.NoSuchUnit", 5: MARK}, "s", ("gone",))
    peer(lambda member, _: [error] if member == "StopUnit" else [])

    systemd.cgroup_of(hierarchies, "a.slice:p:n").remove()


def test_without_systemd_the_path_that_was_tried_is_named(hierarchies: Hierarchies) -> None:
    with pytest.raises(OciError, match=r"systemd: p-n\.scope: .*No such file"):
        systemd.cgroup_of(hierarchies, "a.slice:p:n").create()
