"""A kubelet's calls of one node, in its order and at its pace, for where no real one can be had.

What happens to pods it learns from lists every second, and statuses of what has changed, or from events. It makes what
is missing, starts again what has ended, later each time, kills what fails its probe, and removes what is left: dead
containers but the last, pods that nobody wants, images that nobody uses. What it knows it can learn anew: `restart`.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc

from pyctr_wire.cri import image_pb2, image_pb2_grpc, runtime_pb2, runtime_pb2_grpc

from .cri_client import CONTAINER, IMAGE, CriClient

RESTARTS = "io.kubernetes.container.restartCount"
_POD = "io.kubernetes.pod.name"
_RELIST, _NODE_STATUS, _FIGURES, _COLLECT = 1.0, 5.0, 10.0, 5.0  # seconds; it collects rarer in truth
_BACK_OFF, _MOST_BACK_OFF = 1.0, 4.0  # ten seconds and five minutes in truth
_CALL = 120.0
_GRACE = 2


@dataclass(frozen=True)
class Manifest:
    """A pod of one container; `probe` is run every second, `limit` is in bytes."""

    name: str
    command: tuple[str, ...]
    probe: tuple[str, ...] = ()
    limit: int = 0
    restarts: bool = True


@dataclass
class Seen:
    """What is known of a pod."""

    sandbox: runtime_pb2.PodSandboxStatus
    containers: list[runtime_pb2.ContainerStatus]  # the newest one last

    @property
    def states(self) -> dict[str, int]:
        """The containers' states by id."""
        return {one.id: one.state for one in self.containers}

    @property
    def last(self) -> runtime_pb2.ContainerStatus | None:
        """The newest container."""
        return self.containers[-1] if self.containers else None


class ScriptedKubelet:
    """Works in a thread of its own until the context is left, which removes its pods."""

    def __init__(self, cri: CriClient, *, evented: bool = False) -> None:
        """Work on the daemon of `cri`."""
        self._cri = cri
        self._evented = evented
        self._channel = cri.daemon.channel()
        self._runtime = runtime_pb2_grpc.RuntimeServiceStub(self._channel)
        self._images = image_pb2_grpc.ImageServiceStub(self._channel)
        self._wanted: dict[str, Manifest] = {}
        self._ending = threading.Event()
        self._forget = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._listener = threading.Thread(target=self._listen)
        self._events: Any = None
        self.seen: dict[str, Seen] = {}
        self.calls: Counter[str] = Counter()
        self.unanswered = 0  # calls that no daemon took
        self.errors: list[str] = []

    # -- what a test says and asks

    def add(self, manifest: Manifest) -> None:
        """Have a pod run."""
        self._wanted = {**self._wanted, manifest.name: manifest}

    def withdraw(self, name: str) -> None:
        """Have it removed."""
        self._wanted = {key: value for key, value in self._wanted.items() if key != name}

    def restart(self) -> None:
        """Forget everything, and learn it anew before anything is done."""
        self._forget.set()

    def running(self, name: str) -> str:
        """Return the id of a pod's container that runs, "" without one."""
        seen = self.seen.get(name)
        last = seen.last if seen else None
        return last.id if last is not None and last.state == runtime_pb2.CONTAINER_RUNNING else ""

    def restarts(self, name: str) -> int:
        """Return how often a pod's container was started again."""
        seen = self.seen.get(name)
        last = seen.last if seen else None
        return int(last.annotations[RESTARTS]) if last is not None else 0

    def before_last(self, name: str) -> runtime_pb2.ContainerStatus:
        """Return how the container ended that came before the one that is."""
        return self.seen[name].containers[-2]

    def rotate_log(self, name: str) -> None:
        """Have a container write into a new log."""
        last = self.seen[name].last
        assert last is not None
        path = self._cri.logs / last.log_path.rpartition("/")[2]
        path.rename(f"{path}.old")
        self._runtime.ReopenContainerLog(runtime_pb2.ReopenContainerLogRequest(container_id=last.id), timeout=_CALL)

    # -- its life

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        if self._evented:
            self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End; the pods stay, as a kubelet's do."""
        self._ending.set()
        self._thread.join()
        if self._evented:
            self._events.cancel()
            self._listener.join()
        self._channel.close()
        assert error or not self.errors, self.errors

    def _work(self) -> None:
        steps: tuple[tuple[float, Callable[[], None]], ...] = (
            (_NODE_STATUS, self._node_status),
            (300.0 if self._evented else _RELIST, self._relist),
            (_RELIST, self._sync),
            (_RELIST, self._probe),
            (_FIGURES, self._figures),
            (_COLLECT, self._collect),
        )
        due = dict.fromkeys((step.__name__ for _, step in steps), 0.0)
        while not self._ending.wait(0.1):
            if self._forget.is_set():
                self._forget.clear()
                self.seen, due = {}, dict.fromkeys(due, 0.0)
            for period, step in steps:
                if time.monotonic() < due[step.__name__]:
                    continue
                due[step.__name__] = time.monotonic() + period
                try:
                    step()
                except grpc.RpcError as failure:
                    if failure.code() == grpc.StatusCode.UNAVAILABLE:
                        self.unanswered += 1
                        due["_relist"] = 0.0
                    else:
                        self.errors.append(f"{step.__name__}: {failure}")

    def _call(self, stub: Any, name: str, **request: Any) -> Any:
        self.calls[name] += 1
        messages = image_pb2 if stub is self._images else runtime_pb2
        return getattr(stub, name)(getattr(messages, f"{name}Request")(**request), timeout=_CALL)

    # -- what it knows

    def _listen(self) -> None:
        while not self._ending.is_set():
            self._events = self._runtime.GetContainerEvents(runtime_pb2.GetEventsRequest())
            try:
                for event in self._events:
                    self.calls["event"] += 1
                    self._note(event.pod_sandbox_status, list(event.containers_statuses))
            except grpc.RpcError:
                self._ending.wait(0.2)

    def _relist(self) -> None:
        pods = self._call(self._runtime, "ListPodSandbox").items
        containers = self._call(self._runtime, "ListContainers").containers
        for pod in pods:
            state = {one.id: one.state for one in containers if one.pod_sandbox_id == pod.id}
            seen = self.seen.get(pod.labels[_POD])
            if seen and (seen.sandbox.id, seen.sandbox.state, seen.states) == (pod.id, pod.state, state):
                continue
            sandbox = self._call(self._runtime, "PodSandboxStatus", pod_sandbox_id=pod.id).status
            self._note(
                sandbox, [self._call(self._runtime, "ContainerStatus", container_id=one).status for one in state]
            )
        for name in self.seen.keys() - {pod.labels[_POD] for pod in pods}:
            self.seen.pop(name, None)

    def _note(self, sandbox: runtime_pb2.PodSandboxStatus, containers: list[runtime_pb2.ContainerStatus]) -> None:
        containers.sort(key=lambda one: one.created_at)
        self.seen[sandbox.labels[_POD]] = Seen(sandbox, containers)

    # -- what it does

    def _node_status(self) -> None:
        status = self._call(self._runtime, "Status").status
        ready = {one.type: one.status for one in status.conditions}
        if not ready["RuntimeReady"]:
            self.errors.append(f"not ready: {status}")

    def _figures(self) -> None:
        self._call(self._runtime, "ListPodSandboxStats")
        self._call(self._runtime, "ListContainerStats")
        self._call(self._images, "ImageFsInfo")

    def _sync(self) -> None:
        for manifest in self._wanted.values():
            seen = self.seen.get(manifest.name)
            if seen is None or seen.sandbox.state != runtime_pb2.SANDBOX_READY:
                if self._call(self._images, "ImageStatus", image=image_pb2.ImageSpec(image=IMAGE)).HasField("image"):
                    self._start(manifest, self._call(self._runtime, "RunPodSandbox", config=self._pod(manifest)), 0)
            elif seen.last is None:
                self._start(manifest, seen.sandbox, 0)
            elif seen.last.state == runtime_pb2.CONTAINER_CREATED:
                self._call(self._runtime, "StartContainer", container_id=seen.last.id)
            elif seen.last.state == runtime_pb2.CONTAINER_EXITED and manifest.restarts:
                count = int(seen.last.annotations[RESTARTS])
                back_off = min(_BACK_OFF * 2**count, _MOST_BACK_OFF)
                if time.time() > seen.last.finished_at / 1e9 + back_off:
                    self._start(manifest, seen.sandbox, count + 1)
        for name in self.seen.keys() - self._wanted.keys():
            self._end(self.seen[name])

    def _pod(self, manifest: Manifest) -> image_pb2.PodSandboxConfig:
        config = self._cri.pod_config(manifest.name)
        config.labels[_POD] = manifest.name
        return config

    def _start(self, manifest: Manifest, sandbox: Any, restarts: int) -> None:
        config = self._cri.container_config(manifest.name, *manifest.command)
        config.metadata.attempt = restarts
        config.annotations[RESTARTS] = str(restarts)
        config.log_path = f"{manifest.name}_{restarts}.log"
        config.linux.resources.memory_limit_in_bytes = manifest.limit
        config.linux.security_context.namespace_options.pid = CONTAINER
        pod = getattr(sandbox, "pod_sandbox_id", None) or sandbox.id
        made = self._call(
            self._runtime, "CreateContainer", pod_sandbox_id=pod, config=config, sandbox_config=self._pod(manifest)
        )
        self._call(self._runtime, "StartContainer", container_id=made.container_id)
        self._refresh(pod)

    def _refresh(self, pod: str) -> None:
        """Learn at once what a call of its own has changed."""
        listed = self._call(
            self._runtime, "ListContainers", filter=runtime_pb2.ContainerFilter(pod_sandbox_id=pod)
        ).containers
        sandbox = self._call(self._runtime, "PodSandboxStatus", pod_sandbox_id=pod).status
        self._note(
            sandbox, [self._call(self._runtime, "ContainerStatus", container_id=one.id).status for one in listed]
        )

    def _probe(self) -> None:
        for manifest in self._wanted.values():
            container = self.running(manifest.name)
            if manifest.probe and container:
                try:
                    done = self._call(self._runtime, "ExecSync", container_id=container, cmd=manifest.probe, timeout=10)
                except grpc.RpcError as failure:
                    if failure.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND):
                        continue  # it has ended meanwhile
                    raise
                if done.exit_code:
                    self._call(self._runtime, "StopContainer", container_id=container, timeout=_GRACE)

    def _end(self, seen: Seen) -> None:
        for container in seen.containers:
            self._call(self._runtime, "StopContainer", container_id=container.id, timeout=_GRACE)
        self._call(self._runtime, "StopPodSandbox", pod_sandbox_id=seen.sandbox.id)
        for container in seen.containers:
            self._call(self._runtime, "RemoveContainer", container_id=container.id)
        self._call(self._runtime, "RemovePodSandbox", pod_sandbox_id=seen.sandbox.id)
        self.seen.pop(seen.sandbox.labels[_POD], None)

    def _collect(self) -> None:
        """Remove dead containers but the last one, and images that nobody uses."""
        for seen in list(self.seen.values()):
            for container in seen.containers[:-2]:
                self._call(self._runtime, "RemoveContainer", container_id=container.id)
                self._refresh(seen.sandbox.id)
        used = {one.image_id for one in self._call(self._runtime, "ListContainers").containers}
        for image in self._call(self._images, "ListImages").images:
            if image.id not in used and not image.pinned and not any(IMAGE in tag for tag in image.repo_tags):
                self._call(self._images, "RemoveImage", image=image_pb2.ImageSpec(image=image.id))
