"""Containers on a machine whose only cgroups are of version 2, through the daemon and the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from pyctr_wire.containerd.cgroups.v2 import metrics_pb2
from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2
from pyctr_wire.containerd.types.task import task_pb2
from support.containers import Containers, EventLog
from support.daemon_process import DEADLINE, DaemonProcess, wait_until

pytestmark = [pytest.mark.vm, pytest.mark.root]

MIB = 1 << 20
ROOT = Path("/sys/fs/cgroup")
ALL = [{"allow": True, "access": "rwm"}]
NONE = [{"allow": False, "access": "rwm"}]


def run(containers: Containers, id: str, *arguments: str, capabilities: tuple[str, ...] = (), **resources: Any) -> int:
    """Run a container with limits and return its pid."""
    spec = containers.spec(id, *arguments)
    sets = {name: list(capabilities) for name in ("bounding", "effective", "permitted")}
    process = spec["process"] | {"capabilities": sets}
    linux = spec["linux"] | {"resources": {"devices": ALL} | resources}
    containers.define(id, *arguments, process=process, linux=linux)
    containers.create(id)
    return containers.start(id)


def cgroup(pid: int) -> Path:
    return ROOT / Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::/")


def limit(pid: int, name: str) -> str:
    return (cgroup(pid) / name).read_text().strip()


def pyctr(daemon: DaemonProcess, *arguments: str) -> str:
    command = [sys.executable, "-m", "pyctr", "--address", str(daemon.address), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_container_is_where_its_spec_says(containers: Containers) -> None:
    pid = run(containers, "there", "sleep", "1000")

    assert cgroup(pid) == ROOT / containers.group / "there"


def test_limits_are_the_kernels(containers: Containers) -> None:
    pid = run(
        containers, "limited", "sleep", "1000",
        memory={"limit": 64 * MIB, "reservation": 32 * MIB, "swap": 96 * MIB},
        cpu={"shares": 1024, "quota": 50_000, "period": 100_000, "cpus": "0", "mems": "0"},
        pids={"limit": 40},
        blockIO={"weight": 500},
        unified={"memory.high": str(60 * MIB)},
    )  # fmt: skip

    assert limit(pid, "memory.max") == str(64 * MIB)
    assert limit(pid, "memory.low") == str(32 * MIB)
    assert limit(pid, "memory.high") == str(60 * MIB)
    assert limit(pid, "memory.swap.max") == str(32 * MIB)
    assert limit(pid, "cpu.max") == "50000 100000"
    assert limit(pid, "cpu.weight") == "39"
    assert limit(pid, "cpuset.cpus") == "0"
    assert limit(pid, "pids.max") == "40"
    if (cgroup(pid) / "io.bfq.weight").exists():
        assert limit(pid, "io.bfq.weight") == "default 500"
    else:
        assert limit(pid, "io.weight") == "default 4950"


def test_limits_of_a_disk_are_the_kernels(containers: Containers) -> None:
    disk = os.stat("/dev/vda").st_rdev
    device = {"major": os.major(disk), "minor": os.minor(disk)}
    fields = ("ReadBps", "WriteBps", "ReadIOPS", "WriteIOPS")
    rates = {f"throttle{field}Device": [device | {"rate": rate}] for rate, field in enumerate(fields, 4096)}
    pid = run(containers, "throttled", "sleep", "1000", blockIO=rates)
    name = f"{os.major(disk)}:{os.minor(disk)}"

    assert limit(pid, "io.max") == f"{name} rbps=4096 wbps=4097 riops=4098 wiops=4099"

    request = tasks_pb2.UpdateTaskRequest(container_id="throttled")
    request.resources.type_url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
    unlimited = {field: [device | {"rate": 0}] for field in rates}
    request.resources.value = json.dumps({"blockIO": unlimited}).encode()
    containers.tasks("Update", request)
    assert limit(pid, "io.max") == ""


def test_the_weight_of_a_disk_is_the_kernels(containers: Containers) -> None:
    """Or refused by its field, where the kernel weighs no disks."""
    disk = os.stat("/dev/vda").st_rdev
    name = f"{os.major(disk)}:{os.minor(disk)}"
    weights = [{"major": os.major(disk), "minor": os.minor(disk), "weight": 300}]

    try:
        pid = run(containers, "weighed", "sleep", "1000", blockIO={"weight": 500, "weightDevice": weights})
    except grpc.RpcError as error:
        assert "linux.resources.blockIO.weightDevice" in str(error.details())
        pytest.skip(f"this kernel refuses it: {error.details()}")

    if (cgroup(pid) / "io.bfq.weight").exists():
        assert f"{name} 300" in limit(pid, "io.bfq.weight").splitlines()
    else:
        assert f"{name} 2930" in limit(pid, "io.weight").splitlines()


def test_update_changes_limits(containers: Containers) -> None:
    pid = run(containers, "changed", "sleep", "1000", memory={"limit": 64 * MIB})
    request = tasks_pb2.UpdateTaskRequest(container_id="changed")
    request.resources.type_url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
    request.resources.value = json.dumps({"memory": {"limit": 128 * MIB}, "cpu": {"quota": 20_000}}).encode()

    containers.tasks("Update", request)

    assert limit(pid, "memory.max") == str(128 * MIB)
    assert limit(pid, "cpu.max") == "20000 100000"


def test_the_pids_limit_holds(containers: Containers) -> None:
    script = "n=0; while [ $n -lt 20 ]; do busybox sleep 1000 & n=$((n+1)); done; wait"
    run(containers, "forking", "sh", "-c", script, pids={"limit": 5})

    assert containers.wait("forking").status != 0


def test_a_kill_for_memory_is_told_and_recorded(containers: Containers) -> None:
    with EventLog(containers) as log:
        memory = {"limit": 16 * MIB, "swap": 16 * MIB}
        run(containers, "greedy", "sh", "-c", "exec /bin/busybox tail /dev/zero", memory=memory)
        ended = containers.wait("greedy")
        log.wait_for(lambda: {"oom", "exit"} <= set(log.topics("greedy")), "it is told")

    assert ended.status == 137
    record = json.loads((containers.bundles / "greedy/exits/init.json").read_text())
    assert (record["oom_killed"], record["reason"], record["signal"]) == (True, "oom", 9)


def test_a_kill_by_hand_is_no_kill_for_memory(containers: Containers) -> None:
    run(containers, "modest", "sleep", "1000", memory={"limit": 64 * MIB})

    containers.kill("modest")

    assert containers.wait("modest").status == 137
    record = json.loads((containers.bundles / "modest/exits/init.json").read_text())
    assert (record["oom_killed"], record["reason"]) == (False, "signalled")


def test_pause_freezes(containers: Containers) -> None:
    pid = run(containers, "cold", "sleep", "1000")

    containers.tasks("Pause", tasks_pb2.PauseTaskRequest(container_id="cold"))
    assert limit(pid, "cgroup.freeze") == "1"
    assert "frozen 1" in limit(pid, "cgroup.events")
    assert containers.status("cold") == task_pb2.PAUSED

    containers.tasks("Resume", tasks_pb2.ResumeTaskRequest(container_id="cold"))
    assert "frozen 0" in limit(pid, "cgroup.events")
    assert containers.status("cold") == task_pb2.RUNNING


def test_a_paused_container_can_be_killed(containers: Containers) -> None:
    run(containers, "frozen", "sleep", "1000")
    containers.tasks("Pause", tasks_pb2.PauseTaskRequest(container_id="frozen"))

    containers.kill("frozen")

    assert containers.wait("frozen").status == 137


def test_metrics_are_version_2s(containers: Containers) -> None:
    run(containers, "counted", "sleep", "1000", memory={"limit": 64 * MIB}, pids={"limit": 50})

    (metric,) = containers.tasks("Metrics", tasks_pb2.MetricsRequest(filters=["id==counted"])).metrics

    assert metric.data.type_url == "io.containerd.cgroups.v2.Metrics"
    found = metrics_pb2.Metrics.FromString(metric.data.value)
    assert (found.pids.current, found.pids.limit, found.memory.usage_limit) == (1, 50, 64 * MIB)
    assert found.cpu.usage_usec > 0
    assert 0 < found.memory.usage < 64 * MIB


def test_stats_show_use_and_limit(containers: Containers, daemon: DaemonProcess) -> None:
    run(containers, "shown", "sleep", "1000", memory={"limit": 64 * MIB})

    table = pyctr(daemon, "stats", "--no-stream", "shown")

    assert "shown" in table
    assert "64MiB" in table.replace(" ", "")


def test_an_exec_is_in_the_containers_cgroup(containers: Containers) -> None:
    pid = run(containers, "joined", "sleep", "1000", pids={"limit": 40})

    other = containers.exec("joined", "more", "sleep", "1000")

    assert cgroup(other) == cgroup(pid)
    assert sorted(limit(pid, "cgroup.procs").split()) == sorted([str(pid), str(other)])


def test_devices_are_filtered(containers: Containers) -> None:
    """Making any node is allowed; using it only as the rules say, and what every /dev has."""
    disk, other = (os.stat(path).st_rdev for path in ("/dev/vda", "/dev/vdb"))
    nodes = {
        "disk": f"b {os.major(disk)} {os.minor(disk)}",
        "other": f"b {os.major(other)} {os.minor(other)}",
        "full": "c 1 7",
        "mem": "c 1 1",
        "kmsg": "c 1 11",
    }
    attempts = {
        "null": "echo x >/dev/null",
        "zero": "busybox head -c 1 /dev/zero >/dev/null",
        **{f"read {name}": f"busybox head -c 1 /tmp/{name} >/dev/null" for name in nodes},
        "open disk to write": ": >>/tmp/disk",
    }
    script = "; ".join(
        [f"busybox mknod /tmp/{name} {numbers}" for name, numbers in nodes.items()]
        + [f"({command}) 2>/dev/null && echo {name}" for name, command in attempts.items()]
    )
    rule = {"allow": True, "type": "b", "major": os.major(disk), "minor": os.minor(disk), "access": "r"}

    run(
        containers,
        "filtered",
        "sh",
        "-c",
        f"({script}) >/tmp/found",
        capabilities=("CAP_MKNOD",),
        devices=[*NONE, rule],
    )

    containers.wait("filtered")
    found = (containers.rootfs / "tmp/found").read_text().splitlines()
    assert found == ["null", "zero", "read disk", "read full"]
    assert all((containers.rootfs / "tmp" / name).exists() for name in nodes)


def test_what_runs_beside_init_is_killed_with_it(containers: Containers) -> None:
    """kill --all uses cgroup.kill; delete leaves no cgroup, not even one that the container made."""
    pid = run(containers, "many", "sh", "-c", "busybox sleep 1000 & busybox sleep 1000 & wait")
    directory = cgroup(pid)
    wait_until(lambda: len(limit(pid, "cgroup.procs").split()) == 3, "three processes")
    (directory / "inner").mkdir()

    containers.tasks("Kill", tasks_pb2.KillRequest(container_id="many", signal=9, all=True))
    containers.wait("many")
    containers.delete("many")

    assert not directory.exists()


def test_a_limit_that_version_2_lacks_is_refused_by_name(containers: Containers) -> None:
    with pytest.raises(grpc.RpcError, match=r"linux\.resources\.memory\.swappiness"):
        run(containers, "odd", "sleep", "1000", memory={"limit": 64 * MIB, "swappiness": 10})

    assert not (ROOT / containers.group / "odd").exists()


def test_a_container_outlives_its_daemon_with_its_limits(containers: Containers, daemon: DaemonProcess) -> None:
    pid = run(containers, "steady", "sleep", "1000", memory={"limit": 64 * MIB})

    daemon.restart()

    assert containers.status("steady") == task_pb2.RUNNING
    assert limit(pid, "memory.max") == str(64 * MIB)
    assert containers.exec("steady", "more", "sleep", "1000") != pid
    os.kill(pid, 0)


def test_a_killed_shims_container_leaves_no_cgroup(containers: Containers) -> None:
    pid = run(containers, "orphan", "sleep", "1000")
    directory = cgroup(pid)

    os.kill(containers.shim_pid("orphan"), 9)

    wait_until(lambda: containers.status("orphan") == task_pb2.STOPPED, "its end is noticed")
    containers.delete("orphan")
    assert not directory.exists()


@pytest.mark.parametrize("own_namespace", [True, False])
def test_a_container_sees_its_own_cgroup(containers: Containers, own_namespace: bool) -> None:
    spec = containers.spec(
        "looking", "sh", "-c", "busybox cat /proc/self/cgroup /sys/fs/cgroup/cgroup.procs >/tmp/seen"
    )
    linux = spec["linux"] | {"namespaces": [*spec["linux"]["namespaces"], *([{"type": "cgroup"}] * own_namespace)]}
    mounts = [
        *spec["mounts"],
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
    ]
    containers.define("looking", *spec["process"]["args"][1:], linux=linux, mounts=mounts)
    containers.create("looking")
    containers.start("looking")

    assert containers.wait("looking").status == 0
    first, *others = (containers.rootfs / "tmp/seen").read_text().splitlines()
    assert first == ("0::/" if own_namespace else f"0::/{containers.group}/looking")
    assert others


def test_what_runs_into_more_than_a_limit(containers: Containers) -> None:
    pid = run(
        containers, "varied", "sleep", "1000",
        cpu={"quota": 50_000, "period": 100_000, "burst": 10_000, "idle": 1},
        hugepageLimits=[{"pageSize": "2MB", "limit": 4 * MIB}],
        memory={"limit": 64 * MIB, "useHierarchy": True},
    )  # fmt: skip
    request = tasks_pb2.UpdateTaskRequest(container_id="varied")
    request.resources.type_url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"

    assert (limit(pid, "cpu.idle"), limit(pid, "cpu.max.burst")) == ("1", "10000")
    assert {limit(pid, f"hugetlb.2MB.{name}") for name in ("max", "rsvd.max")} == {str(4 * MIB)}

    request.resources.value = json.dumps({"cpu": {"idle": 0, "burst": 0}}).encode()
    containers.tasks("Update", request)
    assert (limit(pid, "cpu.idle"), limit(pid, "cpu.max.burst")) == ("0", "0")

    request.resources.value = json.dumps({"memory": {"limit": 4096, "checkBeforeUpdate": True}}).encode()
    with pytest.raises(grpc.RpcError, match=r"linux\.resources\.memory\.limit: 4096 is less than what is in use"):
        containers.tasks("Update", request)
    assert limit(pid, "memory.max") == str(64 * MIB)


def test_a_cgroup_that_its_container_may_write_to_is_its_users(containers: Containers) -> None:
    spec = containers.spec("owner", "sleep", "1000")
    maps = [{"containerID": 0, "hostID": 100_000, "size": 65536}]
    linux = spec["linux"] | {
        "namespaces": [*spec["linux"]["namespaces"], {"type": "cgroup"}, {"type": "user"}],
        "uidMappings": maps,
        "gidMappings": maps,
    }
    mounts = [*spec["mounts"], {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}]
    (containers.rootfs / "sys/fs/cgroup").mkdir(parents=True, exist_ok=True)
    containers.define("owner", "sleep", "1000", linux=linux, mounts=mounts)
    containers.create("owner")
    directory = cgroup(containers.start("owner"))

    owned = {path.name for path in [directory, *directory.iterdir()] if path.stat().st_uid == 100_000}

    assert {"owner", "cgroup.procs", "cgroup.subtree_control"} <= owned
    assert "memory.max" not in owned
