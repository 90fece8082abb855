"""pyctr.v1.Engine."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import ClassVar, Protocol

from google.protobuf.timestamp_pb2 import Timestamp

from pyctr_wire import labels
from pyctr_wire.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from pyctr_wire.pyctr import engine_pb2 as pb
from pyctrd.core.identifiers import validate_identifier
from pyctrd.core.platforms import Platform, parse_platform
from pyctrd.core.restarts import Wish, labels_for, wish_of
from pyctrd.core.tasks import Status
from pyctrd.offload import Offload
from pyctrd.registry.credentials import Credentials
from pyctrd.rpc.container_index import ContainerIndex, Entry
from pyctrd.rpc.convert.records import mount_to_proto, mounts_from_proto
from pyctrd.rpc.convert.well_known import time_to_proto
from pyctrd.rpc.headers import Context, namespace_of
from pyctrd.rpc.volumes import Volumes
from pyctrd.runtime.creation import Created, Creator, NotUnpacked, Request
from pyctrd.runtime.disk_usage import UsageItem
from pyctrd.runtime.exec_spec import ExecOptions
from pyctrd.runtime.operations import Operation
from pyctrd.runtime.run_options import RunOptions
from pyctrd.runtime.runtimes import Runtimes
from pyctrd.runtime.table import Task
from pyctrd.transfer.requests import Unpack


class Operations(Protocol):
    """What the daemon is doing."""

    def running(self) -> list[Operation]: ...
    def about(self, name: str) -> list[Operation]: ...


class Table(Protocol):
    """The tasks by namespace."""

    def list(self, namespace: str) -> Sequence[Task]: ...
    def find(self, namespace: str, id: str) -> Task | None: ...


class Tasks(Protocol):
    """The tasks of all namespaces."""

    @property
    def table(self) -> Table: ...
    def find(self, namespace: str, id: str) -> Task: ...


class Collected(Protocol):
    """What a collection removed."""

    @property
    def content(self) -> Sequence[str]: ...
    @property
    def snapshots(self) -> Mapping[str, int]: ...
    @property
    def freed(self) -> int: ...


class Serving(Protocol):
    """The daemon that has taken over."""

    @property
    def pid(self) -> int: ...
    @property
    def version(self) -> str: ...


class Engine:
    """What pyctr needs and containerd's API cannot say."""

    SERVICE: ClassVar = pb.DESCRIPTOR.services_by_name["Engine"]

    def __init__(
        self,
        creator: Creator,
        runtimes: Runtimes,
        index: ContainerIndex,
        tasks: Tasks,
        operations: Operations,
        collect: Callable[[], Awaitable[Collected]],
        measure: Callable[[str], Sequence[UsageItem]],
        volumes: Volumes,
        rows: Offload,
        bulk: Offload,
        host: Platform,
        upgrade: Callable[[], Awaitable[Serving]],
        unpack: Callable[[str, str, Unpack], Awaitable[None]],
        check_login: Callable[[str, Credentials], Awaitable[None]],
    ) -> None:
        """`measure` returns what takes disk space in a namespace; it walks directories and runs in `bulk`.

        `unpack` makes snapshots of an image that is here; `check_login` shows credentials to a registry.
        """
        self._creator = creator
        self._runtimes = runtimes
        self._index = index
        self._tasks = tasks
        self._operations = operations
        self._collect = collect
        self._measure = measure
        self._volumes = volumes
        self._rows = rows
        self._bulk = bulk
        self._host = host
        self._upgrade = upgrade
        self._unpack = unpack
        self._check_login = check_login
        # Held from the look whether a name is free to the commit that takes it, whether a client waits for that or not.
        self._names: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def Ops(self, request: pb.OpsRequest, context: Context) -> pb.OpsResponse:
        """Return the operations under way, oldest first."""
        return pb.OpsResponse(operations=map(_operation, self._operations.running()))

    async def Why(self, request: pb.WhyRequest, context: Context) -> pb.WhyResponse:
        """Return the operations, under way or failed, of an object. NotFound if none is remembered."""
        found = self._operations.about(request.id)
        if not found:
            raise NotFound(f"nothing is under way and nothing has failed lately with {request.id}")
        return pb.WhyResponse(operations=map(_operation, found))

    async def DiskUsage(self, request: pb.DiskUsageRequest, context: Context) -> pb.DiskUsageResponse:
        """Measure what takes space in a namespace."""
        items = await self._bulk.run(self._measure, namespace_of(context))
        return pb.DiskUsageResponse(
            items=[
                pb.DiskUsageResponse.Item(
                    kind=item.kind,
                    count=item.count,
                    active=item.active,
                    size=item.size,
                    reclaimable=item.reclaimable,
                )
                for item in items
            ]
        )

    async def CollectGarbage(self, request: pb.CollectGarbageRequest, context: Context) -> pb.CollectGarbageResponse:
        """Collect garbage in all namespaces now."""
        collected = await self._collect()
        return pb.CollectGarbageResponse(
            removed_content=collected.content,
            removed_snapshots=collected.snapshots,
            reclaimed=collected.freed,
        )

    async def RunSpec(self, request: pb.RunSpecRequest, context: Context) -> pb.RunSpecResponse:
        """Make a container. NotFound: no such image; FailedPrecondition: no such runtime; AlreadyExists.

        InvalidArgument names the option.
        """
        namespace = namespace_of(context)
        if request.runtime and self._runtimes.resolve(request.runtime).shim:  # which fails before anything is made
            raise FailedPrecondition(
                f"runtime {request.runtime} is a shim of another make, which cannot be attached to and writes no logs"
                " of ours; run the container with ctr or nerdctl"
            )
        wanted = Request(
            namespace=namespace,
            image=request.image,
            options=_options(request.options),
            id=request.id,
            name=request.name,
            snapshotter=request.snapshotter,
            runtime_name=request.runtime,
            platform=parse_platform(request.platform, self._host) if request.platform else None,
        )
        try:
            created = await self._create(wanted)
        except NotUnpacked as missing:  # for this snapshotter or platform
            await self._unpack(namespace, missing.image, Unpack(wanted.platform, missing.snapshotter))
            created = await self._create(wanted)
        return pb.RunSpecResponse(
            id=created.id,
            warnings=created.warnings,
            rootfs=map(mount_to_proto, created.rootfs),
            log_uri=created.log_uri,
            snapshotter=created.snapshotter,
        )

    async def _create(self, wanted: Request) -> Created:
        if not wanted.name:
            return await self._rows.run(self._creator.create, wanted)
        async with self._names[wanted.namespace]:
            await self._check_name(wanted.namespace, wanted.name)
            return await self._rows.run_to_its_end(self._creator.create, wanted)

    async def CheckLogin(self, request: pb.CheckLoginRequest, context: Context) -> pb.CheckLoginResponse:
        """Show a registry a name and a password. Unauthenticated, PermissionDenied if it refuses; Unavailable."""
        await self._check_login(request.registry, Credentials(request.username, request.secret))
        return pb.CheckLoginResponse()

    async def ExecSpec(self, request: pb.ExecSpecRequest, context: Context) -> pb.ExecSpecResponse:
        """Make the process of an exec. NotFound; FailedPrecondition if nothing runs; InvalidArgument."""
        namespace = namespace_of(context)
        container = (await self._find(namespace, request.id)).id
        options = ExecOptions(
            args=tuple(request.args),
            env=tuple(request.env),
            working_dir=request.working_dir,
            user=request.user,
            terminal=request.terminal,
            console_size=(request.console_width, request.console_height),
            privileged=request.privileged,
        )
        try:
            self._tasks.find(namespace, container)
        except NotFound:
            raise FailedPrecondition(f"container {request.id} is not running") from None
        process = await self._rows.run(self._creator.exec_process, namespace, container, options)
        return pb.ExecSpecResponse(container_id=container, process=process)

    async def Rename(self, request: pb.RenameRequest, context: Context) -> pb.RenameResponse:
        """Give a container another name. NotFound, AlreadyExists, InvalidArgument."""
        namespace = namespace_of(context)
        async with self._names[namespace]:
            container = await self._find(namespace, request.id)
            if request.name and container.labels.get(labels.NAME) == request.name:
                raise InvalidArgument(f"the container has the name {request.name!r} already")
            await self._check_name(namespace, request.name)
            naming = {labels.NAME: request.name}
            await self._rows.run_to_its_end(self._creator.label, namespace, container.id, naming)
        return pb.RenameResponse()

    async def RestartPolicy(self, request: pb.RestartPolicyRequest, context: Context) -> pb.RestartPolicyResponse:
        """Say when a container is started again. NotFound, InvalidArgument; FailedPrecondition if it goes at its end.

        One that runs is looked after from now on, another one from its next start.
        """
        namespace = namespace_of(context)
        container = await self._find(namespace, request.id)
        if container.labels.get(labels.AUTO_REMOVE) == "true" and request.policy not in ("", "no"):
            raise FailedPrecondition(f"container {request.id} is removed when it has ended: it was made with --rm")
        task = self._tasks.table.find(namespace, container.id)
        running = wish_of(container.labels) is Wish.RUNNING or (
            task is not None and task.init.status in (Status.RUNNING, Status.PAUSED)
        )
        changed = labels_for(request.policy, running=running)
        await self._rows.run(self._creator.label, namespace, container.id, changed)
        return pb.RestartPolicyResponse()

    async def Logs(self, request: pb.LogsRequest, context: Context) -> pb.LogsResponse:
        """Say where a container's log is. NotFound; FailedPrecondition if another client keeps it."""
        container = await self._find(namespace_of(context), request.id)
        driver = container.labels.get(labels.LOG_DRIVER, "")
        if not driver:
            raise FailedPrecondition(f"container {request.id} was not made by pyctr: whoever made it has its output")
        return pb.LogsResponse(driver=driver, path=container.labels.get(labels.LOG_PATH, ""))

    async def CreateVolume(self, request: pb.CreateVolumeRequest, context: Context) -> pb.CreateVolumeResponse:
        """Make a volume with a name, or find it there. InvalidArgument."""
        return await self._volumes.create(namespace_of(context), request)

    async def Volumes(self, request: pb.VolumesRequest, context: Context) -> pb.VolumesResponse:
        """Return the volumes of the namespace."""
        return await self._volumes.list(namespace_of(context))

    async def RemoveVolumes(self, request: pb.RemoveVolumesRequest, context: Context) -> pb.RemoveVolumesResponse:
        """Remove volumes. NotFound; FailedPrecondition while a container has them; InvalidArgument."""
        return await self._volumes.remove(namespace_of(context), request)

    async def Attach(self, request: pb.AttachRequest, context: Context) -> pb.AttachResponse:
        """Say which socket attaches to a task and its execs. NotFound; FailedPrecondition if its shim offers none."""
        namespace = namespace_of(context)
        container = await self._find(namespace, request.id)
        task = self._tasks.find(namespace, container.id)
        shim = await self._rows.run(task.bundle.shim)
        if shim is None or not shim.attach:
            raise FailedPrecondition(f"container {request.id} cannot be attached to")
        return pb.AttachResponse(path=shim.attach)

    async def StartTimes(self, request: pb.StartTimesRequest, context: Context) -> pb.StartTimesResponse:
        """Say when the namespace's tasks were started."""
        tasks = self._tasks.table.list(namespace_of(context))
        bundles = {task.id: task.bundle for task in tasks if task.init.status is not Status.CREATED}
        moments = await self._rows.run(lambda: {id: bundle.started_at() for id, bundle in bundles.items()})
        return pb.StartTimesResponse(started_at={id: time_to_proto(moment) for id, moment in moments.items()})

    async def ExitInfo(self, request: pb.ExitInfoRequest, context: Context) -> pb.ExitInfoResponse:
        """Say how a process ended. NotFound; FailedPrecondition if it has not."""
        namespace = namespace_of(context)
        container = await self._find(namespace, request.id)
        task = self._tasks.find(namespace, container.id)
        process = task.execs.get(request.exec_id) if request.exec_id else task.init
        if process is None:
            raise NotFound(f"exec {request.exec_id}")
        ended = process.exit
        if ended is None:
            raise FailedPrecondition(f"container {request.id} has not ended")
        return pb.ExitInfoResponse(
            exit_status=ended.exit_status,
            signal=ended.signal,
            oom_killed=ended.oom_killed,
            reason=ended.reason,
            exited_at=time_to_proto(ended.exited_at),
        )

    async def Upgrade(self, request: pb.UpgradeRequest, context: Context) -> pb.UpgradeResponse:
        """Let the program that is installed now take over. FailedPrecondition, and all is as it was, if it cannot."""
        serving = await self._upgrade()
        return pb.UpgradeResponse(pid=serving.pid, version=serving.version)

    async def _find(self, namespace: str, reference: str) -> Entry:
        """Return the container with this id, or else this name, or else the only one whose id begins so.

        Raises NotFound, InvalidArgument for a beginning that several have.
        """
        try:
            return await self._index.get(namespace, reference)
        except NotFound:
            entries = await self._index.list(namespace, ())
        for entry in entries:
            if entry.labels.get(labels.NAME) == reference:
                return entry
        starting = [entry for entry in entries if reference and entry.id.startswith(reference)]
        if len(starting) > 1:
            raise InvalidArgument(f"{reference} is the beginning of {len(starting)} ids: give more of it")
        if not starting:
            raise NotFound(f"container {reference}")
        return starting[0]

    async def _named(self, namespace: str, name: str) -> Sequence[Entry]:
        entries = await self._index.list(namespace, ())
        return [entry for entry in entries if entry.labels.get(labels.NAME) == name]

    async def _check_name(self, namespace: str, name: str) -> None:
        """Raise AlreadyExists if a container has this name, InvalidArgument if none may."""
        validate_identifier("container name", name)
        for holder in await self._named(namespace, name):
            raise AlreadyExists(f"the name {name!r} is in use by container {holder.id}: remove or rename that one")


def _time(moment: datetime | None) -> Timestamp | None:
    return None if moment is None else time_to_proto(moment)


def _operation(operation: Operation) -> pb.Operation:
    return pb.Operation(
        id=operation.id,
        namespace=operation.namespace,
        object=operation.object,
        name=operation.name,
        stage=operation.stage,
        started_at=_time(operation.started_at),
        deadline=_time(operation.deadline),
        ended_at=_time(operation.ended_at),
        error=operation.error,
    )


def _options(message: pb.RunOptions) -> RunOptions:
    for name in ("memory", "nano_cpus", "pids_limit"):
        if getattr(message, name) < 0:
            raise InvalidArgument(f"{name} must not be negative")
    return RunOptions(
        args=tuple(message.args),
        entrypoint=tuple(message.entrypoint),
        env=tuple(message.env),
        working_dir=message.working_dir,
        user=message.user,
        additional_groups=tuple(message.additional_groups),
        terminal=message.terminal,
        console_size=(message.console_width, message.console_height),
        hostname=message.hostname,
        privileged=message.privileged,
        init=message.init,
        read_only=message.read_only,
        mounts=mounts_from_proto(message.mounts),
        devices=tuple(message.devices),
        capabilities_add=tuple(message.capabilities_add),
        capabilities_drop=tuple(message.capabilities_drop),
        security_options=tuple(message.security_options),
        sysctls=dict(message.sysctls),
        ulimits=tuple(message.ulimits),
        memory=message.memory,
        nano_cpus=message.nano_cpus,
        pids_limit=message.pids_limit,
        network=message.network,
        stop_signal=message.stop_signal,
        labels=dict(message.labels),
        log_driver=message.log_driver,
        log_options=dict(message.log_options),
        auto_remove=message.auto_remove,
        interactive=message.interactive,
        userns=message.userns,
        restart_policy=message.restart_policy,
    )
