"""The calls on tasks that several commands share."""

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from google.protobuf import any_pb2, empty_pb2

from pyctr.connection import ENGINE, TASKS, Connection
from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2
from pyctr_wire.containerd.types.mount_pb2 import Mount
from pyctr_wire.containerd.types.runc.options import oci_pb2
from pyctr_wire.containerd.types.task.task_pb2 import Process, Status
from pyctr_wire.errors import FailedPrecondition, NotFound, UnknownError
from pyctr_wire.pyctr import engine_pb2

T = TypeVar("T")
# Seconds in which what the daemon was asked for, as we were interrupted, comes to an end, and between two looks.
_SETTLING: Final = 5.0
_PAUSE: Final = 0.025
# A stream that is only there for whoever attaches.
ATTACHED: Final = "attach:"
FROZEN: Final = frozenset({Status.PAUSED, Status.PAUSING})
SAVING: Final = 600.0  # seconds: all of a container's memory is written
RECONNECT: Final = 30.0  # seconds that a running session waits for a daemon that is being replaced


def create(
    connection: Connection,
    container_id: str,
    rootfs: Iterable[Mount],
    log_uri: str,
    *,
    terminal: bool,
    interactive: bool,
    options: any_pb2.Any | None = None,
) -> None:
    """Make the task of a container: everything is ready, nothing runs. `options` are instead of the container's."""
    request = tasks_pb2.CreateTaskRequest(
        container_id=container_id,
        rootfs=rootfs,
        stdin=ATTACHED if interactive else "",
        stdout=log_uri,
        stderr="" if terminal else log_uri,
        terminal=terminal,
        options=options,
    )
    connection.call(TASKS, "Create", request, tasks_pb2.CreateTaskResponse)


def start(connection: Connection, container_id: str, exec_id: str = "") -> int:
    """Start the init or an exec; return its process id on this machine."""
    request = tasks_pb2.StartRequest(container_id=container_id, exec_id=exec_id)
    return connection.call(TASKS, "Start", request, tasks_pb2.StartResponse).pid


def get(connection: Connection, container_id: str, exec_id: str = "") -> Process | None:
    """Return the state of a task or exec, None if there is none."""
    request = tasks_pb2.GetRequest(container_id=container_id, exec_id=exec_id)
    try:
        return connection.call(TASKS, "Get", request, tasks_pb2.GetResponse).process
    except NotFound:
        return None


def runs(connection: Connection, container_id: str) -> bool:
    """Tell whether a container has a task that has not ended."""
    process = get(connection, container_id)
    return process is not None and process.status != Status.STOPPED


def kill(connection: Connection, container_id: str, signal: int, exec_id: str = "", patience: float = 0.0) -> None:
    """Send a signal. Raises NotFound if the process has ended."""
    request = tasks_pb2.KillRequest(container_id=container_id, exec_id=exec_id, signal=signal)
    connection.call(TASKS, "Kill", request, empty_pb2.Empty, patience=patience)


def resume(connection: Connection, container_id: str) -> None:
    """Thaw a container."""
    connection.call(TASKS, "Resume", tasks_pb2.ResumeTaskRequest(container_id=container_id), empty_pb2.Empty)


def checkpoint(connection: Connection, container_id: str, options: oci_pb2.CheckpointOptions) -> None:
    """Save a container's processes."""
    request = tasks_pb2.CheckpointTaskRequest(container_id=container_id)
    request.options.type_url = options.DESCRIPTOR.full_name
    request.options.value = options.SerializeToString()
    connection.call(TASKS, "Checkpoint", request, tasks_pb2.CheckpointTaskResponse, timeout=SAVING)


def wait(connection: Connection, container_id: str, exec_id: str = "", timeout: float | None = None) -> int:
    """Wait for the end of a process, across restarts of the daemon; return its exit status.

    Raises DeadlineExceeded after `timeout` seconds.
    """
    request = tasks_pb2.WaitRequest(container_id=container_id, exec_id=exec_id)
    answer = connection.call(TASKS, "Wait", request, tasks_pb2.WaitResponse, timeout=timeout, patience=RECONNECT)
    return answer.exit_status


def delete(connection: Connection, container_id: str) -> int | None:
    """Delete an ended task; return its exit status, None if there was none."""
    request = tasks_pb2.DeleteTaskRequest(container_id=container_id)
    try:
        return connection.call(TASKS, "Delete", request, tasks_pb2.DeleteResponse, patience=RECONNECT).exit_status
    except NotFound:
        return None


def give_up(delete: Callable[[], T], end: Callable[[], None]) -> T:
    """Delete a process at whose start we were interrupted. It may be being started still: it ends before it goes."""
    deadline = time.monotonic() + _SETTLING
    while True:
        try:
            return delete()
        except (UnknownError, FailedPrecondition):  # it is being started still, or runs
            if time.monotonic() >= deadline:
                raise
            with contextlib.suppress(FailedPrecondition, NotFound):
                end()
            time.sleep(_PAUSE)


def attach_path(connection: Connection, container_id: str, exec_id: str = "") -> str:
    """Return the path of the socket that attaches to a process."""
    connection.check_local("the streams of a container")
    request = engine_pb2.AttachRequest(id=container_id, exec_id=exec_id)
    return connection.call(ENGINE, "Attach", request, engine_pb2.AttachResponse).path
