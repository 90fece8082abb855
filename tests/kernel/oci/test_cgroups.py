"""Limits, freezer, counters and devices on the cgroups that this machine has."""

import contextlib
import json
import os
import select
import signal
from pathlib import Path

import pytest

from pyctr_shim.oci import runtime
from pyctr_shim.oci.cgroups import Hierarchies, cgroup_for, mounted
from pyctr_shim.oci.cgroups.v2 import CgroupV2
from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.runtime import CreateOptions, Stdio, create
from pyctr_sys.mount import mount, umount2
from pyctr_sys.pidfd import pidfd_open
from pyctr_wire.containerd.cgroups.v1 import metrics_pb2 as v1
from pyctr_wire.containerd.cgroups.v2 import metrics_pb2 as v2
from support.oci_bundle import Lab, Spec, eventually, process, read_all, wait

pytestmark = pytest.mark.root
on_v1 = pytest.mark.skipif(mounted().is_v2, reason="the machine has cgroup version 2 only")
MIB = 1 << 20


def limited(lab: Lab, **resources: object) -> Spec:
    spec = lab.spec("sleep", "1000")
    spec["linux"]["resources"] = resources
    return spec


def v1_file(path: str, controller: str, name: str) -> str:
    return Path(mounted().controllers[controller] + path, name).read_text().strip()


@on_v1
def test_limits_of_version_1(lab: Lab) -> None:
    spec = limited(
        lab,
        memory={"limit": 64 * MIB, "reservation": 32 * MIB, "swap": 96 * MIB, "swappiness": 10},
        cpu={"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0", "mems": "0"},
        pids={"limit": 100},
    )
    path = spec["linux"]["cgroupsPath"]

    lab.running(spec)

    assert v1_file(path, "memory", "memory.limit_in_bytes") == str(64 * MIB)
    assert v1_file(path, "memory", "memory.soft_limit_in_bytes") == str(32 * MIB)
    assert v1_file(path, "memory", "memory.memsw.limit_in_bytes") == str(96 * MIB)
    assert v1_file(path, "memory", "memory.swappiness") == "10"
    assert v1_file(path, "cpu", "cpu.shares") == "512"
    assert v1_file(path, "cpu", "cpu.cfs_quota_us") == "50000"
    assert v1_file(path, "cpuset", "cpuset.cpus") == "0"
    assert v1_file(path, "pids", "pids.max") == "100"


@on_v1
def test_disks_and_kills_for_memory_of_version_1(lab: Lab) -> None:
    disk = next(Path("/sys/block").glob("*/dev")).read_text().strip()
    major, minor = map(int, disk.split(":"))
    fields = ("ReadBps", "WriteBps", "ReadIOPS", "WriteIOPS")
    rates = {
        f"throttle{field}Device": [{"major": major, "minor": minor, "rate": rate}]
        for rate, field in enumerate(fields, 4096)
    }
    spec = limited(lab, memory={"limit": 64 * MIB, "disableOOMKiller": True}, blockIO=rates)
    path = spec["linux"]["cgroupsPath"]

    lab.running(spec)

    assert "oom_kill_disable 1" in v1_file(path, "memory", "memory.oom_control")
    names = [f"blkio.throttle.{name}_device" for name in ("read_bps", "write_bps", "read_iops", "write_iops")]
    assert [v1_file(path, "blkio", name) for name in names] == [f"{disk} {rate}" for rate in range(4096, 4100)]


@on_v1
def test_the_network_class_of_version_1(lab: Lab, tmp_path: Path) -> None:
    """In a hierarchy of its own, as systemd and others mount it."""
    network, path = str(tmp_path), f"{lab.cgroup}-network"
    number, _ = network_hierarchy()
    try:
        mount("cgroup", network, "cgroup", 0, "net_cls,net_prio")
    except OSError as error:
        pytest.skip(f"net_cls and net_prio cannot be mounted: {error.strerror}")
    _, groups = network_hierarchy()
    cgroup = cgroup_for(Hierarchies({"net_cls": network, "net_prio": network}, ""), path)
    try:
        cgroup.create()
        cgroup.apply({"network": {"classID": 0x100001, "priorities": [{"name": "lo", "priority": 5}]}})

        assert Path(network + path, "net_cls.classid").read_text() == f"{0x100001}\n"
        assert "lo 5" in Path(network + path, "net_prio.ifpriomap").read_text().splitlines()
    finally:
        cgroup.remove()
        # One whose last mount goes before the kernel has let go of a removed cgroup stays, and is everybody's.
        eventually(lambda: network_hierarchy()[1] == groups)
        umount2(network, 0)
    eventually(lambda: network_hierarchy()[0] == number)


def network_hierarchy() -> tuple[int, int]:
    """Return the number of the hierarchy that has net_cls, 0 if none has, and how many cgroups are in it."""
    lines = Path("/proc/cgroups").read_text().splitlines()
    (fields,) = [line.split() for line in lines if line.startswith("net_cls\t")]
    return int(fields[1]), int(fields[2])


@on_v1
@pytest.mark.parametrize(("limit", "swap"), [(128, 192), (32, 48), (64, -1), (-1, -1)])
def test_update_raises_and_lowers_memory_and_swap(lab: Lab, limit: int, swap: int) -> None:
    """Whatever comes first, memory alone may never exceed memory and swap."""
    container = lab.running(limited(lab, memory={"limit": 64 * MIB, "swap": 96 * MIB}))
    scaled = [value if value < 0 else value * MIB for value in (limit, swap)]

    container.update(json.dumps({"memory": {"limit": scaled[0], "swap": scaled[1]}}).encode())

    found = int(v1_file(container.cgroup.path, "memory", "memory.limit_in_bytes"))
    assert found == scaled[0] if limit > 0 else found > 1 << 50


def test_a_value_that_the_kernel_refuses_is_named(lab: Lab) -> None:
    with pytest.raises(OciError, match=r"linux.resources.cpu.period: writing '1'|linux.resources.cpu"):
        lab.create(limited(lab, cpu={"quota": 1, "period": 1}))


@pytest.mark.parametrize("document", [b"[]", b"{", b'{"memory":{"limit":"much"}}', b'{"cpu":{"shares":-1}}'])
def test_a_bad_update_is_refused(lab: Lab, document: bytes) -> None:
    container = lab.running()

    with pytest.raises(OciError):
        container.update(document)


def test_counters(lab: Lab) -> None:
    container = lab.running(limited(lab, pids={"limit": 50}, memory={"limit": 64 * MIB}))

    url, data = container.stats()

    if mounted().is_v2:
        assert url == "io.containerd.cgroups.v2.Metrics"
        new = v2.Metrics.FromString(data)
        assert (new.pids.current, new.pids.limit, new.memory.usage_limit) == (1, 50, 64 * MIB)
    else:
        assert url == "io.containerd.cgroups.v1.Metrics"
        old = v1.Metrics.FromString(data)
        assert (old.pids.current, old.pids.limit, old.memory.usage.limit) == (1, 50, 64 * MIB)
        assert old.cpu.usage.total > 0
        # The kernel counts pages for a while before it tells.
        eventually(lambda: v1.Metrics.FromString(container.stats()[1]).memory.rss > 0)


def test_an_oom_kill_is_seen_and_counted(lab: Lab) -> None:
    spec = limited(lab, memory={"limit": 16 * MIB, "swap": 16 * MIB})
    spec["process"]["args"] = [
        "sh",
        "-c",
        "cat <&0; head -c 100000000 /dev/zero | busybox tail -c 100000000 >/dev/null",
    ]
    read_fd, write_fd = os.pipe()
    with open("/dev/null", "r+b") as null:
        container = lab.create(spec, stdio=(read_fd, null.fileno(), null.fileno()))
    os.close(read_fd)
    watch = container.cgroup.oom_watch()
    assert watch is not None
    poll = select.poll()
    poll.register(watch[0], select.POLLIN if not mounted().is_v2 else select.POLLPRI)
    assert container.oom_kills() == 0

    container.start()
    os.close(write_fd)

    assert poll.poll(30_000)
    eventually(lambda: container.oom_kills() >= 1)
    for fd in watch:
        os.close(fd)


def test_devices_are_denied_by_the_cgroup(lab: Lab) -> None:
    spec = limited(lab, devices=[{"allow": False, "access": "rwm"}])
    spec["process"]["capabilities"] = {name: ["CAP_MKNOD"] for name in ("bounding", "effective", "permitted")}
    container = lab.running(spec)
    script = (
        "head -c 1 /dev/zero | wc -c; busybox mknod /kmsg c 1 11 && cat /kmsg; busybox mknod /mem c 1 1; head -c1 /mem"
    )

    output = lab.exec(container, process("sh", "-c", script, capabilities=spec["process"]["capabilities"])).output

    assert output.startswith("1\n")
    assert output.count("Operation not permitted") == 2


def test_a_cgroup_with_processes_is_not_taken(lab: Lab) -> None:
    first = lab.running()
    spec = lab.spec("true")
    spec["linux"]["cgroupsPath"] = first.cgroup.path

    with pytest.raises(OciError, match=r"is not empty"):
        lab.create(spec)

    assert first.pids() == [first.pid]


@pytest.mark.parametrize("path", ["/", "/../x", "a/../../b"])
def test_a_path_out_of_the_hierarchy_is_refused(lab: Lab, path: str) -> None:
    spec = lab.spec("true")
    spec["linux"]["cgroupsPath"] = path

    with pytest.raises(OciError, match=r"linux.cgroupsPath"):
        lab.create(spec)


# -- version 2, also where it is only mounted beside version 1: what needs no controller is the same


@pytest.fixture
def unified() -> Hierarchies:
    if not mounted().unified:
        pytest.skip("no cgroup version 2 is mounted")
    return Hierarchies({}, mounted().unified)


def made_on_v2(lab: Lab, hierarchies: Hierarchies, *args: str, **resources: object) -> tuple[CgroupV2, int]:
    """Create a container in version 2 and return its cgroup and the pipe of its output."""
    spec = lab.spec(*args)
    spec["linux"]["resources"] = resources
    bundle = lab.bundle(spec)
    read_fd, write_fd = os.pipe()
    with open("/dev/null", "r+b") as null:
        stdio = Stdio(null.fileno(), write_fd, write_fd)
        container = create(bundle.name, str(bundle), stdio, CreateOptions(), hierarchies)
    os.close(write_fd)
    lab.containers.append(container)
    container.start()
    assert isinstance(container.cgroup, CgroupV2)
    return container.cgroup, read_fd


def test_version_2_clones_into_the_cgroup(lab: Lab, unified: Hierarchies) -> None:
    cgroup, read_fd = made_on_v2(lab, unified, "cat", "/proc/self/cgroup")

    output = read_all(read_fd)
    os.close(read_fd)

    assert f"0::{cgroup.path}\n" in output


def test_version_2_exec_pause_kill(lab: Lab, unified: Hierarchies) -> None:
    cgroup, read_fd = made_on_v2(lab, unified, "sleep", "1000")
    (container,) = lab.containers
    assert f"0::{cgroup.path}\n" in lab.exec(container, process("cat", "/proc/self/cgroup")).output

    container.pause()
    assert cgroup.is_paused()
    container.resume()
    assert not cgroup.is_paused()

    container.kill_all(signal.SIGKILL)
    assert wait(container.pidfd) == 137
    os.close(read_fd)


def test_version_2_tells_of_a_failure_that_comes_before_init_is_seen(
    lab: Lab, unified: Hierarchies, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(pid: int) -> int:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)  # as who becomes its parent does
        eventually(lambda: not Path(f"/proc/{pid}").exists())
        return pidfd_open(pid)

    monkeypatch.setattr(runtime, "pidfd_open", late)
    with pytest.raises(OciError, match="/no/such"):
        made_on_v2(lab, unified, "/no/such")


def test_version_2_exec_where_init_has_moved_down(lab: Lab, unified: Hierarchies) -> None:
    """As systemd does: its cgroup then has controllers for its children and takes no processes."""
    cgroup, read_fd = made_on_v2(lab, unified, "sleep", "1000")
    os.close(read_fd)
    (container,) = lab.containers
    directory = Path(unified.unified + cgroup.path)
    controllers = (directory / "cgroup.controllers").read_text().split()
    if not controllers:
        pytest.skip("no controller can be enabled here")
    (directory / "inner").mkdir()
    (directory / "inner/cgroup.procs").write_text(str(container.pid))
    (directory / "cgroup.subtree_control").write_text(f"+{controllers[0]}")

    assert f"0::{cgroup.path}/inner\n" in lab.exec(container, process("cat", "/proc/self/cgroup")).output


def test_version_2_filters_devices(lab: Lab, unified: Hierarchies) -> None:
    rules = [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}]
    script = "cat /dev/null; head -c 1 /dev/zero | wc -c; echo x >/kmsg; head -c 1 /mem"
    spec_args = ("sh", "-c", f"busybox mknod /kmsg c 1 11; busybox mknod /mem c 1 1; {script}")
    spec = lab.spec(*spec_args)
    spec["linux"]["resources"] = {"devices": rules}
    spec["process"]["capabilities"] = {name: ["CAP_MKNOD"] for name in ("bounding", "effective", "permitted")}
    bundle = lab.bundle(spec)
    read_fd, write_fd = os.pipe()
    with open("/dev/null", "r+b") as null:
        container = create(bundle.name, str(bundle), Stdio(null.fileno(), write_fd, write_fd), CreateOptions(), unified)
    os.close(write_fd)
    lab.containers.append(container)
    container.start()

    output = read_all(read_fd)
    os.close(read_fd)

    assert output.startswith("1\n")
    assert output.count("Operation not permitted") == 2
    wait(container.pidfd)

    # Another set of rules replaces the first.
    cgroup_for(unified, container.cgroup.path).apply({"devices": [{"allow": True, "access": "rwm"}]})


def test_a_user_namespace_on_version_2(lab: Lab, unified: Hierarchies) -> None:
    spec = lab.spec("sh", "-c", "id -u; cat /proc/self/cgroup")
    spec["linux"]["namespaces"] += [{"type": "user"}, {"type": "cgroup"}]
    spec["linux"]["uidMappings"] = spec["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 100_000, "size": 1000}]
    bundle = lab.bundle(spec)
    read_fd, write_fd = os.pipe()
    with open("/dev/null", "r+b") as null:
        container = create(bundle.name, str(bundle), Stdio(null.fileno(), write_fd, write_fd), CreateOptions(), unified)
    os.close(write_fd)
    lab.containers.append(container)
    container.start()

    output = read_all(read_fd)
    os.close(read_fd)

    assert output.startswith("0\n")
    assert "0::/\n" in output
