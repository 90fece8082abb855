"""What a machine that goes down leaves of containers and pods: tests find what those of an earlier boot have left.

The first boot ends as machines are turned off, with everything killed; the second by a power cut.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from pyctr_wire import labels
from pyctr_wire.containerd.services.containers.v1 import containers_pb2
from pyctr_wire.containerd.types.task import task_pb2
from pyctr_wire.cri import runtime_pb2
from support.containers import BUSYBOX, Containers
from support.cri_client import POD, CriClient
from support.daemon_process import DaemonProcess, wait_until

pytestmark = [pytest.mark.vm, pytest.mark.root]

BASES = Path("/var/lib/pyctr-reboot")
# The state as it should be, gone with the boot, and on a disk, which somebody may have configured.
STATES = {"volatile": Path("/run/pyctr-reboot"), "lasting": BASES / "lasting/state"}
NETWORK = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "pyctrpods",
            "isGateway": True,
            "ipam": {"type": "host-local", "dataDir": str(BASES / "ips"), "subnet": "10.99.0.0/24"},
        }
    ],
}
_left: list[object] = []  # to end with the machine


def daemon_of(name: str) -> DaemonProcess:
    config = f'[cri.cni]\nconf_dir = "{BASES}/net.d"\n'
    return DaemonProcess(base=BASES / name, state=STATES[name], config=config)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def fill(name: str) -> DaemonProcess:
    """Have containers in every state when this boot ends: running, with an exec, ended, created, to be removed."""
    daemon = daemon_of(name)
    _left.append(daemon)
    containers = Containers(daemon.start())
    _left.append(containers)
    for id in ("first", "brief"):
        containers.run(id, "sleep", "100000")
    containers.exec("first", "more", "sleep", "100000")
    containers.run("over", "sh", "-c", "exit 7")
    assert containers.wait("over").status == 7
    containers.define("made", "sleep", "100000")
    containers.create("made")
    record = containers_pb2.Container(id="brief", labels={labels.AUTO_REMOVE: "true"})
    request = containers_pb2.UpdateContainerRequest(container=record)
    request.update_mask.paths.append("labels")
    containers.records("Update", request)
    with (daemon.base / "boot").open("w") as file:
        file.write(boot_id())
        file.flush()
        os.fsync(file.fileno())  # the power may be cut before the kernel would
    return daemon


def assert_lost(name: str, daemon: DaemonProcess) -> None:
    """Nobody knows how they ended: 255 where there still is a task, and never 0. They can run again."""
    assert (daemon.base / "boot").read_text() != boot_id(), "no reboot"
    with Containers(daemon) as containers:
        wait_until(lambda: "brief" not in containers.ids(), "what was to be removed is gone")
        assert sorted(containers.ids()) == ["first", "made", "over"]
        assert sorted(containers.task_ids()) == (["first", "made", "over"] if name == "lasting" else [])
        for id in containers.task_ids():
            assert containers.status(id) == task_pb2.STOPPED
            assert containers.wait(id).status == (7 if id == "over" else 255)
            if id == "first":
                # No first process, it heeds the signal that systemd sends before it kills; its shim may see that.
                assert containers.wait(id, "more").status in (143, 255)
                record = json.loads((containers.bundles / "first/exits/init.json").read_text())
                assert record["reason"] in ("lost in a reboot", "signalled")
            containers.delete(id)
        containers.create("first")
        pid = containers.start("first")
        assert Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("name", list(STATES))
def test_containers_run_when_the_machine_is_turned_off(name: str) -> None:
    daemon = fill(name)
    if name == "lasting":
        return
    (BASES / "net.d").mkdir()
    (BASES / "net.d/pods.conflist").write_text(json.dumps(NETWORK))
    cri = CriClient(daemon)
    _left.append(cri)
    pod = cri.run_pod("web", network=POD)
    cri.run(pod, "sleep", "100000")
    assert list((BASES / "ips/pods").glob("10.*"))


@pytest.mark.boot(2)
@pytest.mark.parametrize("name", list(STATES))
def test_they_are_lost_and_can_run_again(name: str) -> None:
    with daemon_of(name) as daemon:
        if name == "volatile":
            assert_pod_lost(CriClient(daemon))
        assert_lost(name, daemon)


def assert_pod_lost(cri: CriClient) -> None:
    """A pod that is not ready, with a container that ended nobody knows how; its address is free again."""
    (pod,) = cri.pods()
    (container,) = cri.containers()
    assert pod.state == runtime_pb2.SANDBOX_NOTREADY
    status = cri.status(container.id)
    assert (status.state, status.exit_code, status.reason) == (runtime_pb2.CONTAINER_EXITED, 255, "Unknown")
    wait_until(lambda: not list((BASES / "ips/pods").glob("10.*")), "its address is given back")
    with cri:
        again = cri.run_pod("again", network=POD)
        assert cri.exec(cri.run(again, "sleep", "1000"), "true").exit_code == 0
    assert not list((cri.daemon.root / "network_records").iterdir())


@pytest.mark.boot(2)
def test_containers_run_when_the_power_is_cut() -> None:
    fill("lasting")


@pytest.mark.boot(3)
def test_they_are_lost_with_the_power() -> None:
    """Files that were written last may be empty or missing. Rows are not."""
    with daemon_of("lasting") as daemon, Containers(daemon) as containers:
        assert (daemon.base / "boot").read_text() != boot_id(), "no reboot"
        wait_until(lambda: "brief" not in containers.ids(), "what was to be removed is gone")
        assert sorted(containers.ids()) == ["first", "made", "over"]
        for id in containers.task_ids():
            assert containers.status(id) == task_pb2.STOPPED
            assert containers.wait(id).status in ((7, 255) if id == "over" else (255,))
            containers.delete(id)
        shutil.copy(BUSYBOX, containers.rootfs / "bin/busybox")  # that was as new
        containers.create("first")
        containers.start("first")
