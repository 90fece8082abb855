"""The decisions of the runtime that need no kernel."""

import errno
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from pyctr_shim.oci import (
    capabilities,
    lsm,
    mount_options,
    mounts,
    namespaces,
    program,
    rootfs,
    scheduling,
    state,
    sysctl,
    user,
)
from pyctr_shim.oci.cgroups import device_filter, manager, v2
from pyctr_shim.oci.cgroups.v2 import weight_of_shares
from pyctr_shim.oci.errors import OciError, describe
from pyctr_shim.oci.handshake import Channel, Message
from pyctr_sys.mount import Attr, MountFlag

HYBRID = """\
24 1 254:0 / / rw - ext4 /dev/vda rw
30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
35 24 0:31 / /elsewhere/cgroup rw - cgroup cgroup rw,pids
"""
LABEL = "u:r:t:s0:c1,c2"
UNIFIED = "30 24 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_a_hybrid_machine_is_version_1() -> None:
    found = manager.detect(HYBRID.splitlines())

    assert found.controllers == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        "memory": "/sys/fs/cgroup/memory",
        "name=systemd": "/sys/fs/cgroup/systemd",
    }
    assert found.unified == "/sys/fs/cgroup/unified"
    assert not found.is_v2


def test_a_unified_machine_is_version_2() -> None:
    found = manager.detect(UNIFIED.splitlines())

    assert (found.is_v2, found.unified) == (True, "/sys/fs/cgroup")


@pytest.mark.parametrize(
    ("spec", "path"),
    [("/a/b", "/a/b"), ("//a/./b/", "/a/b"), ("", "/pyctr/c1"), ("rel/x", "/pyctr/rel/x"), ("a:b:c", "/pyctr/a:b:c")],
)
def test_cgroup_paths(spec: str, path: str) -> None:
    assert manager.cgroup_path(spec, "c1") == path


@pytest.mark.parametrize("spec", ["/", "//", "/a/..", "..", "/../x"])
def test_cgroup_paths_that_climb_are_refused(spec: str) -> None:
    with pytest.raises(OciError, match=r"linux\.cgroupsPath"):
        manager.cgroup_path(spec, "c1")


@pytest.mark.parametrize(
    ("resources", "writes"),
    [
        ({"memory": {"limit": 100, "swap": 150}}, [("memory.swap.max", "50"), ("memory.max", "100")]),
        ({"memory": {"limit": 100, "swap": -1}}, [("memory.swap.max", "max"), ("memory.max", "100")]),
        ({"memory": {"limit": -1, "reservation": 5}}, [("memory.max", "max"), ("memory.low", "5")]),
        ({"cpu": {"quota": 5000, "period": 10000}}, [("cpu.max", "5000 10000")]),
        ({"cpu": {"quota": -1}}, [("cpu.max", "max 100000")]),
        ({"cpu": {"shares": 1024, "cpus": "0-1"}}, [("cpu.weight", "39"), ("cpuset.cpus", "0-1")]),
        ({"pids": {"limit": -1}}, [("pids.max", "max")]),
        ({"pids": {"limit": 0}, "memory": {}, "cpu": None}, [("pids.max", "1")]),
        ({"cpu": {"idle": 0, "burst": 0}}, [("cpu.max.burst", "0"), ("cpu.idle", "0")]),
        ({"memory": {"useHierarchy": True, "kernel": -1, "kernelTCP": -1}}, []),
        ({"blockIO": {"weight": 500}}, [("io.weight", "default 4950")]),
        (
            {"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 7}]}},
            [("io.max", "8:0 rbps=7")],
        ),
        (
            {"hugepageLimits": [{"pageSize": "2MB", "limit": 9}]},
            [("hugetlb.2MB.max", "9"), ("hugetlb.2MB.rsvd.max", "9")],
        ),
        ({"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 10}]}}, [("io.weight", "8:0 1")]),
        ({"unified": {"memory.high": "5"}}, [("memory.high", "5")]),
        ({"rdma": {"mlx": {"hcaHandles": 3}}}, [("rdma.max", "mlx hca_handle=3")]),
    ],
)
def test_limits_of_version_2(resources: dict[str, Any], writes: list[tuple[str, str]]) -> None:
    assert [(name, value) for _, name, value in v2.limits(resources)] == writes


@pytest.mark.parametrize(
    ("cpu", "cpu_max", "written"),
    [
        ({"period": 50000}, "20000 80000", "20000 50000"),
        ({"period": 500000}, "max 100000", "max 500000"),
        ({"quota": 10000}, "20000 80000", "10000 80000"),
        ({"quota": -1}, "900 80000", "max 80000"),
    ],
)
def test_quota_and_period_stand_without_each_other(
    tmp_path: Path, cpu: dict[str, int], cpu_max: str, written: str
) -> None:
    """As they do in version 1, which has a file for each: an update of one leaves the other."""
    (tmp_path / "cpu.max").write_text(cpu_max)

    v2.CgroupV2(manager.Hierarchies({}, str(tmp_path)), "").apply({"cpu": cpu})

    assert (tmp_path / "cpu.max").read_text() == written


@pytest.mark.parametrize(
    "resources",
    [
        {"memory": {"swappiness": 10}},
        {"memory": {"swappiness": 0}},
        {"memory": {"useHierarchy": False}},
        {"memory": {"disableOOMKiller": True}},
        {"memory": {"swap": 10}},
        {"memory": {"limit": 20, "swap": 10}},
        {"cpu": {"realtimeRuntime": 1}},
        {"network": {"classID": 1}},
        {"unified": {"../memory.max": "1"}},
    ],
)
def test_limits_that_version_2_does_not_have_are_refused(resources: dict[str, Any]) -> None:
    with pytest.raises(OciError, match=r"linux\.resources\."):
        v2.limits(resources)


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (1024, 39), (262_144, 10_000), (1, 1), (1 << 40, 10_000)])
def test_shares_become_a_weight(shares: int, weight: int) -> None:
    assert weight_of_shares(shares) == weight


def test_device_rules_are_followed_by_those_that_always_hold() -> None:
    rules = device_filter.with_defaults(
        [{"allow": False, "access": "rwm"}, {"allow": True, "type": "b", "major": 8, "minor": -1, "access": "r"}]
    )

    lines = [(rule.allow, rule.v1_line()) for rule in rules]

    assert lines[:3] == [(False, "a"), (True, "b 8:* r"), (True, "c *:* m")]
    assert (True, "c 1:3 rwm") in lines
    assert device_filter.with_defaults([{"allow": True, "access": "rwm"}]) == [
        device_filter.Rule(True, "a", None, None, "rwm")
    ]


@pytest.mark.parametrize("rule", [{"allow": True, "access": "x"}, {"allow": False, "type": "a", "access": "r"},
                                  {"allow": False, "major": 1}])  # fmt: skip
def test_device_rules_that_cannot_be_are_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(OciError, match=r"linux\.resources\.devices"):
        device_filter.parse(rule)


def judge(code: bytes, kind: int, access: int, major: int, minor: int) -> int:
    """Interpret the instructions that the filter uses."""
    registers = [0] * 11
    memory = {0: kind | access << 16, 4: major, 8: minor}
    place = 0
    while True:
        opcode, packed, offset, value = struct.unpack_from("<BBhi", code, place * 8)
        target, source = packed & 15, packed >> 4
        place += 1
        match opcode:
            case 0x61:
                registers[target] = memory[offset]
            case 0xB7:
                registers[target] = value
            case 0xBF:
                registers[target] = registers[source]
            case 0x57:
                registers[target] &= value
            case 0x77:
                registers[target] >>= value
            case 0x55:
                place += offset if registers[target] != value else 0
            case 0x5D:
                place += offset if registers[target] != registers[source] else 0
            case 0x1D:
                place += offset if registers[target] == registers[source] else 0
            case 0x95:
                return registers[0]
            case _:
                raise AssertionError(f"opcode {opcode:#x}")


@pytest.mark.parametrize(
    ("kind", "access", "major", "minor", "allowed"),
    [
        (2, 2, 1, 3, 1),  # read a character device that is allowed everything
        (2, 6, 5, 1, 0),  # read and write where only reading is allowed
        (2, 2, 5, 1, 1),
        (1, 2, 5, 1, 0),  # a block device of that number
        (2, 2, 9, 9, 0),  # nothing fits
        (2, 4, 7, 7, 0),  # all but writing
        (2, 6, 7, 7, 0),
        (2, 2, 7, 7, 1),
        (1, 1, 250, 250, 1),  # making any node
    ],
)
def test_the_device_program_decides(kind: int, access: int, major: int, minor: int, allowed: int) -> None:
    rules = [
        device_filter.Rule(False, "a", None, None, "rwm"),
        device_filter.Rule(True, "c", 5, 1, "r"),
        device_filter.Rule(True, "c", 7, None, "rwm"),
        device_filter.Rule(False, "c", 7, 7, "w"),
        *device_filter.ALWAYS,
    ]

    assert judge(device_filter.bpf_program(rules), kind, access, major, minor) == allowed


def test_options_that_take_flags_away() -> None:
    """From what is bound; the last of two that contradict each other holds."""
    parsed = mount_options.parse(["rbind", "suid", "ro", "rw", "nodev", "idmap"])

    assert (parsed.cleared_attributes, parsed.attributes) == (Attr.NOSUID | Attr.RDONLY, Attr.NODEV)
    assert (parsed.idmap, mount_options.parse(["ridmap"]).idmap, mount_options.parse([]).idmap) == (
        "idmap",
        "ridmap",
        "",
    )
    assert mount_options.parse(["relatime"]).cleared_attributes == Attr.ATIME
    assert mount_options.parse(["noatime"]).attributes == Attr.NOATIME


def test_mount_options() -> None:
    parsed = mount_options.parse(
        ["rbind", "ro", "nosuid", "rprivate", "size=5", "mode=755", "rro", "tmpcopyup", "exec"]
    )

    assert parsed.flags == MountFlag.BIND | MountFlag.REC | MountFlag.RDONLY | MountFlag.NOSUID
    assert parsed.attributes == Attr.RDONLY | Attr.NOSUID
    assert parsed.propagation == (MountFlag.PRIVATE | MountFlag.REC,)
    assert (parsed.data, parsed.copy_up, parsed.recursive_set, parsed.is_bind) == ("size=5,mode=755", True, 1, True)
    assert mount_options.parse(["ro", "rw", "noexec", "exec"]).flags == 0


@pytest.mark.parametrize(
    ("path", "cleaned"), [("proc", "/proc"), ("//proc", "/proc"), ("/a/../proc/", "/proc"), ("", "/")]
)
def test_destinations_are_cleaned(path: str, cleaned: str) -> None:
    assert mounts.clean(path) == cleaned


def test_only_shared_roots_reach_the_host() -> None:
    assert [rootfs.is_shared(name) for name in ("", "rslave", "private", "shared", "rshared")] == [False] * 3 + [
        True
    ] * 2


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/a.b/x", "net/ipv4/conf/a.b/x"),
        ("net.ipv4.conf.a/b.x", "net/ipv4/conf/a.b/x"),
    ],
)
def test_the_first_separator_of_a_sysctl_decides(name: str, path: str) -> None:
    assert sysctl.path_of(name) == path


def test_capabilities_are_cut_to_what_there_is() -> None:
    sets = capabilities.parse({"bounding": ["CAP_CHOWN", "CAP_SYS_ADMIN"], "effective": ["CAP_CHOWN"]}, available=1)

    assert (sets.bounding, sets.effective, sets.permitted, sets.ambient) == (1, 1, 0, 0)
    assert sets.notes == ["process.capabilities: CAP_SYS_ADMIN not granted: the runtime does not have them"]
    with pytest.raises(OciError, match=r"process\.capabilities\.ambient: unknown capability 'chown'"):
        capabilities.parse({"ambient": ["chown"]}, available=1)


@pytest.mark.parametrize(("text", "cpus"), [("0", {0}), ("0-3,7", {0, 1, 2, 3, 7}), (" 1 , 2", {1, 2})])
def test_cpu_lists(text: str, cpus: set[int]) -> None:
    assert scheduling.parse_numbers(text) == cpus


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1-b", "0-99999999"])
def test_bad_cpu_lists_are_refused(text: str) -> None:
    with pytest.raises(OciError, match="not a list of numbers"):
        scheduling.parse_numbers(text)


def test_environment() -> None:
    assert user.environment({"env": ["A=1", "B=", "A=x=y"]}) == {"A": "x=y", "B": ""}
    assert user.environment({}) == {}
    for bad in ("A", "=1", ""):
        with pytest.raises(OciError, match=r"process\.env"):
            user.environment({"env": [bad]})


def test_programs_are_found_along_the_path(tmp_path: Path) -> None:
    for name, mode in (("first/no", 0o644), ("second/no", 0o755), ("second/yes", 0o755), ("first/dir/x", 0o755)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(mode)
    env = {"PATH": f"{tmp_path}/first:{tmp_path}/second"}

    assert program.find("yes", env) == f"{tmp_path}/second/yes"
    assert program.find("no", env) == f"{tmp_path}/second/no"
    assert program.find(f"{tmp_path}/second/yes", {}) == f"{tmp_path}/second/yes"
    for name, number, text in (
        ("absent", errno.ENOENT, 'exec: "absent": executable file not found in $PATH'),
        ("dir", errno.ENOENT, 'exec: "dir": executable file not found in $PATH'),
        (f"{tmp_path}/first", errno.EISDIR, f'exec: "{tmp_path}/first": is a directory'),
        (f"{tmp_path}/first/no", errno.EACCES, f'exec: "{tmp_path}/first/no": permission denied'),
        ("/no", errno.ENOENT, 'exec: "/no": stat /no: no such file or directory'),
    ):
        with pytest.raises(OciError) as caught:
            program.find(name, env)
        assert (str(caught.value), caught.value.errno) == (text, number)


def test_a_state_survives_its_file(tmp_path: Path) -> None:
    made = state.State(id="c1", bundle="/b", cgroup="/x", created_ns=5, hooks={"poststop": [{"path": "/p"}]})
    state.write(str(tmp_path), made.with_pid(os.getpid()))

    found = state.read(str(tmp_path))

    assert found == made.with_pid(os.getpid())
    assert found.is_alive()
    assert not made.is_alive()
    state.remove(str(tmp_path))
    state.remove(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        state.read(str(tmp_path))


@pytest.mark.parametrize("text", ["{}", "[]", '{"version": 99}', '{"version": 1, "unknown": 2}'])
def test_a_state_of_another_version_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / state.NAME).write_text(text)

    with pytest.raises(OciError, match=r"state\.json"):
        state.read(str(tmp_path))


def test_a_reused_pid_is_not_taken_for_the_container() -> None:
    record = state.State(id="c", bundle="/b", cgroup="/x", created_ns=0, pid=os.getpid(), start_ticks=1)

    assert not record.is_alive()


def test_messages_cross_the_channel_with_their_fd() -> None:
    ours, theirs = Channel.pair()
    read_fd, write_fd = os.pipe()
    theirs.send(Message.CONSOLE, [write_fd], number=5)
    os.close(write_fd)

    answer = ours.receive()

    assert answer is not None
    message, fields, (fd,) = answer
    assert (message, fields) == (Message.CONSOLE, {"number": 5})
    assert not os.get_inheritable(fd)
    os.write(fd, b"x")
    assert os.read(read_fd, 1) == b"x"
    os.close(fd)
    os.close(read_fd)
    theirs.close()
    assert ours.receive() is None
    ours.fail("nobody listens", 1)
    with pytest.raises(BrokenPipeError):
        ours.send(Message.GO)
    ours.close()


def test_a_message_that_does_not_fit_is_refused() -> None:
    ours, theirs = Channel.pair()

    with pytest.raises(OciError, match="too long"):
        ours.send(Message.CREATED, notes=["x" * 200_000])

    ours.fail("y" * 200_000, 7)
    answer = theirs.receive()
    assert answer is not None
    assert len(answer[1]["text"]) == 8192
    ours.close()
    theirs.close()


def test_errors_are_told_in_one_line() -> None:
    assert describe(OSError(2, "mount: No such file or directory", "/x")) == "mount: No such file or directory (/x)"


@pytest.mark.skipif(lsm.selinux_enabled(), reason="SELinux is enabled here")
def test_an_selinux_label_is_never_left_out() -> None:
    lsm.check_mount_label("")

    with pytest.raises(OciError, match=r"linux\.mountLabel: 'a:b:c': SELinux is not enabled"):
        lsm.check_mount_label("a:b:c")
    with pytest.raises(OciError, match=r"process\.selinuxLabel: 'a:b:c': SELinux is not enabled"):
        lsm.set_exec_label(-1, {"selinuxLabel": "a:b:c"})


def test_selinux_labels_are_written_and_mounted_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes to the kernel, on a machine that has no SELinux to take it."""
    monkeypatch.setattr(lsm, "selinux_enabled", lambda: True)
    (tmp_path / "7/attr").mkdir(parents=True)
    (tmp_path / "7/attr/exec").touch()
    (tmp_path / "self").symlink_to("7")
    proc_fd = os.open(tmp_path, os.O_RDONLY)

    lsm.set_exec_label(proc_fd, {"selinuxLabel": LABEL})

    os.close(proc_fd)
    assert (tmp_path / "7/attr/exec").read_text() == LABEL
    planned = mounts.plan(
        [{"destination": "/a", "type": "tmpfs", "options": ["size=1m"]}, {"destination": "/proc", "type": "proc"}],
        "/",
        LABEL,
        lambda: -1,
    )
    assert {item.destination: item.context for item in planned} == {"/dev": LABEL, "/a": LABEL, "/proc": ""}
    assert lsm.with_context("size=1m", LABEL) == f'size=1m,context="{LABEL}"'
    assert lsm.with_context("", LABEL) == f'context="{LABEL}"'


@pytest.mark.skipif(lsm.apparmor_enabled(), reason="AppArmor is enabled here")
def test_an_apparmor_profile_is_never_left_out() -> None:
    lsm.set_exec_label(-1, {})
    lsm.set_exec_label(-1, {"apparmorProfile": "unconfined"})

    with pytest.raises(OciError, match=r"process\.apparmorProfile: 'docker-default': AppArmor is not enabled"):
        lsm.set_exec_label(-1, {"apparmorProfile": "docker-default"})


def test_a_namespace_that_is_a_fifo_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    plan = namespaces.plan([{"type": "network", "path": f"{tmp_path}/fifo"}])
    with pytest.raises(OciError, match="joining NEWNET namespace"):
        plan.join()
    plan.close()


@pytest.mark.parametrize("directory", ["/", "/mnt", "/run/web", "/run/web2/rootfs"])
def test_a_root_is_mounted_in_its_bundle_only(directory: str) -> None:
    rootfs.check_place("/run/web/rootfs", "/run/web/")
    with pytest.raises(OciError, match="is not in the bundle"):
        rootfs.check_place(directory, "/run/web")
