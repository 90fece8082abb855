"""Which hierarchies there are, read from what the kernel says."""

import os
from pathlib import Path

import pytest

from pyctr_sys.cgroups import Hierarchy, by_controller, cgroups_of, enter, read_hierarchies, weigh

V1 = "30 25 0:27 / /sys/fs/cgroup/{name} rw,nosuid shared:9 - cgroup cgroup rw,{options}"
V2 = "29 23 0:26 / {path} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"


def test_a_process_tells_where_it_is() -> None:
    lines = ["12:cpu,cpuacct:/a", "11:memory:/a/b:c", "1:name=systemd:/s", "0::/u"]
    assert by_controller(lines) == {"cpu": "/a", "cpuacct": "/a", "memory": "/a/b:c", "name=systemd": "/s", "": "/u"}


def test_who_has_ended_is_nowhere() -> None:
    assert cgroups_of(os.getpid())
    with pytest.raises(FileNotFoundError):
        cgroups_of(1 << 22)


def test_version_1_and_the_unified_hierarchy_beside_it() -> None:
    mounts = [
        "23 28 0:21 / /proc rw - proc proc rw",
        V1.format(name="memory", options="memory"),
        V1.format(name="cpu,cpuacct", options="cpu,cpuacct"),
        V1.format(name="systemd", options="xattr,name=systemd"),
        V2.format(path="/sys/fs/cgroup/unified"),
    ]
    own = ["4:memory:/a", "3:cpu,cpuacct:/b", "1:name=systemd:/c", "0::/d"]

    found = {hierarchy.mount_point.name: hierarchy[1:] for hierarchy in read_hierarchies(mounts, own)}

    assert found == {
        "memory": (False, "/a"),
        "cpu,cpuacct": (False, "/b"),
        "systemd": (False, "/c"),
        "unified": (True, "/d"),
    }


def test_version_2_alone() -> None:
    mounts = [V2.format(path="/sys/fs/cgroup"), V2.format(path="/somewhere/else")]

    assert read_hierarchies(mounts, ["0::/a/b"]) == [Hierarchy(Path("/sys/fs/cgroup"), is_v2=True, own="/a/b")]


@pytest.mark.parametrize(("is_v2", "file"), [(True, "cgroup.procs"), (False, "tasks")])
def test_a_cgroup_is_made_and_entered(tmp_path: Path, file: str, *, is_v2: bool) -> None:
    enter(Hierarchy(tmp_path, is_v2, "/"), "/a/b")

    assert (tmp_path / "a" / "b" / file).read_text() == "0"


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("cpu.shares", "1024\n", "8192"),
        ("cpu.shares", "2048\n", "2048\n"),
        ("cpu.weight", "100\n", "800"),
        ("cpu.weight", "50\n", "50\n"),
        ("cpu.max", "max 100000\n", "max 100000\n"),
    ],
)
def test_a_share_is_raised_unless_somebody_has_chosen_it(tmp_path: Path, name: str, before: str, after: str) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / name).write_text(before)

    weigh(Hierarchy(tmp_path, name == "cpu.weight", "/"), "/ours", 8)

    assert [file.read_text() for file in (tmp_path / "ours").iterdir()] == [after]
