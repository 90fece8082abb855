"""A kubelet's calls about one pod after another, on a private daemon with a busybox image.

    with DaemonProcess() as daemon, CriClient(daemon) as cri:
        pod = cri.run_pod("web")
        container = cri.run(pod, "sh", "-c", "echo hello; sleep 1000")

Leaving the context removes all pods and asserts that nothing of them is left: no task, namespace, mount or file.
"""

import shutil
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import pytest

from pyctr_wire.cri import image_pb2, image_pb2_grpc, runtime_pb2, runtime_pb2_grpc

from . import images
from .daemon_process import DEADLINE, DaemonProcess, wait_until

NODE, POD, CONTAINER, TARGET = image_pb2.NODE, image_pb2.POD, image_pb2.CONTAINER, image_pb2.TARGET
IMAGE = "docker.io/library/busybox:latest"


def refused(call: object, *arguments: object) -> tuple[grpc.StatusCode, str]:
    """Return the code and the text of a call that must fail."""
    with pytest.raises(grpc.RpcError) as failure:
        call(*arguments)  # type: ignore[operator]
    return failure.value.code(), str(failure.value.details())


class CriClient:
    """Calls of a daemon that may be killed and started again meanwhile."""

    def __init__(self, daemon: DaemonProcess, handler: str = "") -> None:
        """Import the image; pods have the runtime handler `handler`."""
        self.daemon = daemon
        self.handler = handler
        self.logs = daemon.base / "pod-logs"
        self.logs.mkdir(exist_ok=True)
        self._channel: grpc.Channel | None = None
        self._process = daemon.process
        self.cgroup = f"/pyctr-test-{uuid.uuid4().hex[:8]}"
        self.bring(IMAGE, images.busybox_with_applets())

    def bring(self, name: str, image: images.BuiltImage) -> None:
        """Import an image."""
        archive = images.write_archive(self.daemon.base / f"image-{uuid.uuid4().hex[:8]}.tar", {name: image})
        self.daemon.ctr("images", "import", str(archive), namespace="k8s.io")

    @property
    def runtime(self) -> runtime_pb2_grpc.RuntimeServiceStub:
        """The runtime service of the daemon that runs now."""
        return runtime_pb2_grpc.RuntimeServiceStub(self._current())

    @property
    def images(self) -> image_pb2_grpc.ImageServiceStub:
        """The image service of the daemon that runs now."""
        return image_pb2_grpc.ImageServiceStub(self._current())

    def _current(self) -> grpc.Channel:
        if self._channel is None or self._process is not self.daemon.process:
            self._channel, self._process = self.daemon.channel(), self.daemon.process
        return self._channel

    def pod_config(self, name: str, **options: Any) -> image_pb2.PodSandboxConfig:
        """Return a pod's configuration; `options` are namespace options, the network being the host's by default."""
        config = image_pb2.PodSandboxConfig(
            metadata=image_pb2.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="default"),
            hostname=f"host-{name}",
            log_directory=str(self.logs),
            labels={"pod": name},
        )
        config.linux.cgroup_parent = self.cgroup
        chosen = {"network": NODE, "pid": CONTAINER, **options}
        config.linux.security_context.namespace_options.CopyFrom(image_pb2.NamespaceOption(**chosen))
        return config

    def run_pod(self, name: str = "pod", **options: Any) -> image_pb2.PodSandboxConfig:
        """Make a pod and return its configuration, with its id as the annotation "id"."""
        config = self.pod_config(name, **options)
        request = runtime_pb2.RunPodSandboxRequest(config=config, runtime_handler=self.handler)
        answer = self.runtime.RunPodSandbox(request, timeout=DEADLINE)
        config.annotations["id"] = answer.pod_sandbox_id
        return config

    def container_config(self, name: str, *command: str) -> runtime_pb2.ContainerConfig:
        """Return a container's configuration with a log of its name."""
        config = runtime_pb2.ContainerConfig(
            metadata=runtime_pb2.ContainerMetadata(name=name),
            image=image_pb2.ImageSpec(image=IMAGE),
            command=command,
            log_path=f"{name}.log",
            labels={"container": name},
        )
        config.linux.security_context.namespace_options.pid = CONTAINER
        return config

    def create(self, pod: image_pb2.PodSandboxConfig, config: runtime_pb2.ContainerConfig) -> str:
        """Make a container and return its id."""
        request = runtime_pb2.CreateContainerRequest(
            pod_sandbox_id=pod.annotations["id"], config=config, sandbox_config=pod
        )
        return self.runtime.CreateContainer(request, timeout=DEADLINE).container_id

    def start(self, container: str) -> None:
        """Start a container."""
        self.runtime.StartContainer(runtime_pb2.StartContainerRequest(container_id=container), timeout=DEADLINE)

    def run(self, pod: image_pb2.PodSandboxConfig, *command: str, name: str = "main") -> str:
        """Make and start a container and return its id."""
        container = self.create(pod, self.container_config(name, *command))
        self.start(container)
        return container

    def status(self, container: str) -> runtime_pb2.ContainerStatus:
        """Return a container's status."""
        request = runtime_pb2.ContainerStatusRequest(container_id=container)
        return self.runtime.ContainerStatus(request, timeout=DEADLINE).status

    def ended(self, container: str) -> runtime_pb2.ContainerStatus:
        """Wait for a container's end and return its status."""
        wait_until(lambda: self.status(container).state == runtime_pb2.CONTAINER_EXITED, f"{container} ends")
        return self.status(container)

    def exec(self, container: str, *command: str, seconds: int = 0) -> runtime_pb2.ExecSyncResponse:
        """Run a command and return its output."""
        request = runtime_pb2.ExecSyncRequest(container_id=container, cmd=command, timeout=seconds)
        return self.runtime.ExecSync(request, timeout=DEADLINE)

    def stop(self, container: str, seconds: int = 0) -> None:
        """Stop a container."""
        request = runtime_pb2.StopContainerRequest(container_id=container, timeout=seconds)
        self.runtime.StopContainer(request, timeout=DEADLINE)

    def remove(self, container: str) -> None:
        """Remove a container."""
        self.runtime.RemoveContainer(runtime_pb2.RemoveContainerRequest(container_id=container), timeout=DEADLINE)

    def stop_pod(self, pod: str) -> None:
        """Stop a pod."""
        self.runtime.StopPodSandbox(runtime_pb2.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=DEADLINE)

    def remove_pod(self, pod: str) -> None:
        """Remove a pod."""
        self.runtime.RemovePodSandbox(runtime_pb2.RemovePodSandboxRequest(pod_sandbox_id=pod), timeout=DEADLINE)

    def pods(self) -> list[runtime_pb2.PodSandbox]:
        """Return all pods."""
        return list(self.runtime.ListPodSandbox(runtime_pb2.ListPodSandboxRequest(), timeout=DEADLINE).items)

    def containers(self) -> list[runtime_pb2.Container]:
        """Return all containers."""
        return list(self.runtime.ListContainers(runtime_pb2.ListContainersRequest(), timeout=DEADLINE).containers)

    def log(self, name: str = "main") -> str:
        """Return a container's log."""
        return (self.logs / f"{name}.log").read_text()

    def left(self) -> list[str]:
        """Return what is there of pods: rows, namespaces, mounts, files, cgroups."""
        found = [pod.id for pod in self.pods()] + [container.id for container in self.containers()]
        state, root = self.daemon.state / "pods", self.daemon.root
        places = (state, root / "pods", root / "volumes" / "k8s.io")
        found += [str(path) for place in places if place.exists() for path in place.iterdir()]
        found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(state) in line]
        snapshots = self.daemon.ctr("snapshots", "ls", namespace="k8s.io").splitlines()
        found += [line for line in snapshots if line.split()[-1] == "Active"]
        return found + [str(path) for path in Path("/sys/fs/cgroup").glob(f"*{self.cgroup}/*") if path.is_dir()]

    def __enter__(self) -> Self:
        """Return this client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove all pods; unless there was an error, assert that nothing is left of them."""
        for pod in self.pods():
            self.remove_pod(pod.id)
        left = self.left()
        for path in Path("/sys/fs/cgroup").glob(f"*{self.cgroup}"):
            path.rmdir()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        shutil.rmtree(self.logs, ignore_errors=True)
        assert error or not left, left
