"""The daemon's own table of tasks: what List, Get and Wait answer from, fed by shims' answers and events."""

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import field, replace
from datetime import UTC, datetime
from typing import Final

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from pyctr_wire.containerd.events import task_pb2 as events
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as shim
from pyctr_wire.containerd.types.task import task_pb2 as types
from pyctr_wire.errors import ApiError, Code, error_for
from pyctrd.core.anys import AnyValue
from pyctrd.core.tasks import Exit, Status
from pyctrd.core.times import UNSET
from pyctrd.core.values import dataclass
from pyctrd.log import Logger
from pyctrd.runtime.bundle import NO_STDIO, Bundle, StdioNames
from pyctrd.runtime.shim_client import ShimClient

_STATUS: Final[Mapping[int, Status]] = {
    types.CREATED: Status.CREATED,
    types.RUNNING: Status.RUNNING,
    types.PAUSED: Status.PAUSED,
    types.PAUSING: Status.PAUSED,
}


KILLED: Final = 128 + signal.SIGKILL
_TOLD_KEPT: Final = 1024

_log = Logger("pyctrd.runtime")


def task_not_found(id: str) -> ApiError:
    """Return containerd's error for a container without a task: clients know its text, which has no suffix."""
    return error_for(Code.NOT_FOUND, f"task {id} not found")


@dataclass(slots=True, eq=False)
class Process:
    """One process of a task, `exec_id` "" for init; `pid` is 0 until it has one."""

    exec_id: str
    names: StdioNames = NO_STDIO
    pid: int = 0
    status: Status = Status.CREATED
    exit: Exit | None = None
    _waiters: "set[asyncio.Future[Exit]]" = field(default_factory=set)

    def started(self, pid: int) -> None:
        """Note that it runs; a process whose end is known already stays stopped."""
        self.pid = pid
        if self.status is Status.CREATED:
            self.status = Status.RUNNING

    def finish(self, ended: Exit) -> None:
        """Note how it ended, and tell all who wait; only the first end counts."""
        if self.exit is not None:
            return
        self.status = Status.STOPPED
        self.exit = ended
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(ended)

    def learn(self, state: shim.StateResponse) -> None:
        """Take over what the shim says; an end that is known already stays."""
        self.pid = state.pid or self.pid
        if state.status == types.STOPPED:
            self.finish(Exit(exit_status=state.exit_status, exited_at=time_of(state.exited_at)))
        elif self.exit is None:
            self.status = _STATUS.get(state.status, self.status)

    def vanish(self, error: ApiError) -> None:
        """Fail whoever still waits for a process that was deleted before it ran."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)

    async def wait(self) -> Exit:
        """Return how it ended, once it has; cancelling the caller changes nothing for others."""
        if self.exit is not None:
            return self.exit
        waiter: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            return await waiter
        finally:
            self._waiters.discard(waiter)


@dataclass(slots=True, eq=False)
class Task:
    """A container's processes and the way to their shim.

    `shim` is None while there is no connection: before adoption, and after the shim was lost.
    `adopted` tells that another daemon created the task, so that execs may exist that are not listed here.
    `unresponsive_since` is the loop time (s) of the first call without an answer since the last one with.
    """

    bundle: Bundle
    init: Process
    shim: ShimClient | None = None
    execs: dict[str, Process] = field(default_factory=dict)
    adopted: bool = False
    claimed: bool = False  # whether the client that created it is known to have had the answer
    oom_killed: bool = False
    told_to_end: bool = False  # a client has sent its init a signal that ends programs
    unresponsive_since: float | None = None
    last_sequence: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and id."""
        return self.bundle.manifest.namespace, self.bundle.manifest.id

    @property
    def namespace(self) -> str:
        """The container's namespace."""
        return self.bundle.manifest.namespace

    @property
    def id(self) -> str:
        """The container's id."""
        return self.bundle.manifest.id

    @property
    def processes(self) -> list[Process]:
        """The execs, then init: the order in which exits are told."""
        return [*self.execs.values(), self.init]

    def process_named(self, exec_id: str) -> Process:
        """Return init for "", else the exec, which is added if it is not known."""
        return self.execs.setdefault(exec_id, Process(exec_id)) if exec_id else self.init

    def ended(self, id: str, pid: int) -> Process | None:
        """Return the process that an exit event names: by the container's id for init, else by exec id."""
        if id == self.id and (id not in self.execs or pid == self.init.pid):
            return self.init
        return self.execs.get(id)


@dataclass(frozen=True, slots=True)
class Deleted:
    """What is left of a process after its deletion."""

    pid: int
    exit: Exit

    @classmethod
    def of(cls, reply: shim.DeleteResponse, known: Exit | None) -> "Deleted":
        """Return what a shim answered, with what the table knows beyond that."""
        exited_at = time_of(reply.exited_at)
        if known is not None and known.exit_status == reply.exit_status:
            return cls(reply.pid, known)
        return cls(reply.pid, Exit(exit_status=reply.exit_status, exited_at=exited_at))


def time_of(message: Timestamp) -> datetime:
    """Return the time that a shim sent, cut to microseconds; Go's zero time if it makes no sense."""
    try:
        return message.ToDatetime(tzinfo=UTC)
    except ValueError:
        return UNSET


def process_of(exec_id: str, state: shim.StateResponse) -> Process:
    """Return the process that a shim's answer to State describes."""
    process = Process(exec_id, StdioNames(state.stdin, state.stdout, state.stderr, state.terminal), state.pid)
    process.learn(state)
    return process


class TaskTable:
    """All tasks. One whose Create is under way can be found by its events only; clients wait for it."""

    def __init__(self) -> None:
        """Start empty."""
        self._tasks: dict[tuple[str, str], Task] = {}
        self._instances: dict[str, Task] = {}
        self._arriving: dict[tuple[str, str], asyncio.Event] = {}
        self._told: dict[str, int] = {}  # the last numbers of shims whose tasks are gone, the latest ones

    def introduce(self, task: Task) -> None:
        """Let events of the task's shim find it; `publish` or `remove` follows."""
        self._instances[task.bundle.manifest.instance] = task
        self._arriving[task.key] = asyncio.Event()

    def publish(self, task: Task) -> None:
        """Let clients find the task."""
        self._instances[task.bundle.manifest.instance] = task
        self._tasks[task.key] = task
        self._arrived(task)

    def remove(self, task: Task) -> None:
        """Forget the task; an entry of the same name that is another task's stays."""
        instance = task.bundle.manifest.instance
        if self._instances.pop(instance, None) is not None:
            self._told[instance] = task.last_sequence
            if len(self._told) > _TOLD_KEPT:
                del self._told[next(iter(self._told))]
        if self._tasks.get(task.key) is task:
            del self._tasks[task.key]
        self._arrived(task)
        for process in task.processes:
            process.vanish(task_not_found(task.id))

    def _arrived(self, task: Task) -> None:
        event = self._arriving.pop(task.key, None)
        if event is not None:
            event.set()

    async def wait_created(self, namespace: str, id: str, seconds: float) -> None:
        """Return when no Create of that task is under way any more, or after `seconds`."""
        event = self._arriving.get((namespace, id))
        if event is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await event.wait()

    def find(self, namespace: str, id: str) -> Task | None:
        """Return the task, or None."""
        return self._tasks.get((namespace, id))

    def list(self, namespace: str) -> list[Task]:
        """Return the namespace's tasks in the order of their creation."""
        return [task for (name, _), task in self._tasks.items() if name == namespace]

    def __iter__(self) -> Iterator[Task]:
        """Iterate over all tasks of all namespaces."""
        return iter(list(self._tasks.values()))

    def __len__(self) -> int:
        """Count the tasks."""
        return len(self._tasks)

    def apply(self, namespace: str, instance: str, sequence: int, event: AnyValue) -> bool:
        """Take in an event of a shim; return False if this one has been taken in before.

        A shim repeats what nobody acknowledged, so a daemon may see the same event twice. An event of a shim that
        has no task here, because it was deleted, is news to subscribers but changes nothing. A shim that was started
        as a program knows no instance; the container's name must do.
        """
        task = self._instances.get(instance) if instance else self.find(namespace, _container(event))
        if task is None:
            return self._is_news_of_the_gone(instance, sequence)
        if sequence:
            if sequence <= task.last_sequence:
                return False
            task.last_sequence = sequence
        elif task.bundle.manifest.shim and _is_known_end(task, event):
            return False
        change = _CHANGES.get(event.type_url.rpartition("/")[2])
        if change is not None:
            change(task, event.value)
        return True

    def _is_news_of_the_gone(self, instance: str, sequence: int) -> bool:
        """Whether an event of a shim without a task has not been told: a daemon that hung finds it several times."""
        last = self._told.get(instance)
        if last is None:
            return True
        self._told[instance] = max(last, sequence)
        return sequence > last


def _container(event: AnyValue) -> str:
    """Return the container that a task event names: the first field of all of them."""
    try:
        return events.TaskStart.FromString(event.value).container_id
    except DecodeError:
        return ""


def _is_known_end(task: Task, event: AnyValue) -> bool:
    """Whether an event without a number tells the end of a process that is known, and has been told, to have ended."""
    if event.type_url.rpartition("/")[2] != "containerd.events.TaskExit":
        return False
    told = events.TaskExit.FromString(event.value)
    process = task.ended(told.id, told.pid)
    return process is not None and process.exit is not None and process.pid == told.pid


def _start(task: Task, value: bytes) -> None:
    task.init.started(events.TaskStart.FromString(value).pid)


def _exec_started(task: Task, value: bytes) -> None:
    # An exec is listed by the call that made it, or when somebody asks; an event may come after its deletion.
    event = events.TaskExecStarted.FromString(value)
    process = task.execs.get(event.exec_id)
    if process is not None:
        process.started(event.pid)


def _exit(task: Task, value: bytes) -> None:
    event = events.TaskExit.FromString(value)
    process = task.ended(event.id, event.pid)
    if process is None:
        return
    process.pid = event.pid or process.pid
    # The record, written before the event was sent, tells also why.
    record = task.bundle.exit_of(process.exec_id)
    if record is not None and record.exit.exit_status == event.exit_status:
        process.finish(record.exit)
    else:
        killed = task.oom_killed and process is task.init and event.exit_status == KILLED
        process.finish(Exit(exit_status=event.exit_status, exited_at=time_of(event.exited_at), oom_killed=killed))
        record_exit(task, process)


def record_exit(task: Task, process: Process) -> None:
    """Write down how a process of another make's shim ended, which writes no records; ours do.

    A disk that refuses is no reason not to tell of it: until the next start we know, and the shim may.
    """
    if task.bundle.manifest.shim and process.exit is not None:
        try:
            task.bundle.write_exit(process.exec_id, process.pid, process.exit)
        except OSError as error:
            _log.error("exit.not_recorded", namespace=task.namespace, container=task.id, error=str(error))


def _paused(task: Task, value: bytes) -> None:
    if task.init.status is Status.RUNNING:
        task.init.status = Status.PAUSED


def _resumed(task: Task, value: bytes) -> None:
    if task.init.status is Status.PAUSED:
        task.init.status = Status.RUNNING


def _oom(task: Task, value: bytes) -> None:
    task.oom_killed = True
    ended = task.init.exit
    if task.bundle.manifest.shim and ended is not None and ended.exit_status == KILLED:  # it is told in any order
        task.init.exit = replace(ended, oom_killed=True)


_CHANGES: Final[Mapping[str, Callable[[Task, bytes], None]]] = {
    "containerd.events.TaskStart": _start,
    "containerd.events.TaskExecStarted": _exec_started,
    "containerd.events.TaskExit": _exit,
    "containerd.events.TaskPaused": _paused,
    "containerd.events.TaskResumed": _resumed,
    "containerd.events.TaskOOM": _oom,
}
