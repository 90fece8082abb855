"""Pods as a kubelet runs them where systemd manages cgroups of version 2: in slices that the kubelet has made."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_wire.cri import image_pb2, runtime_pb2
from support.cri_client import CriClient
from support.daemon_process import DEADLINE, DaemonProcess, wait_until

pytestmark = [pytest.mark.vm, pytest.mark.root]

MIB = 1 << 20
QUALITY = "/kubepods.slice/kubepods-burstable.slice"
HANDLERS = ("", "runc")


def system(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def client() -> Iterator[CriClient]:
    with DaemonProcess(config="".join(f"[runtimes.{name}]\n" for name in HANDLERS if name)) as daemon:
        yield CriClient(daemon)


class Kubelet:
    """Makes a pod in a slice of its own, with a limit, and containers in it."""

    def __init__(self, cri: CriClient, slice_: str) -> None:
        self.cri, self.slice = cri, slice_
        self.directory = Path(f"/sys/fs/cgroup{QUALITY}/{slice_}")

    def pod(self, handler: str, memory: int) -> image_pb2.PodSandboxConfig:
        system("systemctl", "start", self.slice)
        system("systemctl", "set-property", "--runtime", self.slice, f"MemoryMax={memory}", "MemorySwapMax=0")
        config = self.cri.pod_config(f"web-{handler}")
        config.linux.cgroup_parent = f"{QUALITY}/{self.slice}"
        request = runtime_pb2.RunPodSandboxRequest(config=config, runtime_handler=handler)
        config.annotations["id"] = self.cri.runtime.RunPodSandbox(request, timeout=DEADLINE).pod_sandbox_id
        return config

    def run(self, pod: image_pb2.PodSandboxConfig, name: str, script: str, memory: int = 0) -> str:
        config = self.cri.container_config(name, "sh", "-c", script)
        limits = image_pb2.LinuxContainerResources(
            memory_limit_in_bytes=memory, memory_swap_limit_in_bytes=memory, cpu_shares=512, cpu_quota=50_000,
            cpu_period=100_000,
        )  # fmt: skip
        config.linux.resources.CopyFrom(limits)
        container = self.cri.create(pod, config)
        self.cri.start(container)
        return container

    def scope(self, container: str) -> Path:
        return self.directory / f"cri-containerd-{container}.scope"

    def limits(self, container: str, name: str) -> set[str]:
        """Return what is written in the scope, and in the cgroup that crun makes in it for the process."""
        return {file.read_text().strip() for file in self.scope(container).rglob(name)}


@pytest.fixture
def kubelet(client: CriClient, request: pytest.FixtureRequest) -> Iterator[Kubelet]:
    """Nothing is left in the slice."""
    client.logs.mkdir(exist_ok=True)
    found = Kubelet(client, f"kubepods-burstable-pod{abs(hash(request.node.name)):x}.slice")
    with client:
        yield found
    assert [path for path in found.directory.glob("*") if path.is_dir()] == []
    system("systemctl", "stop", found.slice)


def test_the_cgroup_driver_is_systemd(client: CriClient) -> None:
    answer = client.runtime.RuntimeConfig(runtime_pb2.RuntimeConfigRequest(), timeout=DEADLINE)

    assert answer.linux.cgroup_driver == runtime_pb2.SYSTEMD


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_container_is_a_scope_in_its_pods_slice(kubelet: Kubelet, handler: str) -> None:
    pod = kubelet.pod(handler, 128 * MIB)
    container = kubelet.run(pod, "main", "sleep 1000", memory=64 * MIB)
    unit = kubelet.scope(container).name

    assert sum(len(text.split()) for text in kubelet.limits(container, "cgroup.procs")) == 1
    assert (kubelet.directory / "memory.max").read_text() == f"{128 * MIB}\n"
    assert str(64 * MIB) in kubelet.limits(container, "memory.max")
    assert "0" in kubelet.limits(container, "memory.swap.max")
    assert "50000 100000" in kubelet.limits(container, "cpu.max")
    assert kubelet.limits(container, "cpu.weight") - {"100"}
    assert system("systemctl", "show", "-P", "MemoryMax", unit) == str(64 * MIB)

    new = image_pb2.LinuxContainerResources(memory_limit_in_bytes=96 * MIB, cpu_quota=20_000, cpu_period=100_000)
    kubelet.cri.runtime.UpdateContainerResources(
        runtime_pb2.UpdateContainerResourcesRequest(container_id=container, linux=new), timeout=DEADLINE
    )
    system("systemctl", "daemon-reload")

    assert str(96 * MIB) in kubelet.limits(container, "memory.max")
    assert "20000 100000" in kubelet.limits(container, "cpu.max")
    assert kubelet.cri.status(container).resources.linux.memory_limit_in_bytes == 96 * MIB
    assert kubelet.cri.exec(container, "sh", "-c", "cat /proc/self/cgroup").exit_code == 0
    kubelet.cri.stop(container)
    kubelet.cri.remove(container)
    assert not kubelet.scope(container).exists()
    wait_until(lambda: system("systemctl", "show", "-P", "ActiveState", unit) == "inactive", "the unit goes")


@pytest.mark.parametrize(("of_pod", "of_container"), [(128 * MIB, 16 * MIB), (32 * MIB, 0)])
def test_a_kill_for_memory_is_told(kubelet: Kubelet, of_pod: int, of_container: int) -> None:
    """Also one that is the pod's limit; who is killed otherwise, or just ends, was not."""
    pod = kubelet.pod("", of_pod)
    greedy = kubelet.run(pod, "greedy", "exec tail /dev/zero", memory=of_container)
    ended = kubelet.cri.ended(greedy)
    modest = kubelet.run(pod, "modest", "sleep 1000", memory=of_container)
    kubelet.cri.stop(modest)

    assert (ended.exit_code, ended.reason) == (137, "OOMKilled")
    assert (kubelet.cri.status(modest).exit_code, kubelet.cri.status(modest).reason) == (137, "Error")


def test_figures_are_of_the_scope_and_the_slice(kubelet: Kubelet) -> None:
    pod = kubelet.pod("", 128 * MIB)
    container = kubelet.run(pod, "main", "while :; do :; done", memory=64 * MIB)

    def of_pod() -> runtime_pb2.LinuxPodSandboxStats:
        request = runtime_pb2.PodSandboxStatsRequest(pod_sandbox_id=pod.annotations["id"])
        return kubelet.cri.runtime.PodSandboxStats(request, timeout=DEADLINE).stats.linux

    wait_until(lambda: of_pod().cpu.usage_core_nano_seconds.value > 0, "the pod's figures")
    found = of_pod()
    (own,) = found.containers
    assert own.attributes.id == container
    assert found.cpu.usage_core_nano_seconds.value >= own.cpu.usage_core_nano_seconds.value > 0
    assert 0 < own.memory.working_set_bytes.value < 64 * MIB
    assert own.memory.available_bytes.value + own.memory.working_set_bytes.value == 64 * MIB
    assert found.process.process_count.value >= 1
