"""containerd's Task service: decode, call tasks.py, encode. Versions 2 and 3 have the same messages."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import any_pb2, empty_pb2
from google.protobuf.message import DecodeError, Message

from pyctr_shim import placement
from pyctr_shim.container import Program
from pyctr_shim.exit_record import Exit
from pyctr_shim.oci import forks, runtime
from pyctr_shim.process import Process, Status
from pyctr_shim.publisher import Publisher
from pyctr_shim.stdio.streams import Names
from pyctr_shim.task import NewTask
from pyctr_shim.tasks import Tasks
from pyctr_wire.containerd.events import task_pb2 as events
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as pb
from pyctr_wire.containerd.types.runc.options import oci_pb2
from pyctr_wire.containerd.types.task import task_pb2
from pyctr_wire.errors import InvalidArgument, Unimplemented

if TYPE_CHECKING:
    from pyctr_shim.oci.checkpoint.choices import Restore

SERVICES: Final = frozenset({"containerd.task.v2.Task", "containerd.task.v3.Task"})
_STATUS: Final = {
    Status.CREATED: task_pb2.CREATED,
    Status.RUNNING: task_pb2.RUNNING,
    Status.PAUSED: task_pb2.PAUSED,
    Status.STOPPED: task_pb2.STOPPED,
}
_LARGEST_SIDE: Final = 65535  # of a terminal, in characters
_EMPTY: Final = empty_pb2.Empty()
_DAEMON_OPTIONS: Final = "pyctr.v1.RuntimeOptions"
_COMMAND_SECONDS: Final = 30.0  # less than any daemon waits for Start
_NEVER: Final = -62135596800  # seconds: Go's zero time; without any, containerd takes an end to have been in 1970
_PROCESS: Final = "types.containerd.io/opencontainers/runtime-spec/1/Process"

Handler = Callable[[Any, Any], Awaitable[Message]]


class TaskService:
    """The service, on the containers of one shim."""

    def __init__(self, tasks: Tasks, publisher: Publisher, shim_pid: int, shut_down: Callable[[], None]) -> None:
        """`shut_down` ends the shim once the replies that are due have been sent."""
        self._tasks = tasks
        self._publisher = publisher
        self._shim_pid = shim_pid
        self._shut_down = shut_down
        self.has_moved = False
        """Whether a task's option has taken this process to another cgroup."""

    async def call(self, service: str, method: str, payload: bytes) -> bytes:
        """Answer one call; raises ApiError."""
        if service not in SERVICES:
            raise Unimplemented(f"service {service}")
        if method not in _METHODS:
            raise Unimplemented(f"method {method}")
        kind, handler = _METHODS[method]
        try:
            request = kind.FromString(payload)
        except DecodeError as error:
            raise InvalidArgument(f"{method}: the request does not decode") from error
        return (await handler(self, request)).SerializeToString()

    async def create(self, request: pb.CreateTaskRequest) -> Message:
        """Make a container, of a checkpoint if there is one; raises Unimplemented for options not to be honoured."""
        options, program = read_options(request.options)
        if program is not None and (request.checkpoint or options.criu_image_path):
            raise Unimplemented(f"Create from a checkpoint by another OCI runtime, {program.path}")
        if options.shim_cgroup:
            placement.enter(options.shim_cgroup)
            self.has_moved = True
        if options.shim_cgroup or program is not None:
            forks.dismiss()  # what has been started elsewhere, or for what another program makes
        created = events.TaskCreate(container_id=request.id, bundle=request.bundle, rootfs=request.rootfs)
        created.io.stdin, created.io.stdout, created.io.stderr = request.stdin, request.stdout, request.stderr
        created.io.terminal = request.terminal
        created.checkpoint = request.checkpoint or options.criu_image_path
        new = NewTask(
            id=request.id,
            bundle=request.bundle,
            names=Names(request.stdin, request.stdout, request.stderr, request.terminal),
            options=runtime.CreateOptions(
                rootfs=tuple(
                    runtime.RootfsMount(mount.type, mount.source, mount.target, tuple(mount.options))
                    for mount in request.rootfs
                ),
                no_pivot_root=options.no_pivot_root,
                no_new_keyring=options.no_new_keyring,
                systemd_cgroup=options.systemd_cgroup,
                checkpoint=_restore(request, options),
            ),
            program=program,
            io_uid=options.io_uid,
            io_gid=options.io_gid,
            created=created,
        )
        return pb.CreateTaskResponse(pid=await self._tasks.create(new))

    async def start(self, request: pb.StartRequest) -> Message:
        """Let a process run its program."""
        return pb.StartResponse(pid=await self._tasks.start(request.id, request.exec_id))

    async def delete(self, request: pb.DeleteRequest) -> Message:
        """Remove a process that has ended, or was never started."""
        end = await self._tasks.delete(request.id, request.exec_id)
        response = pb.DeleteResponse()
        if end is not None:
            response.pid = end.pid
            _set_end(response, end)
        return response

    async def exec(self, request: pb.ExecProcessRequest) -> Message:
        """Register a process that will join."""
        if request.spec.type_url.rpartition("/")[2] != _PROCESS.rpartition("/")[2]:
            raise InvalidArgument(f"Exec: spec is {request.spec.type_url or 'missing'}, not {_PROCESS}")
        names = Names(request.stdin, request.stdout, request.stderr, request.terminal)
        self._tasks.add_exec(request.id, request.exec_id, names, request.spec.value)
        return _EMPTY

    async def resize_pty(self, request: pb.ResizePtyRequest) -> Message:
        """Set a terminal's size."""
        if max(request.width, request.height) > _LARGEST_SIDE:
            raise InvalidArgument(f"ResizePty: {request.width} by {request.height} is no size of a terminal")
        self._tasks.resize(request.id, request.exec_id, request.width, request.height)
        return _EMPTY

    async def close_io(self, request: pb.CloseIORequest) -> Message:
        """Say that no more input comes."""
        if request.stdin:
            self._tasks.find(request.id).process(request.exec_id).streams.close_io()
        return _EMPTY

    async def kill(self, request: pb.KillRequest) -> Message:
        """Send a signal to one process, to an exec's group, or to all."""
        if request.all and request.exec_id:
            await self._tasks.kill_group(request.id, request.exec_id, request.signal)
        elif request.all:
            await self._tasks.kill_all(request.id, request.signal)
        else:
            await self._tasks.kill(request.id, request.exec_id, request.signal)
        return _EMPTY

    async def pids(self, request: pb.PidsRequest) -> Message:
        """List the container's processes, with the exec ids of those that were asked for."""
        response = pb.PidsResponse()
        for pid, exec_id in self._tasks.pids(request.id):
            process = response.processes.add(pid=pid)
            if exec_id:
                process.info.CopyFrom(_pack(oci_pb2.ProcessDetails(exec_id=exec_id)))
        return response

    async def pause(self, request: pb.PauseRequest) -> Message:
        """Freeze the container."""
        await self._tasks.pause(request.id)
        return _EMPTY

    async def resume(self, request: pb.ResumeRequest) -> Message:
        """Let it go on."""
        await self._tasks.resume(request.id)
        return _EMPTY

    async def wait(self, request: pb.WaitRequest) -> Message:
        """Answer when a process has ended."""
        response = pb.WaitResponse()
        _set_end(response, await self._tasks.wait(request.id, request.exec_id))
        return response

    async def state(self, request: pb.StateRequest) -> Message:
        """Tell what is known of a process."""
        task = self._tasks.find(request.id)
        process = task.process(request.exec_id)
        names = process.streams.names
        response = pb.StateResponse(
            id=task.id,
            bundle=task.bundle,
            pid=process.pid,
            status=_STATUS[_shown_status(process, task.init)],
            stdin=names.stdin,
            stdout=names.stdout,
            stderr=names.stderr,
            terminal=names.terminal,
            exec_id=request.exec_id,
        )
        if process.end is None:
            response.exited_at.seconds = _NEVER
        else:
            _set_end(response, process.end)
        return response

    async def stats(self, request: pb.StatsRequest) -> Message:
        """Return the cgroup's metrics."""
        type_url, value = self._tasks.stats(request.id)
        return pb.StatsResponse(stats=any_pb2.Any(type_url=type_url, value=value))

    async def update(self, request: pb.UpdateTaskRequest) -> Message:
        """Change resource limits."""
        await self._tasks.update(request.id, request.resources.value)
        return _EMPTY

    async def connect(self, request: pb.ConnectRequest) -> Message:
        """Never fails: a daemon asks who is there, and wants to hear what it missed."""
        self._publisher.retry_now()
        return pb.ConnectResponse(shim_pid=self._shim_pid, task_pid=self._tasks.pid(request.id))

    async def shutdown(self, _request: pb.ShutdownRequest) -> Message:
        """End the shim if it has no container."""
        if self._tasks.empty:
            self._shut_down()
        return _EMPTY

    async def checkpoint(self, request: pb.CheckpointTaskRequest) -> Message:
        """Save the container into a directory."""
        from pyctr_shim.oci.checkpoint.choices import Common, Dump

        options = oci_pb2.CheckpointOptions()
        _read_into(options, request.options, "checkpoint options")
        path = request.path or options.image_path
        if not path.startswith("/"):
            raise InvalidArgument(f"Checkpoint: path {path!r} is not absolute")
        common = Common(
            images=path,
            work=options.work_path,
            tcp_established=options.open_tcp,
            external_unix_sockets=options.external_unix_sockets,
            shell_job=options.terminal,
            file_locks=options.file_locks,
            cgroup_mode=options.cgroups_mode,
            empty_namespaces=tuple(options.empty_namespaces),
        )
        await self._tasks.checkpoint(request.id, Dump(common, leave_running=not options.exit))
        return _EMPTY


_METHODS: Final[dict[str, tuple[type[Message], Handler]]] = {
    "Create": (pb.CreateTaskRequest, TaskService.create),
    "Start": (pb.StartRequest, TaskService.start),
    "Delete": (pb.DeleteRequest, TaskService.delete),
    "Exec": (pb.ExecProcessRequest, TaskService.exec),
    "ResizePty": (pb.ResizePtyRequest, TaskService.resize_pty),
    "CloseIO": (pb.CloseIORequest, TaskService.close_io),
    "Kill": (pb.KillRequest, TaskService.kill),
    "Pids": (pb.PidsRequest, TaskService.pids),
    "Pause": (pb.PauseRequest, TaskService.pause),
    "Resume": (pb.ResumeRequest, TaskService.resume),
    "Wait": (pb.WaitRequest, TaskService.wait),
    "State": (pb.StateRequest, TaskService.state),
    "Stats": (pb.StatsRequest, TaskService.stats),
    "Update": (pb.UpdateTaskRequest, TaskService.update),
    "Connect": (pb.ConnectRequest, TaskService.connect),
    "Shutdown": (pb.ShutdownRequest, TaskService.shutdown),
    "Checkpoint": (pb.CheckpointTaskRequest, TaskService.checkpoint),
}


def read_options(packed: any_pb2.Any) -> tuple[oci_pb2.Options, Program | None]:
    """Return runc's options, and the runtime that they name if it is not the embedded one.

    `root`, where runc keeps its state, means nothing to the embedded one, which keeps its in the bundle. Raises
    InvalidArgument for another type.
    """
    options, seconds = oci_pb2.Options(), 0.0
    if packed.type_url.rpartition("/")[2] == _DAEMON_OPTIONS:
        from pyctr_wire.pyctr import runtime_pb2

        told = runtime_pb2.RuntimeOptions()
        _read_into(told, packed, "task options")
        options, seconds = told.runc, told.command_seconds
    else:
        _read_into(options, packed, "task options")
    if not options.binary_name:
        return options, None
    return options, Program(options.binary_name, options.root, seconds or _COMMAND_SECONDS)


def _read_into(options: Message, packed: any_pb2.Any, what: str) -> None:
    """Decode options of a known type, none at all being their defaults; raises InvalidArgument for another type."""
    if not packed.type_url and not packed.value:
        return
    name = options.DESCRIPTOR.full_name
    if packed.type_url.rpartition("/")[2] != name:
        raise InvalidArgument(f"{what} are {packed.type_url}, not {name}")
    try:
        options.MergeFromString(packed.value)
    except DecodeError as error:
        raise InvalidArgument(f"{what} do not decode as {name}") from error


def _restore(request: pb.CreateTaskRequest, options: oci_pb2.Options) -> "Restore | None":
    """Return what of a container is to be restored, None for one that is new."""
    images = request.checkpoint or options.criu_image_path
    if not images:
        return None
    from pyctr_shim.oci.checkpoint.choices import Common, Restore

    if not images.startswith("/"):
        raise InvalidArgument(f"Create: checkpoint {images!r} is not an absolute path")
    # Whether connections, locks or a terminal were saved is decided when that was done.
    common = Common(
        images=images,
        work=options.criu_work_path,
        tcp_established=True,
        external_unix_sockets=True,
        shell_job=True,
        file_locks=True,
    )
    return Restore(common)


def _shown_status(process: Process, init: Process) -> Status:
    """An exec of a frozen container is frozen."""
    if init.status is Status.PAUSED and process.status is Status.RUNNING:
        return Status.PAUSED
    return process.status


def _set_end(response: Any, end: Exit) -> None:
    response.exit_status = end.status
    response.exited_at.FromNanoseconds(end.exited_at_ns)


def _pack(message: Message) -> any_pb2.Any:
    """Return containerd's form of an Any: the bare type name, without a host."""
    return any_pb2.Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())
