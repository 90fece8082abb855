"""Pods' sandboxes: made, stopped and removed, one operation at a time for each, all of them repeatable."""

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from google.protobuf.json_format import MessageToDict

from pyctr_sys.namespaces import in_user_namespace
from pyctr_wire.cri import image_pb2, runtime_pb2
from pyctr_wire.errors import AlreadyExists, ApiError, FailedPrecondition, InvalidArgument, NotFound, UnknownError
from pyctrd.core.idmaps import MOST_IDS, mapped_root
from pyctrd.core.sandboxes import Sandbox
from pyctrd.cri import selinux
from pyctrd.cri.convert import enum_name
from pyctrd.cri.events import Events
from pyctrd.cri.index import Index
from pyctrd.cri.records import NAMESPACE, Pod, PodContainer, now, pod_to_row
from pyctrd.log import Logger
from pyctrd.offload import Offload
from pyctrd.runtime.owner import Job, Joining, Owners
from pyctrd.sandbox import namespaces
from pyctrd.sandbox.files import Dns, SandboxFiles

_MAX_HOSTNAME: Final = 64
_PING_GROUPS: Final = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}

_log = Logger("pyctrd.cri")


class SandboxRows(Protocol):
    """The sandboxes of a namespace."""

    def create(self, ns: str, sandbox: Sandbox, /) -> Sandbox: ...
    def update(self, ns: str, sandbox: Sandbox, paths: Sequence[str], /) -> Sandbox: ...
    def delete(self, ns: str, sandbox_id: str, /) -> None: ...


class Network(Protocol):
    """What connects pods."""

    async def set_up(self, pod: Pod) -> tuple[str, ...]:
        """Attach a pod and return its addresses, the primary one first. InvalidArgument, UnknownError."""

    async def tear_down(self, pod: Pod) -> None:
        """Detach it; repeatable, and its namespace may be gone. UnknownError."""


class ContainerEnds(Protocol):
    """What ends a pod's containers."""

    async def stop(self, container: PodContainer, seconds: float) -> None: ...
    async def remove(self, container: PodContainer) -> None: ...


class FirstContainers(Protocol):
    """What runs pods whose runtime is a shim of another make."""

    def needed(self, handler: str) -> bool: ...
    async def start(self, pod: Pod) -> None: ...
    def watch(self, pod: Pod, when_ended: Callable[[Pod], None]) -> None: ...
    async def stop(self, pod: Pod) -> None: ...


class Sandboxes:
    """All pods."""

    def __init__(
        self,
        index: Index,
        rows: SandboxRows,
        files: SandboxFiles,
        network: Network,
        containers: ContainerEnds,
        events: Events,
        owners: Owners,
        threads: Offload,
        handlers: Mapping[str, str],
        first: FirstContainers,
        group: asyncio.TaskGroup,
    ) -> None:
        """Use these; `handlers` has the runtime of each handler, "" being the default one.

        What nobody asked for runs in `group`.
        """
        self._index = index
        self._rows = rows
        self._files = files
        self._network = network
        self._containers = containers
        self._events = events
        self._owners = owners
        self._threads = threads
        self._handlers = handlers
        self._first = first
        self._group = group

    async def run(self, config: image_pb2.PodSandboxConfig, handler: str) -> Pod:
        """Make a pod's sandbox; asked for again meanwhile, it is the same one.

        Raises InvalidArgument naming the field, AlreadyExists for a name that another pod has, UnknownError.
        """
        if not config.HasField("metadata"):
            raise InvalidArgument("sandbox config must include metadata")
        check_user_namespace(config.linux.security_context.namespace_options)
        selinux.check(config.linux.security_context.selinux_options)
        pod = Pod(self._new_id(), config, handler, now())
        if handler not in self._handlers:
            raise UnknownError(
                f'unable to get OCI runtime for sandbox "{pod.id}": no runtime for "{handler}" is configured'
            )
        pod.has_task = self._first.needed(handler)

        async def work(job: Job[Pod]) -> Pod:
            for other in self._index.pods.values():
                if other.name == pod.name:
                    raise AlreadyExists(
                        f'failed to reserve sandbox name "{pod.name}": name "{pod.name}" is reserved for "{other.id}"'
                    )
            await self._make(pod)
            if job.give_up_if_abandoned():
                await self._undo(pod)
                return pod
            self._index.add_pod(pod)
            self.watch(pod)
            self._events.pod(pod, runtime_pb2.CONTAINER_CREATED_EVENT)
            self._events.pod(pod, runtime_pb2.CONTAINER_STARTED_EVENT)
            return pod

        token = config.SerializeToString(deterministic=True).hex() + handler
        return await self._owners.run((NAMESPACE, f"pod {pod.name}"), "run", work, token=token, joining=Joining.SHARED)

    def _new_id(self) -> str:
        """Return an id for a pod; with SELinux it decides the pod's categories, which no other pod has."""
        taken = {selinux.categories(id) for id in self._index.pods} if selinux.is_enabled() else set()
        while True:
            id = secrets.token_hex(32)
            if not taken or selinux.categories(id) not in taken:
                return id

    async def stop(self, pod: Pod) -> None:
        """End all processes and give the network back; the pod is not ready then. Repeatable."""
        await self._owned(pod, "stop", lambda: self._stop(pod))

    async def remove(self, pod: Pod) -> None:
        """Remove a pod with its containers. Repeatable."""

        async def work() -> None:
            await self._stop(pod)
            for container in list(pod.containers.values()):
                await self._containers.remove(container)
            await self._threads.run(self._remove, pod)
            self._index.remove_pod(pod)
            self._events.pod(pod, runtime_pb2.CONTAINER_DELETED_EVENT)

        await self._owned(pod, "remove", work)

    async def set_resources(
        self,
        pod: Pod,
        overhead: image_pb2.LinuxContainerResources,
        resources: image_pb2.LinuxContainerResources,
    ) -> None:
        """Note a pod's new resources."""

        async def work() -> None:
            pod.config.linux.overhead.CopyFrom(overhead)
            pod.config.linux.resources.CopyFrom(resources)
            await self._threads.run(self._rows.update, NAMESPACE, pod_to_row(pod), ("spec",))

        await self._owned(pod, "set resources", work)

    def info(self, pod: Pod) -> dict[str, Any]:
        """Return what else there is to know of a pod, for people."""
        return {
            "runtimeHandler": pod.handler,
            "runtimeType": self._handlers.get(pod.handler, ""),
            "netNamespaceClosed": not pod.ready,
            "namespaces": {kind: str(self._files.namespaces(pod.id) / kind) for kind in pod.kinds},
            "addresses": list(pod.addresses),
            "config": MessageToDict(pod.config, preserving_proto_field_name=True),
        }

    def watch(self, pod: Pod) -> None:
        """See to it that a pod which another shim runs is not ready any more once that has ended."""
        if pod.has_task and pod.ready:
            self._first.watch(pod, self._ended)

    def _ended(self, pod: Pod) -> None:
        self._group.create_task(self._stop_ended(pod), name=f"stop of pod {pod.id}")

    async def _stop_ended(self, pod: Pod) -> None:
        """Stop a pod whose first container has ended, unless that was our doing."""

        async def work() -> None:
            if pod.ready and self._index.pods.get(pod.id) is pod:
                _log.warning("sandbox.ended", sandbox=pod.id, handler=pod.handler)
                await self._stop(pod)

        try:
            await self._owned(pod, "end", work)
        except ApiError as error:  # the kubelet finds it not ready, and stops it again
            _log.error("sandbox.not_stopped", sandbox=pod.id, error=str(error))

    async def _owned(self, pod: Pod, name: str, work: Callable[[], Awaitable[None]]) -> None:
        async def job(_: Job[None]) -> None:
            await work()

        await self._owners.run((NAMESPACE, f"pod {pod.name}"), name, job, joining=Joining.SHARED)

    async def _make(self, pod: Pod) -> None:
        # The record comes first: what a crash leaves half made, the next start finds by it and takes down.
        pod.ready = False
        await self._threads.run(self._rows.create, NAMESPACE, pod_to_row(pod))
        try:
            await self._threads.run(self._prepare, pod)
            if "net" in pod.kinds:
                pod.addresses = await self._network.set_up(pod)
            if pod.has_task:
                await self._first.start(pod)
            pod.ready = True
            await self._threads.run(self._rows.update, NAMESPACE, pod_to_row(pod), ("extensions",))
        except BaseException:
            await asyncio.shield(self._undo(pod))
            raise

    def _prepare(self, pod: Pod) -> None:
        config = pod.config
        hostname = config.hostname or socket.gethostname()
        if len(hostname) > _MAX_HOSTNAME or not hostname.isprintable():
            raise InvalidArgument(f"hostname {hostname[:80]!r} is not one")
        dns = config.dns_config
        self._files.make(pod.id, hostname, Dns(tuple(dns.servers), tuple(dns.searches), tuple(dns.options)))
        if "ipc" in pod.kinds:
            self._files.mount_shm(pod.id, *(mapped_root(pod.maps) if pod.maps else (0, 0)))
        if pod.kinds:
            sysctls = {**(_PING_GROUPS if "net" in pod.kinds else {}), **config.linux.sysctls}
            namespaces.pin(self._files.namespaces(pod.id), pod.kinds, hostname, sysctls, pod.maps)
        else:
            namespaces.check_sysctls(config.linux.sysctls, ())

    async def _undo(self, pod: Pod) -> None:
        """Leave nothing of a pod that could not be made; what cannot be taken down keeps it, not ready."""
        pod.ready = False
        try:
            await self._first.stop(pod)
            if "net" in pod.kinds:
                await self._network.tear_down(pod)
            await self._threads.run(self._remove, pod)
        except Exception as error:  # kubelet will stop and remove it
            _log.error("sandbox.not_undone", sandbox=pod.id, error=str(error))
            self._index.add_pod(pod)

    async def _stop(self, pod: Pod) -> None:
        was_ready = pod.ready
        for container in list(pod.containers.values()):
            await self._containers.stop(container, 0)
        await self._first.stop(pod)
        if "net" in pod.kinds:
            await self._network.tear_down(pod)
        await self._threads.run(self._close, pod)
        if was_ready:
            pod.ready = False
            await self._threads.run(self._rows.update, NAMESPACE, pod_to_row(pod), ("extensions",))
            self._events.pod(pod, runtime_pb2.CONTAINER_STOPPED_EVENT)

    def _close(self, pod: Pod) -> None:
        namespaces.unpin(self._files.namespaces(pod.id))
        self._files.unmount(pod.id)

    def _remove(self, pod: Pod) -> None:
        self._close(pod)
        self._files.remove(pod.id)
        with suppress(NotFound):
            self._rows.delete(NAMESPACE, pod.id)


def check_user_namespace(options: image_pb2.NamespaceOption) -> None:
    """Raise InvalidArgument for what makes no sense, FailedPrecondition where there can be no user namespace."""
    if not options.HasField("userns_options"):
        return
    wanted = options.userns_options
    uids, gids = wanted.uids, wanted.gids
    if wanted.mode == image_pb2.NODE:
        if uids or gids:
            raise InvalidArgument(
                'can\'t use user namespace mode "NODE" with mappings. '
                f"Got {len(uids)} UID mappings and {len(gids)} GID mappings"
            )
        return
    if wanted.mode != image_pb2.POD:
        raise InvalidArgument(f'unsupported user namespace mode: "{enum_name(image_pb2.NamespaceMode, wanted.mode)}"')
    for mappings in (uids, gids):
        if not mappings:
            raise InvalidArgument('can\'t use user namespace mode "POD" without UID and GID mappings')
        if len(mappings) > 1:
            raise InvalidArgument(f"only one mapping line supported, got {len(mappings)} mapping lines")
        if not mappings[0].length:
            raise InvalidArgument("invalid mapping length: 0")
        if mappings[0].container_id:
            raise InvalidArgument("the mapping must begin with container id 0")
        if mappings[0].host_id + mappings[0].length > MOST_IDS:
            raise InvalidArgument(f"the mapping must end below host id {MOST_IDS}")
    if in_user_namespace():
        raise FailedPrecondition(
            "this daemon is an ordinary user's: all of its pods are in the user namespace that it is in"
        )
