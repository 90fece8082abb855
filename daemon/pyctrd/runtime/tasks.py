"""What clients ask of tasks that exist: answered from the table, or by the shim within a deadline.

These calls go to the shim at once; they never queue behind a slow create or delete.
"""

import asyncio
import signal
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, Protocol, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from pyctr_wire.containerd.events import task_pb2 as events
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as shim
from pyctr_wire.containerd.types.task import task_pb2 as types
from pyctr_wire.errors import AlreadyExists, ApiError, DeadlineExceeded, InvalidArgument, NotFound, UnknownError
from pyctrd.core.anys import AnyValue
from pyctrd.core.identifiers import validate_identifier
from pyctrd.core.tasks import Exit, Status
from pyctrd.log import Logger
from pyctrd.offload import Offload, to_its_end
from pyctrd.runtime import other_streams
from pyctrd.runtime.bundle import StdioNames
from pyctrd.runtime.shim_client import ShimGone
from pyctrd.runtime.table import (
    KILLED,
    Deleted,
    Process,
    Task,
    TaskTable,
    process_of,
    record_exit,
    task_not_found,
)

CALL_TIMEOUT: Final = 10.0  # seconds; for a shim that is merely busy
STATS_TIMEOUT: Final = 2.0
UNRESPONSIVE_TIMEOUT: Final = 2.0  # for one that did not answer the last time
DRAIN_TIMEOUT: Final = 30.0  # a process's last output, then its deletion
PROBE_TIMEOUT: Final = 600.0
_OOM_TIMEOUT: Final = 1.0
_PAUSE: Final = 0.02  # between two looks
_ENDING: Final = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})

Reply = TypeVar("Reply", bound=Message)
_log = Logger("pyctrd.runtime")


class Publisher(Protocol):
    """Where events go."""

    def publish(self, namespace: str, topic: str, event: AnyValue, timestamp: datetime | None = None) -> None:
        """Hand an event to all subscribers; never blocks."""


def exit_event(task: Task, process: Process, ended: Exit) -> AnyValue:
    """Return the event of a process's end, for who learns of it in another way."""
    event = events.TaskExit(
        container_id=task.id, id=process.exec_id or task.id, pid=process.pid, exit_status=ended.exit_status
    )
    event.exited_at.FromDatetime(ended.exited_at)
    return AnyValue(event.DESCRIPTOR.full_name, event.SerializeToString())


class Tasks:
    """The tasks of all namespaces, as far as their existence does not change."""

    def __init__(self, publisher: Publisher, group: asyncio.TaskGroup, threads: Offload) -> None:
        """Start with an empty table. Probes of shims that do not answer run in `group`, looks at files in `threads`."""
        self.table = TaskTable()
        self._threads = threads
        self._publisher = publisher
        self._group = group

    def look_away(self) -> None:
        """Take no notice any more of shims that are lost: the next daemon will."""
        for task in self.table:
            if task.shim is not None:
                task.shim.on_close = None

    def let_go(self) -> None:
        """Close the connections to all shims, which live on: the daemon stops."""
        for task in self.table:
            if task.shim is not None:
                task.shim.close()

    def find(self, namespace: str, id: str) -> Task:
        """Return the task; raises NotFound in containerd's words."""
        task = self.table.find(namespace, id)
        if task is None:
            raise task_not_found(id)
        return task

    async def wait_created(self, namespace: str, id: str) -> None:
        """Return when no Create of that task is under way, or when it has taken long.

        A client that its own client's end of input has woken up asks for the task before Create has answered, and not
        again: nerdctl, whose containers would never learn of that end.
        """
        await self.table.wait_created(namespace, id, CALL_TIMEOUT)

    async def process(self, task: Task, exec_id: str) -> Process:
        """Return one process of the task, "" for init; raises NotFound.

        The execs of an adopted task that have not ended are learnt when somebody asks for them.
        """
        if not exec_id:
            return task.init
        process = task.execs.get(exec_id)
        if process is None and task.adopted:
            request = shim.StateRequest(id=task.id, exec_id=exec_id)
            state = await self.call(task, "State", request, shim.StateResponse, CALL_TIMEOUT)
            process = task.execs.setdefault(exec_id, process_of(exec_id, state))
        if process is None:
            raise NotFound(f"process does not exist {exec_id}")
        return process

    async def wait(self, namespace: str, id: str, exec_id: str) -> Exit:
        """Return how the process ended, once it has; cancelling the caller changes nothing."""
        process = await self.process(self.find(namespace, id), exec_id)
        return await process.wait()

    async def exec(self, namespace: str, request: shim.ExecProcessRequest) -> None:
        """Register a process that `start` will run in the container.

        Raises InvalidArgument for a bad exec id, AlreadyExists for a taken one, UnknownError in a stopped container.
        """
        exec_id = request.exec_id
        if not exec_id:
            raise InvalidArgument("exec id cannot be empty")
        validate_identifier("exec id", exec_id)
        task = self.find(namespace, request.id)
        if task.init.status is Status.STOPPED:
            raise UnknownError("cannot exec in a stopped state")
        if exec_id in task.execs:
            raise AlreadyExists(f"id {exec_id}")
        # One that only its shim knew could be neither started nor deleted, and its id would be taken.
        await to_its_end(asyncio.ensure_future(self._register(task, request)))

    async def _register(self, task: Task, request: shim.ExecProcessRequest) -> None:
        """Have the shim register a process, and note it."""
        exec_id = request.exec_id
        names = StdioNames(request.stdin, request.stdout, request.stderr, request.terminal)
        with_fifos = bool(task.bundle.manifest.shim) and other_streams.are_ours(names)
        if with_fifos:
            told = other_streams.make_fifos(task.bundle, exec_id, names)
            request.stdin, request.stdout, request.stderr = told.stdin, told.stdout, told.stderr
        try:
            await self.call(task, "Exec", request, shim.ExecProcessResponse, CALL_TIMEOUT)
        except ApiError:
            if with_fifos:
                other_streams.remove_fifos(task.bundle, exec_id)
            raise
        # A crash before this line leaves an exec that only the shim knows, which is enough while the shim lives.
        task.bundle.write_exec(exec_id, names)
        task.execs[exec_id] = Process(exec_id, names)

    async def wait_settled(self, namespace: str, id: str) -> Exit:
        """Return how a task's first process ended, once its output is in its log and it is known why it was killed.

        Our own shim tells of an end when all that is so. Others know of no logs, and tell of a want of memory before
        the end that it has brought or after it: for that a second is given.
        """
        task = self.find(namespace, id)
        ended = await task.init.wait()
        if not task.bundle.manifest.shim:
            return ended
        await other_streams.moved(task.bundle)
        if ended.exit_status == KILLED and not task.told_to_end:
            loop = asyncio.get_running_loop()
            deadline = loop.time() + _OOM_TIMEOUT
            while True:
                if task.oom_killed or loop.time() > deadline:
                    break
                await asyncio.sleep(_PAUSE)
        return task.init.exit or ended

    async def delete_process(self, namespace: str, id: str, exec_id: str) -> Deleted:
        """Forget an exec that has ended or was never started; init is deleted with its task."""
        if not exec_id:
            raise InvalidArgument("exec id cannot be empty")
        task = self.find(namespace, id)
        process = await self.process(task, exec_id)
        if task.shim is None and process.exit is not None:
            deleted = Deleted(process.pid, process.exit)
        else:
            request = shim.DeleteRequest(id=id, exec_id=exec_id)
            try:
                reply = await self.call(task, "Delete", request, shim.DeleteResponse, DRAIN_TIMEOUT)
            except NotFound:  # the shim has forgotten it by itself
                _forget(task, process)
                raise
            deleted = Deleted.of(reply, process.exit)
        _forget(task, process)
        return deleted

    async def kill(self, namespace: str, request: shim.KillRequest) -> None:
        """Send a signal; raises NotFound if the process has ended, InvalidArgument for a number that is none."""
        if request.signal > signal.NSIG - 1:
            raise InvalidArgument(f"there is no signal {request.signal}")
        task = self.find(namespace, request.id)
        process = await self.process(task, request.exec_id)
        if process.status is Status.STOPPED:
            raise NotFound("process already finished")
        if process is task.init and request.signal in _ENDING:
            task.told_to_end = True
        await self.call(task, "Kill", request, Empty, CALL_TIMEOUT)

    async def pause(self, namespace: str, id: str) -> None:
        """Freeze all processes of the container."""
        task = self.find(namespace, id)
        await self.call(task, "Pause", shim.PauseRequest(id=id), Empty, CALL_TIMEOUT)
        if task.init.status is Status.RUNNING:
            task.init.status = Status.PAUSED

    async def resume(self, namespace: str, id: str) -> None:
        """Thaw the container."""
        task = self.find(namespace, id)
        await self.call(task, "Resume", shim.ResumeRequest(id=id), Empty, CALL_TIMEOUT)
        if task.init.status is Status.PAUSED:
            task.init.status = Status.RUNNING

    async def resize(self, namespace: str, request: shim.ResizePtyRequest) -> None:
        """Tell a terminal its size, in characters; a process without a terminal does not mind."""
        task = self.find(namespace, request.id)
        process = await self.process(task, request.exec_id)
        if process.names.terminal:
            await self.call(task, "ResizePty", request, Empty, CALL_TIMEOUT)

    async def close_io(self, namespace: str, request: shim.CloseIORequest) -> None:
        """Let the end of the client's input reach the process."""
        task = self.find(namespace, request.id)
        await self.process(task, request.exec_id)
        await self.call(task, "CloseIO", request, Empty, CALL_TIMEOUT)

    async def update(self, namespace: str, request: shim.UpdateTaskRequest) -> None:
        """Change the container's resource limits."""
        await self.call(self.find(namespace, request.id), "Update", request, Empty, CALL_TIMEOUT)

    async def pids(self, namespace: str, id: str) -> list[types.ProcessInfo]:
        """Return the pids of all processes in the container, as the host counts them."""
        request = shim.PidsRequest(id=id)
        reply = await self.call(self.find(namespace, id), "Pids", request, shim.PidsResponse, CALL_TIMEOUT)
        return list(reply.processes)

    async def stats(self, tasks: Iterable[Task]) -> list[tuple[Task, AnyMessage]]:
        """Return the metrics of those tasks that give any within 2 s, and have not ended."""
        asked = [task for task in tasks if task.init.status is not Status.STOPPED]
        seen = await self._threads.run(_look_at, asked)

        async def ask(task: Task, metrics: AnyMessage | None) -> tuple[Task, AnyMessage] | None:
            if metrics is not None:
                return task, metrics
            try:
                reply = await self.call(task, "Stats", shim.StatsRequest(id=task.id), shim.StatsResponse, STATS_TIMEOUT)
            except ApiError:
                return None
            return task, reply.stats

        return [found for found in await asyncio.gather(*map(ask, asked, seen)) if found is not None]

    def forward(
        self, namespace: str, topic: str, event: AnyValue, timestamp: datetime, instance: str, sequence: int
    ) -> None:
        """Take in an event of the shim `instance`, numbered from 1 (0: not numbered), and pass it on.

        The table comes first: a subscriber that asks at once must see what the event told it.
        """
        if self.table.apply(namespace, instance, sequence, event):
            self._publisher.publish(namespace, topic, event, timestamp)

    def publish(self, namespace: str, topic: str, event: AnyValue) -> None:
        """Tell subscribers of what no shim could."""
        self._publisher.publish(namespace, topic, event)

    async def call(self, task: Task, method: str, request: Message, reply: type[Reply], seconds: float) -> Reply:
        """Call the task's shim, for `seconds` at most, 2 if it did not answer the last call.

        Raises what the shim answers, ShimGone without one, DeadlineExceeded if it does not answer: then the task
        counts as unresponsive until it answers again, and nobody else notices.
        """
        client = task.shim
        if client is None:
            raise ShimGone(f"task {task.id}: {method}: its shim was lost")
        if task.unresponsive_since is not None:
            seconds = min(seconds, UNRESPONSIVE_TIMEOUT)
        try:
            result = await client.call(method, request, reply, seconds)
        except DeadlineExceeded:
            if task.unresponsive_since is None:
                task.unresponsive_since = asyncio.get_running_loop().time() - seconds
                _log.warning("task.unresponsive", namespace=task.namespace, container=task.id, method=method)
                self._group.create_task(self._probe(task))
            raise
        return result

    async def refresh(self, task: Task) -> None:
        """Ask the shim for the state of all processes; Connect makes it deliver the events that wait in its spool.

        Raises NotFound if the shim has no container, and what `call` raises.
        """

        async def learn(process: Process) -> None:
            request = shim.StateRequest(id=task.id, exec_id=process.exec_id)
            try:
                state = await self.call(task, "State", request, shim.StateResponse, CALL_TIMEOUT)
                was_known = process.exit is not None  # by an event, perhaps, that came meanwhile
                process.learn(state)
                if process.exit is not None and not was_known and task.bundle.manifest.shim:
                    # Ours tells it by an event, late; others give that up.
                    record_exit(task, process)
                    self.publish(task.namespace, "/tasks/exit", exit_event(task, process, process.exit))
            except NotFound:
                if not process.exec_id:
                    raise
                task.execs.pop(process.exec_id, None)  # whoever has deleted it meanwhile has done that, too

        connect = self.call(task, "Connect", shim.ConnectRequest(id=task.id), shim.ConnectResponse, CALL_TIMEOUT)
        # Sent together: the shim, paged out perhaps, wakes up once.
        unknown = (learn(process) for process in task.processes if process.exit is None or process is task.init)
        await asyncio.gather(connect, *unknown)

    async def _probe(self, task: Task) -> None:
        """Wait until an unresponsive shim answers, or is gone."""
        while task.shim is not None and not task.shim.closed:
            request = shim.ConnectRequest(id=task.id)
            try:
                await task.shim.call("Connect", request, shim.ConnectResponse, PROBE_TIMEOUT)
                await self.refresh(task)
            except DeadlineExceeded:
                continue
            except (ApiError, OSError):
                break
            _log.info("task.responsive", namespace=task.namespace, container=task.id)
            break
        task.unresponsive_since = None


def _look_at(tasks: Sequence[Task]) -> list[AnyMessage | None]:
    """Return what is to be seen of each task's cgroup: nothing where another program knows that, or it is not ours."""
    from pyctrd.runtime import figures  # most daemons never need it

    found: list[AnyMessage | None] = []
    for task in tasks:
        try:
            if task.bundle.manifest.shim:
                raise FileNotFoundError("what it runs may be a machine of its own")
            found.append(figures.read(task.init.pid, task.bundle.recorded_cgroup()))
        except OSError:
            found.append(None)
    return found


def _forget(task: Task, process: Process) -> None:
    """Leave nothing of an exec that is gone."""
    task.bundle.forget_exec(process.exec_id)
    if task.bundle.manifest.shim:
        other_streams.remove_fifos(task.bundle, process.exec_id)
    task.execs.pop(process.exec_id, None)
    process.vanish(NotFound(f"process does not exist {process.exec_id}"))
