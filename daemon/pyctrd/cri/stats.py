"""Figures of containers and pods: read from their cgroups by one sampler, whoever asks and however often.

A sample is good for a second. A rate needs two: so all running containers are read every ten seconds too. Lists of
containers' figures wait for no sample: they are of the last one, and have the next one taken for whoever asks again.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from pyctr_wire.cri import image_pb2, runtime_pb2
from pyctr_wire.errors import ApiError, FailedPrecondition
from pyctrd.core.snapshots import Usage
from pyctrd.cri.cgroup_figures import CgroupDirectories, Figures, directories_of, read
from pyctrd.cri.index import Index
from pyctrd.cri.metrics import Origin, interfaces, look_at, metrics_of
from pyctrd.cri.records import NAMESPACE, Pod, PodContainer, now
from pyctrd.network.netns import inside
from pyctrd.offload import Offload
from pyctrd.runtime.tasks import Tasks
from pyctrd.sandbox.files import SandboxFiles

_EVERY: Final = 10.0  # seconds
_GOOD_FOR: Final = 1.0
_INTERFACE: Final = "eth0"
_UInt = image_pb2.UInt64Value


class Snapshotter(Protocol):
    """The snapshots of containers."""

    def usage(self, ns: str, key: str, /) -> Usage: ...


class Stats:
    """The sampler."""

    def __init__(
        self,
        index: Index,
        tasks: Tasks,
        snapshotter: Snapshotter,
        mountpoint: Path,
        files: SandboxFiles,
        threads: Offload,
    ) -> None:
        """Sample what is in `index`; `snapshotter` has its files below `mountpoint`."""
        self._index = index
        self._tasks = tasks
        self._snapshotter = snapshotter
        self._mountpoint = mountpoint
        self._files = files
        self._threads = threads
        self._directories: dict[str, CgroupDirectories] = {}
        self._last: dict[str, Figures] = {}
        self._before: dict[str, Figures] = {}
        self._layers: dict[str, tuple[int, Usage]] = {}
        self._sampled = 0.0
        self._encoded: dict[str, tuple[int, bytes]] = {}  # as lists have it, and the state that it was in
        self._wanted = asyncio.Event()
        self._sampling = asyncio.Lock()

    async def run(self) -> None:
        """Sample for as long as the daemon lives."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_EVERY):
                    await self._wanted.wait()
            self._wanted.clear()
            if self._index.containers:
                await self._sample()

    async def container(self, container: PodContainer) -> runtime_pb2.ContainerStats:
        """Return one container's figures. Raises FailedPrecondition unless it runs."""
        if container.state != runtime_pb2.CONTAINER_RUNNING:
            raise FailedPrecondition(
                f'container "{container.id}" is in {container.state_name} state: nothing is measured'
            )
        await self._sample([container])
        return self._of_container(container)

    async def containers(self, containers: Sequence[PodContainer]) -> list[bytes]:
        """Return the figures of containers, each as an encoded ListContainerStatsResponse with it.

        StreamContainerStatsResponse has the same field. They are ten seconds old at most, and one that was not there
        then is looked at. One that does not run has only its layer.
        """
        if all(map(self._is_known, containers)):
            self._wanted.set()
        else:
            await self._sample(containers)
        return [self._piece(container) for container in containers]

    def _is_known(self, container: PodContainer) -> bool:
        """Whether the last sample has it, and if it runs, running."""
        state, _ = self._encoded.get(container.id, (None, b""))
        return state is not None and (state == container.state or container.state != runtime_pb2.CONTAINER_RUNNING)

    def _piece(self, container: PodContainer) -> bytes:
        state, piece = self._encoded.get(container.id, (None, b""))
        return piece if state == container.state else _encode(self._of_container(container))

    async def pods(self, pods: Iterable[Pod]) -> list[runtime_pb2.PodSandboxStats]:
        """Return the figures of those pods that are ready."""
        await self._sample()
        return [await self._of_pod(pod) for pod in pods if pod.ready]

    async def pod(self, pod: Pod) -> runtime_pb2.PodSandboxStats:
        """Return one pod's figures. Raises FailedPrecondition unless it is ready."""
        if not pod.ready:
            raise FailedPrecondition(f'sandbox container "{pod.id}" is not running')
        return (await self.pods([pod]))[0]

    async def metrics(self) -> list[runtime_pb2.PodSandboxMetrics]:
        """Return the metrics of all pods that are ready."""
        await self._sample()
        pods = [pod for pod in self._index.pods.values() if pod.ready]
        return await self._threads.run(self._metrics, pods)

    def _metrics(self, pods: list[Pod]) -> list[runtime_pb2.PodSandboxMetrics]:
        found = []
        for pod in pods:
            of_pod = runtime_pb2.PodSandboxMetrics(pod_sandbox_id=pod.id)
            for container in list(pod.containers.values()):
                with suppress(OSError, ApiError):  # it has ended meanwhile
                    subject = look_at(self._origin(container), now())
                    of_container = runtime_pb2.ContainerMetrics(container_id=container.id)
                    of_container.metrics.extend(metrics_of(subject))
                    of_pod.container_metrics.append(of_container)
            found.append(of_pod)
        return found

    def _origin(self, container: PodContainer) -> Origin:
        meta, usage = container.pod.config.metadata, self._layers.get(container.id, (0, Usage(0, 0)))[1]
        pid = self._tasks.find(NAMESPACE, container.id).init.pid
        return Origin(
            labels=(container.id, container.config.metadata.name, meta.name, meta.namespace),
            where=self._directories.get(container.id) or directories_of(pid),
            pid=pid,
            started_at=container.started_at,
            layer=(usage.size, usage.inodes),
            snapshots=self._mountpoint,
        )

    async def _sample(self, wanted: Sequence[PodContainer] = ()) -> None:
        """Take a sample, unless there is one that is good still and has those that are wanted."""
        async with self._sampling:
            if time.monotonic() - self._sampled < _GOOD_FOR and all(map(self._is_known, wanted)):
                return
            running = {}
            for container in self._index.containers.values():
                with suppress(ApiError):
                    if container.state == runtime_pb2.CONTAINER_RUNNING:
                        running[container.id] = self._tasks.find(NAMESPACE, container.id).init.pid
            everybody = list(self._index.containers)
            figures, layers = await self._threads.run(self._look, running, everybody)
            self._before, self._last, self._layers = self._last, figures, layers
            self._encoded = await self._threads.run(self._encode_all, list(self._index.containers.values()))
            self._sampled = time.monotonic()

    def _encode_all(self, containers: list[PodContainer]) -> dict[str, tuple[int, bytes]]:
        return {one.id: (one.state, _encode(self._of_container(one))) for one in containers}

    def _look(
        self, running: dict[str, int], everybody: list[str]
    ) -> tuple[dict[str, Figures], dict[str, tuple[int, Usage]]]:
        figures, layers = {}, {}
        for id, pid in running.items():
            with suppress(OSError):  # it has ended meanwhile
                where = self._directories.get(id) or directories_of(pid)
                self._directories[id] = where
                figures[id] = read(where, now())
                parent = str(where.parent.memory)
                if parent not in figures:
                    figures[parent] = read(where.parent, now())
        for id in everybody:
            moment, usage = self._layers.get(id, (0, None))
            if usage is None or now() - moment > _EVERY * 1e9:
                with suppress(ApiError, OSError):
                    layers[id] = now(), self._snapshotter.usage(NAMESPACE, id)
            else:
                layers[id] = moment, usage
        for id in self._directories.keys() - running.keys():
            self._directories.pop(id, None)
        return figures, layers

    def _of_container(self, container: PodContainer) -> runtime_pb2.ContainerStats:
        config, figures = container.config, self._last.get(container.id)
        stats = runtime_pb2.ContainerStats(
            attributes=runtime_pb2.ContainerAttributes(
                id=container.id, metadata=config.metadata, labels=config.labels, annotations=config.annotations
            )
        )
        if figures is not None and container.state == runtime_pb2.CONTAINER_RUNNING:
            stats.cpu.CopyFrom(_cpu(figures, self._before.get(container.id)))
            stats.memory.CopyFrom(_memory(figures))
            stats.swap.timestamp = figures.taken_at
            stats.swap.swap_usage_bytes.value = figures.swap
        if container.id in self._layers:
            moment, usage = self._layers[container.id]
            stats.writable_layer.CopyFrom(
                image_pb2.FilesystemUsage(
                    timestamp=moment,
                    fs_id=image_pb2.FilesystemIdentifier(mountpoint=str(self._mountpoint)),
                    used_bytes=_UInt(value=usage.size),
                    inodes_used=_UInt(value=usage.inodes),
                )
            )
        return stats

    async def _of_pod(self, pod: Pod) -> runtime_pb2.PodSandboxStats:
        config = pod.config
        stats = runtime_pb2.PodSandboxStats(
            attributes=runtime_pb2.PodSandboxAttributes(
                id=pod.id, metadata=config.metadata, labels=config.labels, annotations=config.annotations
            )
        )
        linux = stats.linux
        linux.containers.extend(self._of_container(one) for one in pod.containers.values())
        key = self._parent_of(pod)
        if key in self._last:
            figures = self._last[key]
            linux.cpu.CopyFrom(_cpu(figures, self._before.get(key)))
            linux.memory.CopyFrom(_memory(figures))
            linux.process.timestamp = figures.taken_at
            linux.process.process_count.value = figures.processes
        if "net" in pod.kinds:
            with suppress(OSError):
                path = self._files.namespaces(pod.id) / "net"
                linux.network.CopyFrom(await self._threads.run(_network, path))
        return stats

    def _parent_of(self, pod: Pod) -> str:
        """Return the key of the figures of a pod's own cgroup, "" if it has none that we know."""
        if not pod.config.linux.cgroup_parent:
            return ""
        found = [self._directories[id] for id in pod.containers if id in self._directories]
        return str(found[0].parent.memory) if found else ""


def _encode(stats: runtime_pb2.ContainerStats) -> bytes:
    return runtime_pb2.ListContainerStatsResponse(stats=[stats]).SerializeToString()


def _cpu(figures: Figures, before: Figures | None) -> runtime_pb2.CpuUsage:
    usage = runtime_pb2.CpuUsage(timestamp=figures.taken_at, usage_core_nano_seconds=_UInt(value=figures.cpu))
    if before is not None and figures.taken_at > before.taken_at:
        rate = max(0, figures.cpu - before.cpu) * 1_000_000_000 // (figures.taken_at - before.taken_at)
        usage.usage_nano_cores.value = rate
    return usage


def _memory(figures: Figures) -> runtime_pb2.MemoryUsage:
    available = max(0, figures.limit - figures.working_set) if figures.limit else 0
    return runtime_pb2.MemoryUsage(
        timestamp=figures.taken_at,
        working_set_bytes=_UInt(value=figures.working_set),
        available_bytes=_UInt(value=available),
        usage_bytes=_UInt(value=figures.memory),
        rss_bytes=_UInt(value=figures.rss),
        page_faults=_UInt(value=figures.page_faults),
        major_page_faults=_UInt(value=figures.major_page_faults),
    )


def _network(netns: Path) -> runtime_pb2.NetworkUsage:
    """Return what a pod's interfaces have carried. Raises OSError."""
    usage = runtime_pb2.NetworkUsage(timestamp=now())
    for name, counts in inside(netns, partial(interfaces, Path("/proc/thread-self/net/dev"))).items():
        interface = runtime_pb2.NetworkInterfaceUsage(
            name=name,
            rx_bytes=_UInt(value=counts[0]),
            rx_errors=_UInt(value=counts[2]),
            tx_bytes=_UInt(value=counts[8]),
            tx_errors=_UInt(value=counts[10]),
        )
        if name == _INTERFACE:
            usage.default_interface.CopyFrom(interface)
        else:
            usage.interfaces.append(interface)
    return usage
