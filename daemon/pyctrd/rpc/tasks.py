"""containerd.services.tasks.v1."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import ClassVar, Final, Protocol

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as shim
from pyctr_wire.containerd.services.containers.v1 import containers_pb2
from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2 as pb
from pyctr_wire.containerd.types import descriptor_pb2, metrics_pb2
from pyctr_wire.containerd.types.task import task_pb2
from pyctr_wire.errors import InvalidArgument, Unimplemented
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.filters import Adaptor, compile_filters, text_field
from pyctrd.core.tasks import Status
from pyctrd.core.times import UNSET
from pyctrd.rpc.convert.well_known import time_to_proto
from pyctrd.rpc.headers import Context, lease_of, namespace_of
from pyctrd.runtime.lifecycle import Lifecycle
from pyctrd.runtime.runtime_versions import RuntimeVersions
from pyctrd.runtime.runtimes import Runtimes
from pyctrd.runtime.table import Deleted, Process, Task, task_not_found
from pyctrd.runtime.tasks import Tasks as TaskCalls

_OPTIONS: Final = "containerd.runc.v1.Options"
_RESTORE_FROM_PATH: Final = "RestoreFromPath"

_STATUS: Final[Mapping[Status, task_pb2.Status]] = {
    Status.CREATED: task_pb2.CREATED,
    Status.RUNNING: task_pb2.RUNNING,
    Status.PAUSED: task_pb2.PAUSED,
    Status.STOPPED: task_pb2.STOPPED,
}


class EncodedContainer(Protocol):
    """A container as it is sent."""

    @property
    def encoded(self) -> bytes:
        """A whole GetContainerResponse."""


class ContainerReader(Protocol):
    """Where containers are read."""

    async def get(self, namespace: str, container: str, /) -> EncodedContainer:
        """Return a container; raises NotFound."""


class Checkpoints(Protocol):
    """What saves containers, and has what was saved."""

    async def save_in(self, namespace: str, id: str, path: str, options: AnyMessage, /) -> None:
        """Save a task's processes into a directory."""

    async def save(
        self, namespace: str, id: str, spec: AnyMessage, options: AnyMessage, lease: str, /
    ) -> Sequence[Descriptor]:
        """Save a task's processes and a container's spec as content."""

    def unpacked(self, namespace: str, descriptor: Descriptor, /) -> AbstractAsyncContextManager[str]:
        """Return what makes a directory of saved processes for a while."""


class _Saved:
    """Saved processes that a task shall be made of."""

    def __init__(self, checkpoints: Checkpoints, namespace: str, descriptor: Descriptor) -> None:
        self._checkpoints, self._namespace, self._descriptor = checkpoints, namespace, descriptor

    @property
    def digest(self) -> str:
        return self._descriptor.digest

    def unpacked(self) -> AbstractAsyncContextManager[str]:
        return self._checkpoints.unpacked(self._namespace, self._descriptor)


class Tasks:
    """The processes of containers."""

    SERVICE: ClassVar = pb.DESCRIPTOR.services_by_name["Tasks"]

    def __init__(
        self,
        tasks: TaskCalls,
        lifecycle: Lifecycle,
        containers: ContainerReader,
        checkpoints: Callable[[], Checkpoints],
        check_sandbox: Callable[[str, str], None],
        runtimes: Runtimes,
        versions: RuntimeVersions,
    ) -> None:
        """Ask `containers` for what a new task shall run, and `runtimes` for what by.

        `checkpoints` raises FailedPrecondition if there are none, `check_sandbox` if no task may be made in one.
        """
        self._checkpoints = checkpoints
        self._check_sandbox = check_sandbox
        self._tasks = tasks
        self._lifecycle = lifecycle
        self._containers = containers
        self._runtimes = runtimes
        self._versions = versions

    async def Create(self, request: pb.CreateTaskRequest, context: Context) -> pb.CreateTaskResponse:
        """Make a container's init process, ready to start. AlreadyExists, NotFound, what the runtime refuses."""
        namespace = namespace_of(context)
        found = await self._containers.get(namespace, request.container_id)
        container = containers_pb2.GetContainerResponse.FromString(found.encoded).container
        runtime = request.runtime_path or container.runtime.name
        options = _options(request, container)
        if options is not None and options.value and _names_checkpoint(options):
            self._checkpoints()  # is it allowed?
        if container.sandbox:
            self._check_sandbox(namespace, container.sandbox)
        resolved = self._runtimes.resolve(runtime, options)
        creation = shim.CreateTaskRequest(
            id=request.container_id,
            rootfs=request.rootfs,
            terminal=request.terminal,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
            options=resolved.options,
        )
        if resolved.program:
            self._versions.used(resolved.program)
        checkpoint = self._checkpoint(namespace, request.checkpoint) if request.HasField("checkpoint") else None
        pid = await self._lifecycle.create(
            namespace, runtime, container.spec.value, creation, checkpoint, other_shim=resolved.shim
        )
        return pb.CreateTaskResponse(container_id=request.container_id, pid=pid)

    async def Start(self, request: pb.StartRequest, context: Context) -> pb.StartResponse:
        """Run the program of a created process. NotFound, what the runtime refuses."""
        namespace = await self._namespace(request.container_id, context)
        pid = await self._lifecycle.start(namespace, request.container_id, request.exec_id)
        return pb.StartResponse(pid=pid)

    async def Delete(self, request: pb.DeleteTaskRequest, context: Context) -> pb.DeleteResponse:
        """Remove a task that does not run; a repeated call gets the first one's result. NotFound, Unknown."""
        namespace = namespace_of(context)
        deleted = await self._lifecycle.delete(namespace, request.container_id)
        return _deleted(request.container_id, deleted)

    async def DeleteProcess(self, request: pb.DeleteProcessRequest, context: Context) -> pb.DeleteResponse:
        """Forget an exec that does not run. NotFound, Unknown."""
        namespace = await self._namespace(request.container_id, context)
        deleted = await self._tasks.delete_process(namespace, request.container_id, request.exec_id)
        return _deleted(request.exec_id, deleted)

    async def Get(self, request: pb.GetRequest, context: Context) -> pb.GetResponse:
        """Return what is known of a process. NotFound."""
        namespace = await self._namespace(request.container_id, context)
        task = self._tasks.find(namespace, request.container_id)
        process = await self._tasks.process(task, request.exec_id)
        return pb.GetResponse(process=_process(task, process))

    async def List(self, request: pb.ListTasksRequest, context: Context) -> pb.ListTasksResponse:
        """Return the namespace's tasks; containerd ignores the filter too."""
        tasks = self._tasks.table.list(namespace_of(context))
        return pb.ListTasksResponse(tasks=[_process(task, task.init) for task in tasks])

    async def Kill(self, request: pb.KillRequest, context: Context) -> Empty:
        """Send a signal. NotFound also if the process has ended."""
        namespace = await self._namespace(request.container_id, context)
        signal = shim.KillRequest(
            id=request.container_id, exec_id=request.exec_id, signal=request.signal, all=request.all
        )
        await self._tasks.kill(namespace, signal)
        return Empty()

    async def Exec(self, request: pb.ExecProcessRequest, context: Context) -> Empty:
        """Register a process that Start will run in a container. AlreadyExists, InvalidArgument, NotFound, Unknown."""
        namespace = await self._namespace(request.container_id, context)
        process = shim.ExecProcessRequest(
            id=request.container_id,
            exec_id=request.exec_id,
            terminal=request.terminal,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
            spec=request.spec,
        )
        await self._tasks.exec(namespace, process)
        return Empty()

    async def ResizePty(self, request: pb.ResizePtyRequest, context: Context) -> Empty:
        """Tell a terminal its size; nothing happens without one. NotFound."""
        namespace = await self._namespace(request.container_id, context)
        size = shim.ResizePtyRequest(
            id=request.container_id, exec_id=request.exec_id, width=request.width, height=request.height
        )
        await self._tasks.resize(namespace, size)
        return Empty()

    async def CloseIO(self, request: pb.CloseIORequest, context: Context) -> Empty:
        """Let the end of the client's input reach the process. NotFound."""
        namespace = await self._namespace(request.container_id, context)
        streams = shim.CloseIORequest(id=request.container_id, exec_id=request.exec_id, stdin=request.stdin)
        await self._tasks.close_io(namespace, streams)
        return Empty()

    async def Pause(self, request: pb.PauseTaskRequest, context: Context) -> Empty:
        """Freeze a container. NotFound, Unknown if it does not run."""
        namespace = await self._namespace(request.container_id, context)
        await self._tasks.pause(namespace, request.container_id)
        return Empty()

    async def Resume(self, request: pb.ResumeTaskRequest, context: Context) -> Empty:
        """Thaw a container. NotFound, Unknown if it is not paused."""
        namespace = await self._namespace(request.container_id, context)
        await self._tasks.resume(namespace, request.container_id)
        return Empty()

    async def ListPids(self, request: pb.ListPidsRequest, context: Context) -> pb.ListPidsResponse:
        """Return the pids of a container as the host counts them. NotFound."""
        namespace = await self._namespace(request.container_id, context)
        return pb.ListPidsResponse(processes=await self._tasks.pids(namespace, request.container_id))

    async def Checkpoint(self, request: pb.CheckpointTaskRequest, context: Context) -> pb.CheckpointTaskResponse:
        """Save a running container, as content or in a directory. NotFound, what the runtime says."""
        checkpoints = self._checkpoints()
        from pyctr_wire.containerd.types.runc.options import oci_pb2  # most daemons never need these
        from pyctrd.rpc.convert.records import descriptor_to_proto

        namespace = await self._namespace(request.container_id, context)
        options = oci_pb2.CheckpointOptions()
        if request.HasField("options"):
            _decode(request.options, options, "checkpoint options")
        if request.parent_checkpoint:
            raise Unimplemented("Tasks.Checkpoint with a parent checkpoint")
        if options.image_path:
            path = options.image_path
            await checkpoints.save_in(namespace, request.container_id, path, request.options)
            return pb.CheckpointTaskResponse()
        found = await self._containers.get(namespace, request.container_id)
        spec = containers_pb2.GetContainerResponse.FromString(found.encoded).container.spec
        descriptors = await checkpoints.save(namespace, request.container_id, spec, request.options, lease_of(context))
        return pb.CheckpointTaskResponse(descriptors=map(descriptor_to_proto, descriptors))

    async def Update(self, request: pb.UpdateTaskRequest, context: Context) -> Empty:
        """Change a container's resource limits. NotFound, what the runtime refuses."""
        namespace = await self._namespace(request.container_id, context)
        limits = shim.UpdateTaskRequest(
            id=request.container_id, resources=request.resources, annotations=request.annotations
        )
        await self._tasks.update(namespace, limits)
        return Empty()

    async def Metrics(self, request: pb.MetricsRequest, context: Context) -> pb.MetricsResponse:
        """Return the metrics of the tasks that match and that give any. InvalidArgument."""
        matches = compile_filters(tuple(request.filters))
        tasks = [task for task in self._tasks.table.list(namespace_of(context)) if matches(_adaptor(task))]
        now = time_to_proto(datetime.now(UTC))
        return pb.MetricsResponse(
            metrics=[
                metrics_pb2.Metric(timestamp=now, id=task.id, data=data)
                for task, data in await self._tasks.stats(tasks)
            ]
        )

    async def Wait(self, request: pb.WaitRequest, context: Context) -> pb.WaitResponse:
        """Return how a process ended, once it has. NotFound."""
        namespace = await self._namespace(request.container_id, context)
        ended = await self._tasks.wait(namespace, request.container_id, request.exec_id)
        return pb.WaitResponse(exit_status=ended.exit_status, exited_at=time_to_proto(ended.exited_at))

    def _checkpoint(self, namespace: str, message: descriptor_pb2.Descriptor) -> "_Saved":
        checkpoints = self._checkpoints()
        from pyctrd.rpc.convert.records import descriptor_from_proto

        if _RESTORE_FROM_PATH in message.annotations:
            raise Unimplemented(f"Tasks.Create with a checkpoint's annotation {_RESTORE_FROM_PATH}")
        return _Saved(checkpoints, namespace, descriptor_from_proto(message))

    async def _namespace(self, id: str, context: Context) -> str:
        """Return the namespace of a call about a task; without one, NotFound tells whether a container is there.

        A task whose container's record is gone can still be reached, or nobody could end it.
        """
        namespace = namespace_of(context)
        await self._tasks.wait_created(namespace, id)
        if self._tasks.table.find(namespace, id) is None:
            await self._containers.get(namespace, id)
            raise task_not_found(id)
        return namespace


def _options(request: pb.CreateTaskRequest, container: containers_pb2.Container) -> AnyMessage | None:
    """Return the runtime's options: those of the call, else the container's; None if there are none."""
    if request.HasField("options"):
        if request.options.type_url.rpartition("/")[2] != _OPTIONS:
            raise InvalidArgument(f"invalid task create option for {container.runtime.name}")
        return request.options
    return container.runtime.options if container.runtime.HasField("options") else None


def _names_checkpoint(options: AnyMessage) -> bool:
    """Whether runtime options have the container made of a checkpoint in a directory."""
    from pyctr_wire.containerd.types.runc.options import oci_pb2  # not all clients send options

    decoded = oci_pb2.Options()
    _decode(options, decoded, "task options")
    return bool(decoded.criu_image_path)


def _decode(packed: AnyMessage, message: Message, what: str) -> None:
    """Decode an Any, whose type may be named with or without a host; raises InvalidArgument for another type."""
    name = message.DESCRIPTOR.full_name
    if packed.type_url.rpartition("/")[2] != name:
        raise InvalidArgument(f"{what} are {packed.type_url}, not {name}")
    try:
        message.MergeFromString(packed.value)
    except DecodeError as error:
        raise InvalidArgument(f"{what} do not decode as {name}") from error


def _process(task: Task, process: Process) -> task_pb2.Process:
    message = task_pb2.Process(
        id=process.exec_id or task.id,
        pid=process.pid,
        status=_STATUS[process.status],
        stdin=process.names.stdin,
        stdout=process.names.stdout,
        stderr=process.names.stderr,
        terminal=process.names.terminal,
        # Always there: for containerd's own client an absent time is 1970, which nerdctl prints.
        exited_at=time_to_proto(UNSET if process.exit is None else process.exit.exited_at),
    )
    if process.exit is not None:
        message.exit_status = process.exit.exit_status
    return message


def _deleted(id: str, deleted: Deleted) -> pb.DeleteResponse:
    return pb.DeleteResponse(
        id=id,
        pid=deleted.pid,
        exit_status=deleted.exit.exit_status,
        exited_at=time_to_proto(deleted.exit.exited_at),
    )


def _adaptor(task: Task) -> Adaptor:
    fields = {"id": task.id, "namespace": task.namespace}
    return lambda path: text_field(fields.get(path[0], "")) if len(path) == 1 else ("", False)
