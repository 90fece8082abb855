"""What a container without a cgroup can do, and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from pyctr_shim.oci.cgroups.absent import NoCgroup
from pyctr_shim.oci.cgroups.manager import Hierarchies, Resources
from pyctr_shim.oci.errors import OciError
from support.daemon_process import wait_until


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        ({"memory": {"limit": 1}}, "memory.limit"),
        ({"cpu": {"shares": 0, "quota": 5}}, "cpu.quota"),
        ({"pids": {"limit": 7}}, "pids.limit"),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}, "hugepageLimits"),
        ({"unified": {"memory.max": "1"}}, "unified.memory.max"),
    ],
)
def test_limits_are_refused_by_name(resources: Resources, field: str) -> None:
    with pytest.raises(OciError, match=rf"^linux\.resources\.{field}: no cgroup has been delegated"):
        NoCgroup("/x").apply(resources)


def test_what_limits_nothing_is_not() -> None:
    NoCgroup("/x").apply({"memory": {"limit": -1}, "cpu": {"shares": 0}, "pids": {}, "hugepageLimits": [],
                          "devices": [{"allow": False, "access": "rwm"}]})  # fmt: skip


def test_nothing_can_be_paused() -> None:
    with pytest.raises(OciError, match="paused by its cgroup: no cgroup has been delegated"):
        NoCgroup("/x").pause()


def test_paths_are_below_what_was_delegated() -> None:
    given = Hierarchies({}, "/sys/fs/cgroup", "/user.slice/unit")
    assert given.below_base("/default/x") == "/user.slice/unit/default/x"
    assert given.below_base("/user.slice/unit/default/x") == "/user.slice/unit/default/x"
    assert Hierarchies({}, "/sys/fs/cgroup").below_base("/default/x") == "/default/x"
    assert not Hierarchies({}, "").is_v2


def test_init_and_its_descendants_are_found_and_nobody_once_it_has_ended() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()

        cgroup = NoCgroup("/x", process.pid)
        found = cgroup.pids()

        assert found[0] == process.pid
        assert len(found) == 2
        cgroup.kill()
        process.wait(30)
    assert cgroup.pids() == []
    assert NoCgroup("/x", process.pid).pids() == []


@pytest.mark.root
def test_a_pid_namespace_has_all_of_its_processes() -> None:
    """Also those whose parents have ended."""
    script = "(sleep 1000 & sleep 1000 &); echo; exec sleep 1000"
    command = ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        init = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        cgroup = NoCgroup("/x", init)

        wait_until(lambda: len(cgroup.pids()) == 3, "both in the background have been forked")

        cgroup.kill()
        process.wait(30)
    assert cgroup.pids() == []
