"""Containers whose cgroups systemd makes, on a machine that it runs."""

import json
import os
import subprocess
import uuid
from pathlib import Path

import pytest

from pyctr_shim.oci import state
from pyctr_shim.oci.cgroups import mounted
from pyctr_shim.oci.checkpoint.choices import Common, Dump, Restore
from pyctr_shim.oci.checkpoint.dump import dump
from pyctr_shim.oci.errors import OciError
from support.criu import require_criu
from support.oci_bundle import Lab, Spec, eventually, needs_systemd, process, wait
from support.oci_command import Command, detached

MIB = 1 << 20
pytestmark = pytest.mark.root


def show(unit: str, name: str) -> str:
    return subprocess.run(
        ["systemctl", "show", "-P", name, unit], capture_output=True, text=True, check=True
    ).stdout.strip()


def scoped(lab: Lab, *args: str, **resources: object) -> tuple[Spec, str]:
    spec = lab.spec(*args)
    name = uuid.uuid4().hex[:12]
    spec["linux"] |= {"cgroupsPath": f"pyctrtest.slice:pyctr:{name}", "resources": resources}
    return spec, f"pyctr-{name}.scope"


def cgroup_file(path: str, name: str, controller: str) -> Path:
    top = mounted().unified if mounted().is_v2 else mounted().controllers[controller]
    return Path(f"{top}{path}/{name}")


@needs_systemd
def test_a_container_is_a_scope_with_its_limits(lab: Lab) -> None:
    limits = {"memory": {"limit": 64 * MIB}, "pids": {"limit": 50}, "cpu": {"quota": 50_000, "period": 100_000}}
    spec, unit = scoped(lab, "sleep", "1000", **limits)

    container = lab.create(spec, systemd_cgroup=True)
    assert container.waiting is not None  # made in place
    container.start()

    assert container.cgroup.path == f"/pyctrtest.slice/{unit}"
    assert container.cgroup.path in Path(f"/proc/{container.pid}/cgroup").read_text()
    assert show(unit, "ActiveState") == "active"
    assert show(unit, "Delegate") == "yes"
    assert show(unit, "TasksMax") == "50"
    assert show(unit, "CPUQuotaPerSecUSec") == "500ms"
    limit = cgroup_file(container.cgroup.path, "pids.max", "pids")
    assert limit.read_text().strip() == "50"

    container.update(json.dumps({"pids": {"limit": 40}}).encode())
    subprocess.run(["systemctl", "daemon-reload"], check=True)

    assert show(unit, "TasksMax") == "40"
    assert limit.read_text().strip() == "40"
    assert lab.exec(container, process("cat", "/proc/self/cgroup")).output.count(unit) >= 1

    lab.remove(container)
    assert not limit.parent.exists()
    eventually(lambda: show(unit, "ActiveState") == "inactive")


@needs_systemd
def test_a_scope_by_the_command(lab: Lab, oci: Command) -> None:
    """Whose later calls are other processes, told of the scope by the container's record alone."""
    spec, unit = scoped(lab, "sleep", "1000", pids={"limit": 50}, cpu={"quota": 50_000, "period": 100_000})
    bundle = str(lab.bundle(spec))

    made = oci("--systemd-cgroup", "run", "-d", "--bundle", bundle, "c1", **detached())

    assert made.returncode == 0
    pid = json.loads(oci("state", "c1").stdout)["pid"]
    assert unit in Path(f"/proc/{pid}/cgroup").read_text()
    assert show(unit, "TasksMax") == "50"
    assert unit in oci("exec", "c1", "cat", "/proc/self/cgroup").stdout

    assert oci("update", "--pids-limit", "40", "--cpu-quota", "20000", "c1").returncode == 0
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    assert (show(unit, "TasksMax"), show(unit, "CPUQuotaPerSecUSec")) == ("40", "200ms")
    limit = cgroup_file(f"/pyctrtest.slice/{unit}", "pids.max", "pids")
    assert limit.read_text() == "40\n"

    assert oci("delete", "--force", "c1").returncode == 0
    assert not limit.parent.exists()
    eventually(lambda: show(unit, "ActiveState") == "inactive")


@needs_systemd
@pytest.mark.skipif(not mounted().is_v2, reason="version 1 has a file each for quota and period")
def test_a_scopes_quota_outlives_an_update_of_its_period(lab: Lab) -> None:
    spec, unit = scoped(lab, "sleep", "1000", cpu={"quota": 50_000, "period": 100_000})
    container = lab.running(spec, systemd_cgroup=True)

    container.update(json.dumps({"cpu": {"period": 50_000}}).encode())

    assert show(unit, "CPUQuotaPerSecUSec") == "1s"
    assert cgroup_file(container.cgroup.path, "cpu.max", "cpu").read_text() == "50000 50000\n"


def test_the_command_refuses_a_plain_path_as_a_scope(lab: Lab, oci: Command) -> None:
    refused = oci("--systemd-cgroup", "create", "--bundle", str(lab.bundle(lab.spec("true"))), "c1")

    assert refused.returncode == 1
    assert 'expected cgroupsPath to be of format "slice:prefix:name"' in refused.stderr


@needs_systemd
def test_devices_stay_denied_after_a_reload(lab: Lab) -> None:
    """A reload of systemd's units once opened all devices to containers."""
    spec, _ = scoped(lab, "sleep", "1000", devices=[{"allow": False, "access": "rwm"}])
    spec["process"]["capabilities"] = {name: ["CAP_MKNOD"] for name in ("bounding", "effective", "permitted")}
    container = lab.running(spec, systemd_cgroup=True)
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    capabilities = spec["process"]["capabilities"]

    script = "busybox mknod /kmsg c 1 11; echo x >/kmsg; echo x >/dev/null && echo null"
    output = lab.exec(container, process("sh", "-c", script, capabilities=capabilities)).output

    assert "Operation not permitted" in output
    assert output.endswith("null\n")


@needs_systemd
def test_a_user_namespace_in_a_scope(lab: Lab) -> None:
    spec, unit = scoped(lab, "sleep", "1000")
    spec["linux"]["namespaces"].append({"type": "user"})
    spec["linux"]["uidMappings"] = spec["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 100_000, "size": 1000}]

    container = lab.running(spec, systemd_cgroup=True)

    assert unit in Path(f"/proc/{container.pid}/cgroup").read_text()


@needs_systemd
def test_a_creation_that_fails_leaves_no_unit(lab: Lab) -> None:
    spec, unit = scoped(lab, "sleep", "1000")
    spec["hooks"] = {"createRuntime": [{"path": "/bin/false"}]}

    with pytest.raises(OciError, match=r"hooks\.createRuntime"):
        lab.create(spec, systemd_cgroup=True)

    eventually(lambda: show(unit, "ActiveState") == "inactive")
    assert not cgroup_file(f"/pyctrtest.slice/{unit}", "cgroup.procs", "pids").exists()


@needs_systemd
def test_a_unit_that_is_there_is_not_taken(lab: Lab) -> None:
    spec, unit = scoped(lab, "sleep", "1000")
    first = lab.running(spec, systemd_cgroup=True)

    with pytest.raises(OciError, match="not empty: processes are in it"):
        lab.create(spec, systemd_cgroup=True)

    os.kill(first.pid, 0)
    assert show(unit, "ActiveState") == "active"


@needs_systemd
def test_a_container_that_ends_by_itself(lab: Lab) -> None:
    spec, unit = scoped(lab, "true")
    container = lab.running(spec, systemd_cgroup=True)
    assert wait(container.pidfd) == 0

    lab.remove(container)

    eventually(lambda: show(unit, "ActiveState") == "inactive")


@pytest.mark.skipif(Path("/run/systemd/private").exists(), reason="systemd runs here")
def test_without_systemd_the_choice_is_refused(lab: Lab) -> None:
    spec, unit = scoped(lab, "true")

    with pytest.raises(OciError, match=f"systemd: {unit}: "):
        lab.create(spec, systemd_cgroup=True)


def test_a_plain_path_is_no_scope(lab: Lab) -> None:
    with pytest.raises(OciError, match='expected cgroupsPath to be of format "slice:prefix:name"'):
        lab.create(lab.spec("true"), systemd_cgroup=True)


@needs_systemd
def test_a_scope_is_saved_and_restored(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_criu(monkeypatch)
    spec, unit = scoped(lab, "sleep", "1000")
    container = lab.running(spec, systemd_cgroup=True)
    images = str(tmp_path / "images")

    dump(state.read(container.state_directory), Dump(Common(images)))
    wait(container.pidfd)
    lab.remove(container)
    choices = Restore(Common(images))
    again = lab.create(spec, bundle=Path(container.bundle), systemd_cgroup=True, checkpoint=choices)
    again.start()

    assert f"/pyctrtest.slice/{unit}" in Path(f"/proc/{again.pid}/cgroup").read_text()
    assert show(unit, "ActiveState") == "active"
