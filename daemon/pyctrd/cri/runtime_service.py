"""runtime.v1.RuntimeService."""

import asyncio
import json
import os
from collections.abc import Callable
from typing import Any, ClassVar, Final, Protocol, TypeAlias, TypeVar

from grpc.aio import ServicerContext

from pyctr_wire.cri import runtime_pb2 as pb
from pyctr_wire.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from pyctrd.core.values import dataclass
from pyctrd.cri import convert, metrics
from pyctrd.cri.checkpoints import ContainerCheckpoints
from pyctrd.cri.containers import Containers
from pyctrd.cri.events import Events
from pyctrd.cri.exec import Execs
from pyctrd.cri.features import HandlerFeatures
from pyctrd.cri.index import Index
from pyctrd.cri.records import Pod, PodContainer, now
from pyctrd.cri.sandboxes import Sandboxes
from pyctrd.cri.sessions import running
from pyctrd.cri.stats import Stats
from pyctrd.cri.streaming.remote_command import Streams
from pyctrd.cri.streaming.requests import Attach, Exec, PortForward, check
from pyctrd.cri.streaming.server import StreamingServer
from pyctrd.runtime.checkpoints import TIMEOUT

Context: TypeAlias = "ServicerContext[Any, Any]"

_T = TypeVar("_T")
_STREAM_BATCH: Final = 100  # objects in a message


class NetworkState(Protocol):
    """What connects pods."""

    async def problem(self) -> str:
        """Return why it cannot, "" if it can."""


@dataclass(frozen=True, slots=True)
class About:
    """What there is to tell of this runtime."""

    version: str
    systemd_cgroups: bool
    features: HandlerFeatures


class RuntimeService:
    """Pods and their containers."""

    SERVICE: ClassVar = pb.DESCRIPTOR.services_by_name["RuntimeService"]

    def __init__(
        self,
        index: Index,
        sandboxes: Sandboxes,
        containers: Containers,
        execs: Execs,
        events: Events,
        network: NetworkState,
        streaming: StreamingServer,
        stats: Stats,
        about: About,
        checkpoints: ContainerCheckpoints | None,
    ) -> None:
        """Answer from `index`; have the others do what is asked. Without `checkpoints` there are none."""
        self._checkpoints = checkpoints
        self._index = index
        self._sandboxes = sandboxes
        self._containers = containers
        self._execs = execs
        self._events = events
        self._network = network
        self._streaming = streaming
        self._stats = stats
        self._about = about

    # -- the runtime

    async def Version(self, request: pb.VersionRequest, context: Context) -> pb.VersionResponse:
        """Say who we are: tools compare the name, which is therefore that of what we stand for."""
        return pb.VersionResponse(
            version="0.1.0",
            runtime_name="containerd",
            runtime_version=f"v{self._about.version}",
            runtime_api_version="v1",
        )

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        """Say whether runtime and network are ready, and what handlers there are."""
        problem = await self._network.problem()
        conditions = [
            pb.RuntimeCondition(type="RuntimeReady", status=True),
            pb.RuntimeCondition(
                type="NetworkReady",
                status=not problem,
                reason="NetworkPluginNotReady" if problem else "",
                message=f"Network plugin returns error: {problem}" if problem else "",
            ),
        ]
        handlers = [
            pb.RuntimeHandler(
                name=name,
                features=pb.RuntimeHandlerFeatures(
                    recursive_read_only_mounts=found.recursive_read_only_mounts,
                    user_namespaces=found.user_namespaces,
                ),
            )
            for name, found in sorted((await self._about.features.all()).items())
        ]
        config = {"version": self._about.version, "pid": os.getpid(), "systemdCgroup": self._about.systemd_cgroups}
        return pb.StatusResponse(
            status=pb.RuntimeStatus(conditions=conditions),
            info={"config": json.dumps(config)} if request.verbose else {},
            runtime_handlers=handlers,
            features=pb.RuntimeFeatures(supplemental_groups_policy=True),
        )

    async def RuntimeConfig(self, request: pb.RuntimeConfigRequest, context: Context) -> pb.RuntimeConfigResponse:
        """Say who manages cgroups: the kubelet follows."""
        driver = pb.SYSTEMD if self._about.systemd_cgroups else pb.CGROUPFS
        return pb.RuntimeConfigResponse(linux=pb.LinuxRuntimeConfiguration(cgroup_driver=driver))

    async def UpdateRuntimeConfig(
        self, request: pb.UpdateRuntimeConfigRequest, context: Context
    ) -> pb.UpdateRuntimeConfigResponse:
        """Take note of the pods' addresses: the network's own configuration has them already."""
        return pb.UpdateRuntimeConfigResponse()

    # -- pods

    async def RunPodSandbox(self, request: pb.RunPodSandboxRequest, context: Context) -> pb.RunPodSandboxResponse:
        """Make a pod's sandbox. AlreadyExists, InvalidArgument, Unknown."""
        pod = await self._sandboxes.run(request.config, request.runtime_handler)
        return pb.RunPodSandboxResponse(pod_sandbox_id=pod.id)

    async def StopPodSandbox(self, request: pb.StopPodSandboxRequest, context: Context) -> pb.StopPodSandboxResponse:
        """Stop a pod; one that is not there is stopped."""
        pod = _or_none(self._index.pod, request.pod_sandbox_id)
        if pod is not None:
            await self._sandboxes.stop(pod)
        return pb.StopPodSandboxResponse()

    async def RemovePodSandbox(
        self, request: pb.RemovePodSandboxRequest, context: Context
    ) -> pb.RemovePodSandboxResponse:
        """Remove a pod with its containers; one that is not there is removed."""
        pod = _or_none(self._index.pod, request.pod_sandbox_id)
        if pod is not None:
            await self._sandboxes.remove(pod)
        return pb.RemovePodSandboxResponse()

    async def PodSandboxStatus(
        self, request: pb.PodSandboxStatusRequest, context: Context
    ) -> pb.PodSandboxStatusResponse:
        """Return everything about a pod. NotFound."""
        pod = self._index.pod(request.pod_sandbox_id)
        return pb.PodSandboxStatusResponse(
            status=convert.pod_status(pod),
            info={"info": json.dumps(self._sandboxes.info(pod))} if request.verbose else {},
            containers_statuses=convert.container_statuses(pod),
            timestamp=now(),
        )

    async def ListPodSandbox(self, request: pb.ListPodSandboxRequest, context: Context) -> bytes:
        """Return the pods that match."""
        return b"".join([convert.pod_item(pod) for pod in self._pods(request.filter)])

    async def StreamPodSandboxes(self, request: pb.StreamPodSandboxesRequest, context: Context) -> None:
        """Send the pods that match."""
        items = [convert.pod_item(pod) for pod in self._pods(request.filter)]
        for start in range(0, len(items), _STREAM_BATCH):
            await context.write(b"".join(items[start : start + _STREAM_BATCH]))

    def _pods(self, wanted: pb.PodSandboxFilter) -> list[Pod]:
        state = wanted.state.state if wanted.HasField("state") else None

        def in_state(pod: Pod) -> bool:
            return state is None or convert.pod_state(pod) == state

        return list(self._index.pods_like(wanted.id, wanted.label_selector, in_state))

    async def UpdatePodSandboxResources(
        self, request: pb.UpdatePodSandboxResourcesRequest, context: Context
    ) -> pb.UpdatePodSandboxResourcesResponse:
        """Hear of a pod's new resources: whoever asks has set its cgroup. NotFound."""
        pod = self._index.pod(request.pod_sandbox_id)
        await self._sandboxes.set_resources(pod, request.overhead, request.resources)
        return pb.UpdatePodSandboxResourcesResponse()

    # -- containers

    async def CreateContainer(self, request: pb.CreateContainerRequest, context: Context) -> pb.CreateContainerResponse:
        """Make a container in a pod. AlreadyExists, InvalidArgument, NotFound, Unknown."""
        if not request.HasField("sandbox_config") or not request.sandbox_config.HasField("metadata"):
            raise InvalidArgument("pod sandbox config must include metadata")
        pod = self._index.pod(request.pod_sandbox_id)
        container = await self._containers.create(pod, request.config)
        return pb.CreateContainerResponse(container_id=container.id)

    async def StartContainer(self, request: pb.StartContainerRequest, context: Context) -> pb.StartContainerResponse:
        """Run a container. NotFound, FailedPrecondition, what the runtime refuses."""
        await self._containers.start(self._index.container(request.container_id))
        return pb.StartContainerResponse()

    async def StopContainer(self, request: pb.StopContainerRequest, context: Context) -> pb.StopContainerResponse:
        """Stop a container; one that is not there is stopped."""
        container = _or_none(self._index.container, request.container_id)
        if container is not None:
            await self._containers.stop(container, request.timeout)
        return pb.StopContainerResponse()

    async def RemoveContainer(self, request: pb.RemoveContainerRequest, context: Context) -> pb.RemoveContainerResponse:
        """Remove a container; one that is not there is removed. FailedPrecondition while it starts."""
        container = _or_none(self._index.container, request.container_id)
        if container is not None:
            await self._containers.remove(container)
        return pb.RemoveContainerResponse()

    async def ListContainers(self, request: pb.ListContainersRequest, context: Context) -> bytes:
        """Return the containers that match."""
        return b"".join([convert.container_item(one) for one in self._matching(request.filter)])

    async def StreamContainers(self, request: pb.StreamContainersRequest, context: Context) -> None:
        """Send the containers that match."""
        items = [convert.container_item(one) for one in self._matching(request.filter)]
        for start in range(0, len(items), _STREAM_BATCH):
            await context.write(b"".join(items[start : start + _STREAM_BATCH]))

    def _matching(self, wanted: pb.ContainerFilter) -> list[PodContainer]:
        state = wanted.state.state if wanted.HasField("state") else None

        def in_state(container: PodContainer) -> bool:
            return state is None or container.state == state

        found = self._index.containers_like(wanted.id, wanted.pod_sandbox_id, wanted.label_selector, in_state)
        return list(found)

    async def ContainerStatus(self, request: pb.ContainerStatusRequest, context: Context) -> pb.ContainerStatusResponse:
        """Return everything about a container. NotFound."""
        container = self._index.container(request.container_id)
        return pb.ContainerStatusResponse(
            status=convert.container_status(container),
            info={"info": json.dumps(await self._containers.info(container))} if request.verbose else {},
        )

    async def UpdateContainerResources(
        self, request: pb.UpdateContainerResourcesRequest, context: Context
    ) -> pb.UpdateContainerResourcesResponse:
        """Change a container's limits; what is zero stays. NotFound, FailedPrecondition once it has ended."""
        await self._containers.update(self._index.container(request.container_id), request.linux)
        return pb.UpdateContainerResourcesResponse()

    async def ReopenContainerLog(
        self, request: pb.ReopenContainerLogRequest, context: Context
    ) -> pb.ReopenContainerLogResponse:
        """Open a container's log anew. NotFound, FailedPrecondition unless it runs."""
        await self._containers.reopen_log(self._index.container(request.container_id))
        return pb.ReopenContainerLogResponse()

    async def ExecSync(self, request: pb.ExecSyncRequest, context: Context) -> pb.ExecSyncResponse:
        """Run a command and return its output. NotFound, FailedPrecondition, DeadlineExceeded, Unknown."""
        container = self._index.container(request.container_id)
        output, errors, status = await self._execs.run(container, request.cmd, request.timeout)
        return pb.ExecSyncResponse(stdout=output, stderr=errors, exit_code=status)

    async def Exec(self, request: pb.ExecRequest, context: Context) -> pb.ExecResponse:
        """Return where a command can be run. NotFound, FailedPrecondition, InvalidArgument, ResourceExhausted."""
        streams = Streams(request.tty, request.stdin, request.stdout, request.stderr)
        check(Exec(request.container_id, tuple(request.cmd), streams))
        container = running(self._index, request.container_id)
        return pb.ExecResponse(url=await self._streaming.url(Exec(container.id, tuple(request.cmd), streams)))

    async def Attach(self, request: pb.AttachRequest, context: Context) -> pb.AttachResponse:
        """Return where a container's streams are. NotFound, FailedPrecondition, InvalidArgument, ResourceExhausted."""
        streams = Streams(request.tty, request.stdin, request.stdout, request.stderr)
        check(Attach(request.container_id, streams))
        container = running(self._index, request.container_id)
        return pb.AttachResponse(url=await self._streaming.url(Attach(container.id, streams)))

    async def PortForward(self, request: pb.PortForwardRequest, context: Context) -> pb.PortForwardResponse:
        """Return where a pod's ports are. NotFound, FailedPrecondition, InvalidArgument, ResourceExhausted."""
        wanted = PortForward(request.pod_sandbox_id, tuple(request.port))
        check(wanted)
        pod = self._index.pod(request.pod_sandbox_id)
        if not pod.ready:
            raise FailedPrecondition("sandbox container is not running")
        return pb.PortForwardResponse(url=await self._streaming.url(PortForward(pod.id, wanted.ports)))

    async def GetContainerEvents(self, request: pb.GetEventsRequest, context: Context) -> None:
        """Send what happens from now on, and before, if nobody has heard of it yet."""
        async for event in self._events.listen():
            await context.write(event)

    # -- figures

    async def ContainerStats(self, request: pb.ContainerStatsRequest, context: Context) -> pb.ContainerStatsResponse:
        """Return the figures of a container. NotFound, FailedPrecondition unless it runs."""
        container = self._index.container(request.container_id)
        return pb.ContainerStatsResponse(stats=await self._stats.container(container))

    async def ListContainerStats(self, request: pb.ListContainerStatsRequest, context: Context) -> bytes:
        """Return the figures of the containers that match."""
        return b"".join(await self._stats.containers(self._measured(request.filter)))

    async def StreamContainerStats(self, request: pb.StreamContainerStatsRequest, context: Context) -> None:
        """Send the figures of the containers that match."""
        items = await self._stats.containers(self._measured(request.filter))
        for start in range(0, len(items), _STREAM_BATCH):
            await context.write(b"".join(items[start : start + _STREAM_BATCH]))

    def _measured(self, wanted: pb.ContainerStatsFilter) -> list[PodContainer]:
        found = self._index.containers_like(wanted.id, wanted.pod_sandbox_id, wanted.label_selector, lambda _: True)
        return list(found)

    async def PodSandboxStats(self, request: pb.PodSandboxStatsRequest, context: Context) -> pb.PodSandboxStatsResponse:
        """Return the figures of a pod. NotFound, FailedPrecondition unless it is ready."""
        return pb.PodSandboxStatsResponse(stats=await self._stats.pod(self._index.pod(request.pod_sandbox_id)))

    async def ListPodSandboxStats(
        self, request: pb.ListPodSandboxStatsRequest, context: Context
    ) -> pb.ListPodSandboxStatsResponse:
        """Return the figures of the pods that match and are ready."""
        return pb.ListPodSandboxStatsResponse(stats=await self._stats.pods(self._measured_pods(request.filter)))

    async def StreamPodSandboxStats(self, request: pb.StreamPodSandboxStatsRequest, context: Context) -> None:
        """Send the figures of the pods that match and are ready."""
        items = await self._stats.pods(self._measured_pods(request.filter))
        for start in range(0, len(items), _STREAM_BATCH):
            batch = items[start : start + _STREAM_BATCH]
            await context.write(pb.StreamPodSandboxStatsResponse(pod_sandbox_stats=batch))

    def _measured_pods(self, wanted: pb.PodSandboxStatsFilter) -> list[Pod]:
        return list(self._index.pods_like(wanted.id, wanted.label_selector, lambda _: True))

    async def ListMetricDescriptors(
        self, request: pb.ListMetricDescriptorsRequest, context: Context
    ) -> pb.ListMetricDescriptorsResponse:
        """Say which metrics there are."""
        return pb.ListMetricDescriptorsResponse(descriptors=metrics.descriptors())

    async def ListPodSandboxMetrics(
        self, request: pb.ListPodSandboxMetricsRequest, context: Context
    ) -> pb.ListPodSandboxMetricsResponse:
        """Return the metrics of all pods that are ready."""
        return pb.ListPodSandboxMetricsResponse(pod_metrics=await self._stats.metrics())

    async def StreamPodSandboxMetrics(self, request: pb.StreamPodSandboxMetricsRequest, context: Context) -> None:
        """Send the metrics of all pods that are ready."""
        items = await self._stats.metrics()
        for start in range(0, len(items), _STREAM_BATCH):
            batch = items[start : start + _STREAM_BATCH]
            await context.write(pb.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=batch))

    async def CheckpointContainer(
        self, request: pb.CheckpointContainerRequest, context: Context
    ) -> pb.CheckpointContainerResponse:
        """Save a running container, which goes on, as an archive on this machine.

        Unimplemented unless it is allowed, NotFound, FailedPrecondition, InvalidArgument, DeadlineExceeded.
        """
        if self._checkpoints is None:
            raise Unimplemented(
                "CheckpointContainer is off: set enabled = true in [checkpoint] of the daemon's configuration"
            )
        container = self._index.container(request.container_id)
        seconds = request.timeout if request.timeout > 0 else TIMEOUT
        try:
            async with asyncio.timeout(seconds):
                await self._checkpoints.save(container, request.location)
        except TimeoutError:
            raise DeadlineExceeded(f'container "{container.id}" was not saved within {seconds:.0f} s') from None
        return pb.CheckpointContainerResponse()


def _or_none(find: Callable[[str], _T], id: str) -> _T | None:
    try:
        return find(id)
    except NotFound:
        return None
