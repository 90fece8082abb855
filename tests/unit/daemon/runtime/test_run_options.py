"""Options of a new container, one by one."""

from pathlib import Path

import pytest

from pyctr_wire.errors import InvalidArgument
from pyctr_wire.oci.default_spec import ALL_CAPABILITIES, DEFAULT_CAPABILITIES
from pyctrd.core.mounts import Mount
from pyctrd.runtime import run_options

EVERYTHING = frozenset(ALL_CAPABILITIES)


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ((), (), set(DEFAULT_CAPABILITIES)),
        (("NET_ADMIN",), (), {*DEFAULT_CAPABILITIES, "CAP_NET_ADMIN"}),
        (("cap_net_admin",), ("ALL",), {"CAP_NET_ADMIN"}),
        (("ALL",), ("CAP_MKNOD", "kill"), EVERYTHING - {"CAP_MKNOD", "CAP_KILL"}),
        (("ALL",), ("ALL",), set()),
        (("MKNOD",), ("MKNOD",), set(DEFAULT_CAPABILITIES) - {"CAP_MKNOD"}),
    ],
)
def test_capabilities(add: tuple[str, ...], drop: tuple[str, ...], expected: set[str]) -> None:
    assert set(run_options.capabilities(add, drop, EVERYTHING)) == expected


def test_all_is_what_the_daemon_has() -> None:
    available = EVERYTHING - {"CAP_SYS_RESOURCE", "CAP_MKNOD"}
    assert set(run_options.capabilities(("ALL",), (), available)) == available
    assert "CAP_MKNOD" not in run_options.capabilities((), (), available)
    assert "CAP_SYS_RESOURCE" in run_options.capabilities(("SYS_RESOURCE",), (), available)


def test_unknown_capabilities_are_named() -> None:
    with pytest.raises(InvalidArgument, match="NOPE"):
        run_options.capabilities(("NOPE",), (), EVERYTHING)


def test_what_is_mounted_takes_the_place_of_a_volume() -> None:
    mounts = [
        Mount("tmpfs", "tmpfs", "/a/"),
        Mount("volume", "", "/b", ("rprivate", "rw")),
        Mount("volume", "data", "/d/", ("rprivate", "ro", "nocopy")),
    ]
    assert run_options.wanted_volumes(["/a", "/b/", "/c", "c", "/d"], mounts) == [
        ("/b", "", True),
        ("/d", "data", False),
        ("/c", "", True),
    ]
    places = {"/b": Path("/volumes/1"), "/c": Path("/volumes/2"), "/d": Path("/named/data")}
    assert run_options.with_volumes(mounts, places) == (
        mounts[0],
        Mount("bind", "/volumes/1", "/b", ("rbind", "rprivate", "rw")),
        Mount("bind", "/named/data", "/d/", ("rbind", "rprivate", "ro")),
        Mount("bind", "/volumes/2", "/c", ("rbind", "rprivate", "rw")),
    )


def test_volumes_that_are_refused() -> None:
    twice = [Mount("volume", "", "/b"), Mount("volume", "", "/b/")]
    with pytest.raises(InvalidArgument, match="twice"):
        run_options.wanted_volumes((), twice)
    with pytest.raises(InvalidArgument, match="more than"):
        run_options.wanted_volumes([f"/v{number}" for number in range(1000)], ())


def test_the_last_ulimit_of_a_name_counts() -> None:
    limits = run_options.rlimits(["nofile=5", "core=1", "nofile=6:7"])
    assert [list(one.values()) for one in limits] == [["RLIMIT_NOFILE", 6, 7], ["RLIMIT_CORE", 1, 1]]


def test_ulimits() -> None:
    assert run_options.rlimits(["nofile=10:20", "core=-1", "nproc=5"]) == [
        {"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20},
        {"type": "RLIMIT_CORE", "soft": (1 << 64) - 1, "hard": (1 << 64) - 1},
        {"type": "RLIMIT_NPROC", "soft": 5, "hard": 5},
    ]


@pytest.mark.parametrize(
    "entry",
    ["nofile", "nofile=", "nofile=a", "nope=1", "nofile=2:1", "nofile=-2", f"core={1 << 65}", "core=" + "9" * 5000],
)
def test_ulimits_that_are_refused(entry: str) -> None:
    with pytest.raises(InvalidArgument):
        run_options.rlimits([entry])


@pytest.mark.parametrize(
    "name", ["kernel.panic", "vm.swappiness", "kernel.hostname", "fs.file-max", "kernel.semaphore"]
)
def test_cve_2022_0811_sysctls_of_the_machine_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        run_options.check_sysctls({name: "1"}, host_network=False)


def test_sysctls_of_namespaces_are_fine_where_they_are_the_containers() -> None:
    run_options.check_sysctls(
        {"net.ipv4.ip_forward": "1", "kernel.shmmax": "1", "fs.mqueue.msg_max": "1"}, host_network=False
    )
    with pytest.raises(InvalidArgument):
        run_options.check_sysctls({"net.ipv4.ip_forward": "1"}, host_network=True)


@pytest.mark.parametrize(
    ("entry", "fine"),
    [
        ("A=1", True),
        ("A=", True),
        ("A=x=y", True),
        ("*", False),
        ("AWS_SECRET", False),
        ("=x", False),
        ("", False),
        ("A=\0", False),
    ],
)
def test_environment_entries(entry: str, fine: bool) -> None:
    assert run_options.is_environment_entry(entry) is fine


def test_later_entries_replace_earlier_ones_in_place() -> None:
    assert run_options.merged_environment(["A=1", "B=2"], ["A=3"], ["C=4"]) == ["A=3", "B=2", "C=4"]


def test_mounts_are_cleaned_and_ordered() -> None:
    mounts = [Mount("tmpfs", "tmpfs", "/a//b/../b/c/"), Mount("bind", "/", "/a", ("rbind", "ro"))]
    assert [mount["destination"] for mount in run_options.user_mounts(mounts)] == ["/a", "/a/b/c"]


@pytest.mark.parametrize(
    "mount",
    [
        Mount("bind", "/no/such/path", "/a"), Mount("tmpfs", "", "relative"), Mount("tmpfs", "", "/"),
        Mount("tmpfs", "", "/a/.."), Mount("bind", "/", "/proc"), Mount("tmpfs", "", "/proc/../proc/sys"),
    ],
)  # fmt: skip
def test_mounts_that_are_refused(mount: Mount) -> None:
    with pytest.raises(InvalidArgument):
        run_options.user_mounts([mount])


def test_a_place_is_mounted_at_once() -> None:
    mounts = [Mount("bind", "/", "/a", ("rbind",)), Mount("tmpfs", "tmpfs", "/b/../a/")]
    with pytest.raises(InvalidArgument, match="'/a' is given twice"):
        run_options.user_mounts(mounts)


def test_devices() -> None:
    (device,) = run_options.devices(["/dev/null:/dev/nothing:r"])
    assert device.node["path"] == "/dev/nothing"
    assert (device.node["type"], device.node["major"], device.node["minor"]) == ("c", 1, 3)
    assert device.rule == {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "r"}
    (device,) = run_options.devices(["/dev/zero"])
    assert device.rule["access"] == "rwm"


@pytest.mark.parametrize(
    "entry", ["null", "/dev/null:relative", "/dev/null:/a:rwx", "/etc/passwd", "/no/such", "/dev/null:/a:r:w"]
)
def test_devices_that_are_refused(entry: str) -> None:
    with pytest.raises(InvalidArgument):
        list(run_options.devices([entry]))


def test_devices_of_this_machine() -> None:
    paths = {device.node["path"] for device in run_options.host_devices()}
    assert "/dev/null" in paths
    assert not [path for path in paths if path.startswith("/dev/pts/")]


def test_a_directory_means_its_devices(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument):
        list(run_options.devices([str(tmp_path)]))
