"""Options of `pyctr-oci update`, `exec` and `run`, by what the kernel says of limits and processes afterwards."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyctr_shim.oci import lsm
from pyctr_shim.oci.cgroups import mounted
from pyctr_shim.oci.commands import LIMIT_OPTIONS
from pyctr_sys.capabilities import NAMES
from support.oci_bundle import Lab, Spec, eventually
from support.oci_command import Command, detached

pytestmark = pytest.mark.root

_MIB = 1 << 20

_ALONE = 1 << NAMES.index("CAP_KILL")
_BOTH = _ALONE | 1 << NAMES.index("CAP_CHOWN")

# option: what it is given, file of version 1, what that says then, file of version 2, what that says then.
_LIMITS = {
    "memory": ("64m", "memory.limit_in_bytes", str(64 * _MIB), "memory.max", str(64 * _MIB)),
    "memory-reservation": ("32m", "memory.soft_limit_in_bytes", str(32 * _MIB), "memory.low", str(32 * _MIB)),
    "memory-swap": ("512m", "memory.memsw.limit_in_bytes", str(512 * _MIB), "memory.swap.max", str(256 * _MIB)),
    "kernel-memory-tcp": ("16m", "memory.kmem.tcp.limit_in_bytes", str(16 * _MIB), "", ""),
    "cpu-period": ("50000", "cpu.cfs_period_us", "50000", "cpu.max", "50000 50000"),
    "cpu-quota": ("20000", "cpu.cfs_quota_us", "20000", "cpu.max", "20000 100000"),
    "cpu-burst": ("10000", "cpu.cfs_burst_us", "10000", "cpu.max.burst", "10000"),
    "cpu-share": ("512", "cpu.shares", "512", "cpu.weight", "59"),
    "cpu-rt-period": ("500000", "cpu.rt_period_us", "500000", "", ""),
    "cpu-rt-runtime": ("10000", "cpu.rt_runtime_us", "10000", "", ""),
    "cpu-idle": ("1", "cpu.idle", "1", "cpu.idle", "1"),
    "cpuset-cpus": ("0", "cpuset.cpus", "0", "cpuset.cpus", "0"),
    "cpuset-mems": ("0", "cpuset.mems", "0", "cpuset.mems", "0"),
    "pids-limit": ("77", "pids.max", "77", "pids.max", "77"),
    "blkio-weight": ("500", "blkio.bfq.weight", "500", "io.weight", "default 4950"),
}


def running(lab: Lab, oci: Command, spec: Spec | None = None, *options: str) -> int:
    """Run a container, one that sleeps if nothing else is given, and return its pid."""
    bundle = lab.bundle(spec or lab.spec("sleep", "1000"))
    assert oci("run", "-d", *options, "--bundle", str(bundle), "c1", **detached()).returncode == 0
    return int(json.loads(oci("state", "c1").stdout)["pid"])


def cgroup_file(path: str, name: str) -> Path:
    """Return a file of a cgroup, in the hierarchy of the controller that its name begins with."""
    controller = name.partition(".")[0]
    top = mounted().unified if mounted().is_v2 else mounted().controllers.get(controller, "/nowhere")
    return Path(f"{top}{path}/{name}")


def test_every_limit_has_a_row() -> None:
    assert {*_LIMITS, "kernel-memory"} == {option for option, _, _ in LIMIT_OPTIONS}


@pytest.mark.parametrize("option", _LIMITS)
def test_a_limit_is_the_kernels(lab: Lab, oci: Command, option: str) -> None:
    value, *version_1, name, shown = _LIMITS[option]
    name, shown = (name, shown) if mounted().is_v2 else version_1
    spec = lab.spec("sleep", "1000")
    path = spec["linux"]["cgroupsPath"]
    spec["linux"]["resources"] = {
        "memory": {"limit": 256 * _MIB},
        "cpu": {"quota": 50_000, "period": 100_000},
    }
    running(lab, oci, spec)
    if name and not cgroup_file(path, name).exists():
        pytest.skip(f"this kernel has no {name}")
    if option == "cpu-rt-runtime" and name:
        cgroup_file(lab.cgroup, name).write_text("20000")  # no child has more than its parent
    before = cgroup_file(path, name).read_text() if name else ""
    also = ["--memory", "256m"] if option == "memory-swap" else []  # which version 2 counts without it

    done = oci("update", *also, f"--{option}", value, "c1")

    if not name:
        assert (done.returncode, "has no such limit" in done.stderr) == (1, True), done.stderr
        return
    assert (done.returncode, done.stderr) == (0, "")
    after = cgroup_file(path, name).read_text()
    assert after.strip() == shown
    assert after != before or option == "cpuset-mems"  # of which most machines have one


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("kernel-memory", "64m", "linux.resources.memory.kernel: the kernel has dropped this limit"),
        ("cpuset-cpus", "999", "linux.resources.cpu.cpus: writing '999' to "),
        ("cpuset-mems", "999", "linux.resources.cpu.mems: writing '999' to "),
        ("cpu-period", "1", "linux.resources.cpu."),
    ],
)
def test_a_limit_that_there_is_not(lab: Lab, oci: Command, option: str, value: str, text: str) -> None:
    running(lab, oci)

    refused = oci("update", f"--{option}", value, "c1")

    assert refused.returncode == 1
    assert text in refused.stderr


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        (("--no-new-privs",), "NoNewPrivs", "1"),
        ((), "NoNewPrivs", "0"),
        (("--cap", "CAP_KILL"), "CapEff", _ALONE),
        (("--cap", "CAP_KILL", "-c", "CAP_CHOWN"), "CapBnd", _BOTH),
        (("--cap", "CAP_KILL"), "CapInh", 0),
        ((), "CapEff", 0),
    ],
)  # fmt: skip
def test_what_an_exec_may_do(lab: Lab, oci: Command, options: tuple[str, ...], field: str, value: str | int) -> None:
    running(lab, oci)

    (found,) = re.findall(rf"^{field}:\t(\w+)$", oci("exec", *options, "c1", "cat", "/proc/self/status").stdout, re.M)

    assert (found if isinstance(value, str) else int(found, 16)) == value


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--cap", "CAP_FLY"), "unknown capability 'CAP_FLY'"),
        pytest.param(("--apparmor", "pyctr-absent"), "process.apparmorProfile: 'pyctr-absent': AppArmor is not enabled",
                     marks=pytest.mark.skipif(lsm.apparmor_enabled(), reason="AppArmor is enabled here")),
        pytest.param(("--apparmor", "pyctr-absent"), "process.apparmorProfile: 'pyctr-absent': No such file",
                     marks=pytest.mark.skipif(not lsm.apparmor_enabled(), reason="AppArmor is not enabled here")),
        pytest.param(("--process-label", "a:b:c"), "process.selinuxLabel: 'a:b:c': SELinux is not enabled",
                     marks=pytest.mark.skipif(lsm.selinux_enabled(), reason="SELinux is enabled here")),
    ],
)  # fmt: skip
def test_what_an_exec_cannot_have(lab: Lab, oci: Command, options: tuple[str, ...], text: str) -> None:
    running(lab, oci)

    refused = oci("exec", *options, "c1", "true")

    assert refused.returncode == 255
    assert text in refused.stderr


@pytest.mark.parametrize("options", [(), ("--no-subreaper",)])
def test_whose_orphans_those_of_a_container_are(lab: Lab, oci: Command, options: tuple[str, ...]) -> None:
    """The command's, unless told otherwise: where a PID namespace is not the container's own, nobody there adopts."""
    spec = lab.spec("sh", "-c", "(sleep 1000 & echo $!); while :; do sleep 0.05; done")
    spec["linux"]["namespaces"] = [item for item in spec["linux"]["namespaces"] if item["type"] != "pid"]
    line = [sys.executable, "-m", "pyctr_shim.oci", "--root", str(oci.root), "run", *options]
    with subprocess.Popen([*line, "--bundle", str(lab.bundle(spec)), "c1"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        orphan = int(process.stdout.readline())

        eventually(lambda: (parent_of(orphan) == process.pid) is not bool(options) and parent_is_settled(oci, orphan))
        os.kill(orphan, signal.SIGKILL)
        oci("kill", "c1", "KILL")
        process.wait(60)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def parent_is_settled(oci: Command, pid: int) -> bool:
    """Whether the parent is no process of the container's any more."""
    return parent_of(pid) not in json.loads(oci("ps", "--format", "json", "c1").stdout)
