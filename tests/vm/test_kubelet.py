"""A kubelet 1.36, unmodified, where systemd manages cgroups of version 2: pods are slices, their containers scopes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_wire.cri import runtime_pb2
from support.cri_client import CriClient
from support.daemon_process import DaemonProcess, wait_until
from support.kubelet import SECONDS, Kubelet, Pod

pytestmark = [pytest.mark.vm, pytest.mark.root]

MIB = 1 << 20


@pytest.fixture(scope="module")
def cri() -> Iterator[CriClient]:
    with DaemonProcess() as daemon, CriClient(daemon) as client:
        yield client


@pytest.fixture(scope="module")
def kubelet(cri: CriClient) -> Iterator[Kubelet]:
    with Kubelet(cri.daemon) as kubelet:
        yield kubelet


def test_pods_of_a_kubelet(kubelet: Kubelet, cri: CriClient) -> None:
    """In one test, as a kubelet is slow to start here: where they are, how one ends, and who may die meanwhile."""
    pod = Pod(
        kubelet,
        cri,
        "until [ -e /data/greedy ]; do sleep 1; done; rm /data/greedy; exec tail /dev/zero",
        resources={"limits": {"memory": "64Mi", "cpu": "500m"}, "requests": {"memory": "32Mi"}},
        livenessProbe={"exec": {"command": ["true"]}, "periodSeconds": 10, "timeoutSeconds": 100},
        pod={"hostNetwork": True},  # the machine has no other
    ).started()
    assert 'received from the CRI runtime" cgroupDriver="systemd"' in kubelet.log_text()
    asked = runtime_pb2.ContainerStatusRequest(container_id=pod.id, verbose=True)
    inside = json.loads(cri.runtime.ContainerStatus(asked).info["info"])["pid"]
    cgroup = Path(f"/proc/{inside}/cgroup").read_text().strip().removeprefix("0::")
    top, quality, of_pod, scope = cgroup.strip("/").split("/")
    assert (top, quality) == ("kubepods.slice", "kubepods-burstable.slice")
    assert of_pod.startswith("kubepods-burstable-pod")
    assert scope == f"cri-containerd-{pod.id}.scope"
    for path in (Path("/sys/fs/cgroup") / cgroup.strip("/"), Path("/sys/fs/cgroup", top, quality, of_pod)):
        assert int((path / "memory.max").read_text()) == 64 * MIB
        assert (path / "cpu.max").read_text() == "50000 100000\n"

    before = pod.status
    cri.daemon.restart()
    kubelet.stop()
    kubelet.start()
    after = pod.started().status
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)

    pod.exec("touch", "/data/greedy")
    status = pod.until(lambda status: status.get("restartCount") == 1 and status["ready"], "it lives again")
    assert status["lastState"]["terminated"]["reason"] == "OOMKilled"
    kubelet.withdraw(pod.name)
    wait_until(lambda: not cri.pods(), "the pod is removed", SECONDS)
    wait_until(lambda: not kubelet.pod_cgroups(), f"no cgroups are left, but {kubelet.pod_cgroups()}", SECONDS)
