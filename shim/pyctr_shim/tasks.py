"""Containers and their processes, from Create to Delete.

The order that everything rests on: the runtime makes a process → it is in the table → its start is published →
its end is seen by the loop → its record is written → its end is published. Everything here runs on one thread,
so a process that ends within its own Start is seen only after that Start has been published. The end of a
container's first process is told after the ends of all others, which the kernel or we have killed by then.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from google.protobuf.message import Message

from pyctr_shim import journal
from pyctr_shim.container import Container, Embedded, Program
from pyctr_shim.exit_record import Exit, Usage, forget_record, write_record
from pyctr_shim.external import container as external
from pyctr_shim.identity import Identity
from pyctr_shim.keeper import Notice
from pyctr_shim.loop import Future, Loop
from pyctr_shim.oci import runtime
from pyctr_shim.oci.errors import OciError
from pyctr_shim.oom import OomWatch
from pyctr_shim.process import Process, Status
from pyctr_shim.publisher import Publisher
from pyctr_shim.reaper import Reaper
from pyctr_shim.stdio.streams import DRAIN_LIMIT, Names, Owner, Streams
from pyctr_shim.task import NewTask, Task
from pyctr_wire.containerd.events import task_pb2 as events
from pyctr_wire.errors import (
    AlreadyExists,
    ApiError,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    UnknownError,
)

if TYPE_CHECKING:
    from pyctr_shim.oci.checkpoint.choices import Dump

_KILL_LIMIT: Final = 10.0
_LONGEST_ID: Final = 200
_LOOK_AGAIN: Final = 60.0
_REMOVE_LIMIT: Final = 2.0
_REMOVE_PAUSE: Final = 0.005
_NEWS: Final = ("exit", "oom")  # what no call's answer tells
_UNMOUNT_AFTER: Final = 0.001  # the end is told first
_START_PAUSE: Final = 0.05

T = TypeVar("T")
MakeContainer = Callable[[str, str, runtime.Stdio, runtime.CreateOptions], runtime.Container]
"""The runtime's `create`: id, bundle, stdio (borrowed) and options; raises OciError."""


class Tasks:
    """The containers of one shim: one, or those of a group that share it."""

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        publisher: Publisher,
        identity: Identity,
        boot_id: str,
        keeper_pid: int,
        make: MakeContainer,
    ) -> None:
        """Start without containers."""
        self._loop = loop
        self._reaper = reaper
        self._publisher = publisher
        self._identity = identity
        self._boot_id = boot_id
        self._keeper_pid = keeper_pid
        self._make_container = make
        self._tasks: dict[str, Task] = {}
        self._being_created: set[str] = set()

    @property
    def empty(self) -> bool:
        """Whether the shim has nothing to keep: no container, and none on its way."""
        return not self._tasks and not self._being_created

    @property
    def over(self) -> bool:
        """Whether all processes have ended, and there are containers, but none with a bundle beside this shim's own."""
        tasks = self._tasks.values()
        if not tasks or self._being_created or not all(process.over for task in tasks for process in task.processes()):
            return False
        # Whoever has its bundle is still to ask how one ended that shares the shim with another.
        return not any(task.id != self._identity.id and os.path.isdir(task.bundle) for task in tasks)

    def find(self, task_id: str) -> Task:
        """Return a container; raises NotFound."""
        try:
            return self._tasks[task_id]
        except KeyError:
            raise NotFound("container not created") from None

    def pid(self, task_id: str) -> int:
        """Return the pid of a container's first process, 0 if there is no such container."""
        task = self._tasks.get(task_id)
        return task.init.pid if task is not None else 0

    def statuses(self, task_id: str) -> dict[str, tuple[int, str]]:
        """Return pid and status of each process of a container by exec id, "" for the first one."""
        task = self._tasks.get(task_id)
        return {one.exec_id: (one.pid, one.status.value) for one in task.processes()} if task is not None else {}

    def streams(self, exec_id: str) -> Streams:
        """Return the streams of a process of this shim's own container, for the attach socket; raises NotFound."""
        return self.find(self._identity.id).process(exec_id).streams

    def left(self, exec_id: str, number: int) -> None:
        """The client that an exec is there for has gone before its end: send it a signal, and forget it afterwards."""
        task = self._tasks.get(self._identity.id)
        process = task.execs.get(exec_id) if task is not None else None
        if task is None or process is None:
            return
        if process.starting:  # by a call that is under way still: it can be ended once it is there
            self._loop.call_later(_START_PAUSE, partial(self.left, exec_id, number))
            return
        with contextlib.suppress(ApiError):  # never started, or ended
            process.kill_group(number)
        self._loop.spawn(self._forget(task, process))

    async def _forget(self, task: Task, process: Process) -> None:
        if process.pid:
            await process.exited
        with contextlib.suppress(ApiError):
            await self._delete_exec(task, process)

    def reopen_logs(self) -> None:
        """Open every log file anew: somebody has rotated them."""
        for task in self._tasks.values():
            for process in task.processes():
                process.streams.reopen_log()

    # --- making and starting ---

    async def create(self, new: NewTask) -> int:
        """Make the container up to its program and return its first process's pid.

        A crash after the runtime's success leaves a container that state.json in the bundle names; the `delete`
        command ends it. Raises AlreadyExists, or UnknownError with the runtime's reason.
        """
        if new.id in self._tasks or new.id in self._being_created:
            raise AlreadyExists(f"task {new.id}")
        return await self._settled(self._create(new), at_once=new.program is None)

    async def _create(self, new: NewTask) -> int:
        owner = Owner(self._identity.namespace, new.id, new.io_uid, new.io_gid)
        init = Process("", Streams(self._loop, new.names, owner))
        self._being_created.add(new.id)
        try:
            await init.streams.open()
            container = await self._make(new, init)
        finally:
            self._being_created.discard(new.id)
        task = Task(new, container, init, owner)
        self._tasks[new.id] = task
        self._watch(task, init)
        new.created.pid = init.pid
        self._publish("create", new.created)
        return init.pid

    async def start(self, task_id: str, exec_id: str) -> int:
        """Let a process run its program and return its pid; raises UnknownError with the runtime's reason."""
        task = self.find(task_id)
        process = task.process(exec_id)
        process.require("start", "process", Status.CREATED)
        if process.starting:
            raise FailedPrecondition(f"process {exec_id or task_id} is being started")
        work = self._start_exec(task, process) if exec_id else self._start_init(task)
        await self._settled(work, at_once=task.at_once)
        return process.pid

    def add_exec(self, task_id: str, exec_id: str, names: Names, spec: bytes) -> None:
        """Register a process that will join; raises AlreadyExists, or UnknownError unless the container is up.

        Raises InvalidArgument for an id that cannot be part of a file's name, as that of its exit record.
        """
        task = self.find(task_id)
        if not exec_id or "/" in exec_id or "\0" in exec_id or len(exec_id) > _LONGEST_ID:
            raise InvalidArgument(f"exec id {exec_id[:_LONGEST_ID]!r} is not 1 to {_LONGEST_ID} characters without /")
        if exec_id in task.execs:
            raise AlreadyExists(f"id {exec_id}")
        if task.init.status in (Status.PAUSED, Status.STOPPED):
            raise UnknownError(f"cannot exec in a {task.init.status.value} state")
        task.execs[exec_id] = Process(exec_id, Streams(self._loop, names, task.owner), spec)
        self._publish("exec-added", events.TaskExecAdded(container_id=task.id, exec_id=exec_id))

    async def _make(self, new: NewTask, init: Process) -> Container:
        """Have the runtime make the container; its streams move from then on."""
        stdio = runtime.Stdio(*init.streams.child_fds)
        try:
            if new.program is not None:
                return await self._make_elsewhere(new, new.program, init, stdio)
            made = self._make_container(new.id, new.bundle, stdio, new.options)
        except OciError as error:
            init.streams.close()
            raise UnknownError(f"OCI runtime create failed: {error}") from error
        container = Embedded(made)
        init.made(made.pid, container.pidfd())
        init.streams.start(made.console_fd)
        return container

    async def _make_elsewhere(self, new: NewTask, program: Program, init: Process, stdio: runtime.Stdio) -> Container:
        """Have a runtime that is another program make the container."""
        around = external.Surroundings(self._loop, self._reaper, self._keeper_pid, self._identity.socket)
        terminal = new.names.terminal
        wanted = external.Wanted(self._identity.namespace, new.id, new.bundle, new.options)
        container = external.plan(around, wanted, program)
        # What the runtime itself has to say comes the same way: the pipes are not to fill up.
        moving = partial(init.streams.start, None)
        console_fd = await container.create(stdio, new.options, terminal=terminal, when_forked=moving)
        if terminal:
            init.streams.start(console_fd)
        init.made(container.pid, container.pidfd())
        return container

    async def _start_init(self, task: Task) -> None:
        init = task.init
        init.starting = True
        try:
            await task.container.start()
        except OciError as error:
            # The process that could not execute ends by itself; its end is told like any other.
            raise UnknownError(f"OCI runtime start failed: {error}") from error
        else:
            init.advance(Status.RUNNING)
            init.streams.running()
            self._publish("start", events.TaskStart(container_id=task.id, pid=init.pid))
            self._loop.call_soon(lambda: self._watch_memory(task))
        finally:
            init.starting = False
            if init.early is not None:
                self._ended(task, init, init.early)

    async def _start_exec(self, task: Task, process: Process) -> None:
        if task.init.status is Status.STOPPED:
            raise FailedPrecondition(f"container {task.id} init process is not running")
        process.starting = True
        try:
            await process.streams.open()
            stdio = runtime.Stdio(*process.streams.child_fds)
            joined = await task.container.exec(
                process.exec_id, process.spec, stdio, terminal=process.streams.names.terminal
            )
        except (OciError, ApiError) as error:
            process.streams.close()
            process.streams = Streams(self._loop, process.streams.names, task.owner)  # it may be started once more
            if isinstance(error, ApiError):
                raise
            raise UnknownError(f"OCI runtime exec failed: {error}") from error
        finally:
            process.starting = False
        process.made(joined.pid, joined.pidfd)
        process.advance(Status.RUNNING)
        process.streams.start(joined.console_fd)
        process.streams.running()
        process.oom_kills_before = task.container.cgroup.oom_kills()
        self._watch(task, process)
        started = events.TaskExecStarted(container_id=task.id, exec_id=process.exec_id, pid=process.pid)
        self._publish("exec-started", started)

    async def _settled(self, work: Coroutine[Future[Any], None, T], *, at_once: bool) -> T:
        """Do something with a container; it is gone through with even if the caller goes away meanwhile."""
        return await (work if at_once else self._loop.to_the_end(work))

    # --- while they run ---

    async def kill(self, task_id: str, exec_id: str, number: int) -> None:
        """Send a signal to one process; raises NotFound if it has ended, FailedPrecondition if it was not started."""
        task = self.find(task_id)
        process = task.process(exec_id)
        if process is task.init:
            number = task.in_place_of(number)
        if process is task.init and not task.at_once:
            process.check_alive()
            try:
                await self._change(task, task.container.kill(number))
            except ProcessLookupError:
                raise NotFound("process already finished") from None
        else:
            process.kill(number)
        await self._thaw_for(task, number)

    async def kill_group(self, task_id: str, exec_id: str, number: int) -> None:
        """Send a signal to an exec and those in its process group, which it leads. Raises as `kill`."""
        task = self.find(task_id)
        task.process(exec_id).kill_group(number)
        await self._thaw_for(task, number)

    async def kill_all(self, task_id: str, number: int) -> None:
        """Send a signal to every process of the container; raises NotFound if its first one has ended."""
        task = self.find(task_id)
        if task.init.end is not None:
            raise NotFound("process already finished")
        await self._change(task, task.container.kill_all(task.in_place_of(number)))
        await self._thaw_for(task, number)

    def pids(self, task_id: str) -> list[tuple[int, str]]:
        """Return the host's pids in the container, each with its exec id, empty for those that nobody asked for."""
        task = self.find(task_id)
        exec_ids = {process.pid: process.exec_id for process in task.execs.values() if process.pid}
        return [(pid, exec_ids.get(pid, "")) for pid in _checked(task.container.cgroup.pids)]

    async def pause(self, task_id: str) -> None:
        """Freeze the container; raises UnknownError with containerd's words if it does not run."""
        task = self.find(task_id)
        if task.init.status is Status.CREATED:
            raise UnknownError("cannot pause task in created state")
        task.init.require("pause", "container", Status.RUNNING)
        await self._change(task, task.container.pause())
        task.init.advance(Status.PAUSED)
        self._publish("paused", events.TaskPaused(container_id=task.id))

    async def resume(self, task_id: str) -> None:
        """Let a frozen container go on; raises UnknownError with containerd's words if it is not frozen."""
        task = self.find(task_id)
        if task.init.status is Status.CREATED:
            raise UnknownError("cannot resume task in created state")
        noun = "process" if task.init.status is Status.RUNNING else "container"
        task.init.require("resume", noun, Status.PAUSED)
        await self._change(task, task.container.resume())
        task.init.advance(Status.RUNNING)
        self._publish("resumed", events.TaskResumed(container_id=task.id))

    async def checkpoint(self, task_id: str, choices: "Dump") -> None:
        """Save the container; raises UnknownError with containerd's words if it does not run, or CRIU's reason.

        If the caller goes away meanwhile, the container goes on.
        """
        task = self.find(task_id)
        if task.init.status is Status.CREATED:
            raise UnknownError("cannot checkpoint a task in created state")
        task.init.require("checkpoint", "process", Status.RUNNING, Status.PAUSED)
        child = _checked(lambda: task.container.checkpoint(choices))
        try:
            while not await self._loop.readable(child.channel.fileno(), _LOOK_AGAIN):
                continue
            answer = child.channel.receive()
        finally:
            child.channel.close()
            os.close(child.pidfd)
        if answer is not None:
            raise UnknownError(answer[1]["text"])

    async def update(self, task_id: str, resources: bytes) -> None:
        """Change limits to those of an OCI LinuxResources document (JSON)."""
        task = self.find(task_id)
        if task.init.status is Status.STOPPED:
            raise UnknownError("cannot update a stopped container")
        await self._change(task, task.container.update(resources))

    def stats(self, task_id: str) -> tuple[str, bytes]:
        """Return type URL and bytes of the cgroup's metrics."""
        task = self.find(task_id)
        if task.init.status is Status.STOPPED:
            raise UnknownError("container is stopped: its cgroup has no processes to measure")
        return _checked(task.container.cgroup.metrics)

    def resize(self, task_id: str, exec_id: str, columns: int, rows: int) -> None:
        """Set a terminal's size; nothing happens without a terminal."""
        self.find(task_id).process(exec_id).streams.resize(columns, rows)

    async def _thaw_for(self, task: Task, number: int) -> None:
        """A frozen process of cgroup v1 does not take its SIGKILL."""
        if number == signal.SIGKILL and task.init.status is Status.PAUSED:
            await self.resume(task.id)

    async def _change(self, task: Task, work: Coroutine[Future[Any], None, None]) -> None:
        """Have the runtime change the container; its error becomes the client's."""
        try:
            await self._settled(work, at_once=task.at_once)
        except OciError as error:
            raise UnknownError(str(error)) from error

    # --- the end ---

    async def wait(self, task_id: str, exec_id: str) -> Exit:
        """Return how a process ended, once that has been told; raises NotFound, also if it is deleted unstarted."""
        end = await self.find(task_id).process(exec_id).exited
        if end is None:
            raise NotFound(f"process does not exist {exec_id}")
        return end

    async def delete(self, task_id: str, exec_id: str) -> Exit | None:
        """Remove a process that has ended, or was never started, and return its end; the first one takes all along.

        A call that comes while another one is under way gets the same answer. Raises UnknownError while it runs.
        """
        task = self.find(task_id)
        if exec_id:
            return await self._delete_exec(task, task.process(exec_id))
        task.init.require("delete", "process", Status.STOPPED, Status.CREATED)
        deletion = task.deletion
        if deletion is None:
            # Not the caller's own coroutine: a caller that goes away must not leave half a container.
            deletion = task.deletion = Future()
            self._loop.spawn(self._delete_task(task, deletion))
        outcome = await deletion
        if isinstance(outcome, ApiError):
            raise outcome
        return outcome

    async def delete_all(self) -> None:
        """Delete every container that has ended; what cannot be removed is logged."""
        for task_id in list(self._tasks):
            try:
                await self.delete(task_id, "")
            except ApiError as error:
                journal.log("not deleted", container=task_id, error=str(error))

    async def _delete_task(self, task: Task, told: Future[Exit | ApiError]) -> None:
        try:
            end = await self._end_and_remove(task)
        except Exception as error:
            task.deletion = None
            if not isinstance(error, ApiError):
                journal.log_exception("deletion failed")
                error = Internal(f"delete of task {task.id}: {error!r}")
            told.set(error)
            return
        task.let_root_go()
        del self._tasks[task.id]
        deleted = events.TaskDelete(container_id=task.id, id=task.id, pid=end.pid, exit_status=end.status)
        deleted.exited_at.FromNanoseconds(end.exited_at_ns)
        self._publish("delete", deleted)
        told.set(end)

    async def _end_and_remove(self, task: Task) -> Exit:
        if task.init.end is None:
            with contextlib.suppress(NotFound):  # reaped already, and not yet told of
                task.init.kill(signal.SIGKILL)
        if not await self._loop.wait(task.init.exited, _KILL_LIMIT) or task.init.end is None:
            raise UnknownError(f"process {task.init.pid} outlives SIGKILL by {_KILL_LIMIT:.0f} s")
        for process in task.processes():
            await self._drain(process)
        if task.oom is not None:
            task.oom.close()
        await self._remove(task)
        return task.init.end

    async def _remove(self, task: Task) -> None:
        """Remove cgroup and state. A process that has been killed may be in its cgroup for a moment after its end."""
        deadline = time.monotonic() + _REMOVE_LIMIT
        while True:
            try:
                await task.container.delete()
            except OciError as error:
                if time.monotonic() > deadline:
                    raise UnknownError(str(error)) from error
            else:
                return
            await self._loop.wait(Future(), _REMOVE_PAUSE)

    async def _delete_exec(self, task: Task, process: Process) -> Exit | None:
        process.require("delete", "process", Status.STOPPED, Status.CREATED)
        if process.starting:
            raise FailedPrecondition(f"process {process.exec_id} is being started")
        if process.end is not None:
            await process.exited
        await self._drain(process)
        process.exited.set(process.end)
        task.execs.pop(process.exec_id, None)
        forget_record(task.bundle, process.exec_id)
        return process.end

    async def _drain(self, process: Process) -> None:
        """Wait until the last output has been moved, for a limited time, and close the streams."""
        process.streams.hurry()
        if process.pid and not await self._loop.wait(process.streams.drained, DRAIN_LIMIT):
            journal.log("output not drained", exec_id=process.exec_id)
        process.streams.close()

    def _watch(self, task: Task, process: Process) -> None:
        self._reaper.watch(process.pid, partial(self._ended, task, process))

    def _ended(self, task: Task, process: Process, notice: Notice) -> None:
        """A process has been reaped: record, then tell. A crash in between leaves the record to be read."""
        if process.starting:
            process.early = notice
            return
        end = self._judge(task, process, os.waitstatus_to_exitcode(notice.status))
        usage = Usage(notice.user_seconds, notice.system_seconds, notice.max_rss_kib)
        process.ended(end)
        process.streams.catch_up()
        try:
            write_record(task.bundle, end, usage, self._boot_id)
        except OSError as error:
            journal.log("exit not recorded", exec_id=process.exec_id, status=end.status, error=str(error))
        if process is task.init and not task.container.own_pid_namespace:
            self._loop.spawn(self._kill_the_rest(task))
        if process is not task.init:
            self._tell(task, process)
        others_ended = all(other.end is not None or not other.pid for other in task.execs.values())
        if task.init.end is not None and not task.init.exited.done and others_ended:
            self._tell(task, task.init)

    def _judge(self, task: Task, process: Process, code: int) -> Exit:
        """Say how a process ended. The cgroup's count of kills is part of that: only systemd removes it before."""
        number = -code if code < 0 else 0
        kills = task.oom.check() if task.oom is not None else task.container.cgroup.oom_kills()
        oom_killed = kills > process.oom_kills_before
        if number == signal.SIGKILL and not oom_killed and task.oom is not None:
            oom_killed = task.oom.has_missed(process.pid)
        reason = "exited" if not number else "oom" if oom_killed and number == signal.SIGKILL else "signalled"
        return Exit(
            container=task.id,
            exec_id=process.exec_id,
            pid=process.pid,
            status=128 + number if number else code,
            signal=number,
            exited_at_ns=time.time_ns(),
            monotonic_ns=time.monotonic_ns(),
            oom_killed=oom_killed,
            reason=reason,
        )

    async def _kill_the_rest(self, task: Task) -> None:
        """Without a pid namespace of its own, a container's other processes do not end with its first one."""
        try:
            await task.container.kill_all(signal.SIGKILL)
        except (OciError, OSError) as error:
            journal.log("processes left after the first one's end", error=str(error))

    def _tell(self, task: Task, process: Process) -> None:
        end = process.end
        assert end is not None
        event = events.TaskExit(
            container_id=task.id, id=process.exec_id or task.id, pid=end.pid, exit_status=end.status
        )
        event.exited_at.FromNanoseconds(end.exited_at_ns)
        self._publish("exit", event)
        process.tell()
        if process is task.init:
            self._loop.call_later(_UNMOUNT_AFTER, task.let_root_go)

    def _watch_memory(self, task: Task) -> None:
        if task.init.end is None:
            task.oom = OomWatch(self._loop, task.container.cgroup, partial(self._oom_killed, task))

    def _oom_killed(self, task: Task) -> None:
        self._publish("oom", events.TaskOOM(container_id=task.id))

    def _publish(self, verb: str, event: Message) -> None:
        self._publisher.publish(f"/tasks/{verb}", event, answered=verb not in _NEWS)


def _checked(call: Callable[[], T]) -> T:
    """Call the runtime; its error becomes the client's."""
    try:
        return call()
    except OciError as error:
        raise UnknownError(str(error)) from error
