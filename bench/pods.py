"""critest's own benchmark on two daemons in turns, and beside it what critest does not measure: lists, and memory.

Prints the median of each figure and the ratio peer / pyctrd. Both addresses come from the environment (see arena).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path

import grpc

from pyctr_wire.cri import image_pb2, image_pb2_grpc, runtime_pb2, runtime_pb2_grpc

BUSYBOX = "registry.k8s.io/e2e-test-images/busybox:1.29-4"
PULLED = "registry.k8s.io/e2e-test-images/nginx:1.14-4"
LISTED = [f"gcr.io/k8s-staging-cri-tools/test-image-{number}:latest" for number in (1, 2, 3)]
# critest's files of results, and of the operations in them those that count.
RESULTS = {
    "pod": {"CreatePod": "RunPodSandbox", "StopPod": "StopPodSandbox", "RemovePod": "RemovePodSandbox"},
    "container": {name: name for name in ("CreateContainer", "StartContainer", "StopContainer", "RemoveContainer")},
    "image_lifecycle": {name: name for name in ("PullImage", "RemoveImage")},
    "image_listing": {"ListImages": "ListImages"},
}
LIMITS = (
    "containerBenchmarkTimeoutSeconds",
    "imageBenchmarkTimeoutSeconds",
    "podBenchmarkTimeoutSeconds",
    "podContainerStartBenchmarkTimeoutSeconds",
)
LISTS = ("ListContainers", "ListPodSandbox", "ListContainerStats")
IN_A_POD = 20  # containers that are there to be listed
SETTLE = 5.0  # seconds between the last call and the reading of memory


class Daemon:
    """One daemon under test."""

    def __init__(self, name: str, address: str) -> None:
        """Connect to `address`, the path of a unix socket."""
        self.name = name
        self._address = address
        channel = grpc.insecure_channel(f"unix://{address}", options=[("grpc.default_authority", "localhost")])
        self._images = image_pb2_grpc.ImageServiceStub(channel)
        self._runtime = runtime_pb2_grpc.RuntimeServiceStub(channel)
        # The bytes of an answer, so that it is not this program's decoding of them that is measured.
        self._lists = {name: channel.unary_unary(f"/runtime.v1.RuntimeService/{name}") for name in LISTS}

    def pull(self, image: str) -> None:
        """Have an image here."""
        spec = image_pb2.ImageSpec(image=image)
        self._images.PullImage(image_pb2.PullImageRequest(image=spec), timeout=120, wait_for_ready=True)

    def critest(self, count: int) -> dict[str, list[float]]:
        """Run critest's benchmark and return the milliseconds of each operation."""
        parameters = {
            "podsNumber": count,
            "containersNumber": count,
            "imagesNumber": count,
            "imagePullingBenchmarkImage": PULLED,
            "imageListingBenchmarkImages": LISTED,
            **dict.fromkeys(LIMITS, 600),  # seconds; how long is too long is not the question here
        }
        with tempfile.TemporaryDirectory() as directory:
            (Path(directory) / "parameters.yaml").write_text(json.dumps(parameters))
            (Path(directory) / "crictl.yaml").touch()
            endpoint = f"unix://{self._address}"
            done = subprocess.run(
                ["critest", "-benchmark", "-config", "crictl.yaml", "-benchmarking-params-file", "parameters.yaml",
                 "-benchmarking-output-dir", directory, "-runtime-endpoint", endpoint, "-image-endpoint", endpoint],
                cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                sys.exit(f"pods: critest on {self.name}:\n{done.stdout[-4000:]}")
            return _read(Path(directory))

    def start_pod(self) -> str:
        """Start a pod with one container that sleeps, and return its id."""
        pod, (container,) = self.make_pod(1)
        self._runtime.StartContainer(runtime_pb2.StartContainerRequest(container_id=container))
        return pod

    def make_pod(self, count: int) -> tuple[str, list[str]]:
        """Start a pod and make so many containers in it; return its id and theirs."""
        meta = image_pb2.PodSandboxMetadata(name=uuid.uuid4().hex, uid=uuid.uuid4().hex, namespace="bench")
        labels = {f"io.kubernetes.{name}": uuid.uuid4().hex for name in ("pod.name", "pod.namespace", "pod.uid")}
        config = image_pb2.PodSandboxConfig(metadata=meta, labels=labels)
        config.linux.security_context.namespace_options.pid = image_pb2.CONTAINER
        pod: str = self._runtime.RunPodSandbox(runtime_pb2.RunPodSandboxRequest(config=config)).pod_sandbox_id
        made = []
        for number in range(count):
            container = runtime_pb2.ContainerConfig(
                metadata=runtime_pb2.ContainerMetadata(name=f"sleeper{number}"),
                image=image_pb2.ImageSpec(image=BUSYBOX),
                command=["sleep", "3600"],
                labels=labels,
            )
            container.linux.security_context.namespace_options.pid = image_pb2.CONTAINER
            request = runtime_pb2.CreateContainerRequest(pod_sandbox_id=pod, config=container, sandbox_config=config)
            made.append(self._runtime.CreateContainer(request).container_id)
        return pod, made

    def list(self, name: str) -> float:
        """Return the milliseconds that one of the lists takes, nothing left out."""
        begin = time.perf_counter()
        self._lists[name](b"")
        return (time.perf_counter() - begin) * 1000

    def memory(self, pod: str) -> float:
        """Return the MiB (Pss) of what serves a pod: its shims, and the process that keeps its namespaces, if any."""
        asked = runtime_pb2.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
        pause = json.loads(self._runtime.PodSandboxStatus(asked).info["info"]).get("pid", 0)
        chosen = runtime_pb2.ListContainersRequest(filter=runtime_pb2.ContainerFilter(pod_sandbox_id=pod))
        inits = []
        for one in self._runtime.ListContainers(chosen).containers:
            verbose = runtime_pb2.ContainerStatusRequest(container_id=one.id, verbose=True)
            inits.append(json.loads(self._runtime.ContainerStatus(verbose).info["info"])["pid"])
        processes = {_parent(pid) for pid in (*inits, pause) if pid} | ({pause} if pause else set())
        return sum(_pss(pid) for pid in processes)

    def remove_pod(self, pod: str) -> None:
        """Remove a pod."""
        self._runtime.StopPodSandbox(runtime_pb2.StopPodSandboxRequest(pod_sandbox_id=pod))
        self._runtime.RemovePodSandbox(runtime_pb2.RemovePodSandboxRequest(pod_sandbox_id=pod))


def _read(directory: Path) -> dict[str, list[float]]:
    """Return the milliseconds of each operation in critest's files."""
    found: dict[str, list[float]] = {}
    for kind, operations in RESULTS.items():
        results = json.loads((directory / f"{kind}_benchmark_data.json").read_text())
        for number, name in enumerate(results["operationsNames"]):
            if name in operations:
                taken = [point["operationsDurationsNs"][number] / 1e6 for point in results["datapoints"]]
                found[operations[name]] = taken
    return found


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def _pss(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each daemon")
    parser.add_argument("--count", type=int, default=4, help="pods, containers and pulls in a turn")
    parser.add_argument("--listed", type=int, default=1000, help="containers that are there while lists are asked for")
    parser.add_argument("--density", type=int, default=20, help="pods that run while memory is read")
    options = parser.parse_args()

    daemons = [Daemon("pyctrd", os.environ["PYCTR_ADDRESS"]), Daemon("containerd", os.environ["PEER_ADDRESS"])]
    samples: dict[str, dict[str, list[float]]] = {}

    def keep(daemon: Daemon, figure: str, values: list[float]) -> None:
        samples.setdefault(figure, {}).setdefault(daemon.name, []).extend(values)

    for daemon in daemons:
        daemon.pull(BUSYBOX)
        daemon.remove_pod(daemon.start_pod())
    for _ in range(options.rounds):
        for daemon in daemons:
            for figure, values in daemon.critest(options.count).items():
                keep(daemon, f"{figure} (ms)", values)
    pods: dict[Daemon, list[str]] = {daemon: [] for daemon in daemons}
    for _ in range(options.density):
        for daemon in daemons:
            begin = time.perf_counter()
            pods[daemon].append(daemon.start_pod())
            keep(daemon, "from nothing to running (ms)", [(time.perf_counter() - begin) * 1000])
    time.sleep(SETTLE)
    for daemon in daemons:
        keep(daemon, "memory of a pod (MiB)", [daemon.memory(pod) for pod in pods[daemon]])
        for pod in pods[daemon]:
            daemon.remove_pod(pod)
    for daemon in daemons:
        pods[daemon] = [daemon.make_pod(IN_A_POD)[0] for _ in range(options.listed // IN_A_POD)]
    for _ in range(300 if options.listed else 0):
        for daemon in daemons:
            for name in LISTS:
                keep(daemon, f"{name} (ms)", [daemon.list(name)])
    for daemon in daemons:
        for pod in pods[daemon]:
            daemon.remove_pod(pod)

    print(f"{'median':30}{'pyctrd':>10}{'containerd':>12}{'ratio':>8}")
    for figure, taken in samples.items():
        _show(figure, *(statistics.median(taken[daemon.name]) for daemon in daemons))
    for name in LISTS if options.listed else ():
        both = (samples[f"{name} (ms)"][daemon.name] for daemon in daemons)
        _show(f"{name}, p99 of {options.listed}", *(statistics.quantiles(values, n=100)[-1] for values in both))


def _show(figure: str, ours: float, peer: float) -> None:
    print(f"{figure:30}{ours:10.2f}{peer:12.2f}{peer / ours:8.2f}")


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()
