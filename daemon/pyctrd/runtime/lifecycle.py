"""Create, start and delete tasks: the calls that change what exists, one at a time per container."""

import asyncio
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Final, Protocol

from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as shim
from pyctr_wire.errors import (
    AlreadyExists,
    ApiError,
    Cancelled,
    DeadlineExceeded,
    NotFound,
    UnknownError,
    error_for,
)
from pyctrd.core.identifiers import validate_identifier
from pyctrd.core.tasks import LOST_EXIT_STATUS, Exit, Status
from pyctrd.log import Logger
from pyctrd.runtime import other_streams
from pyctrd.runtime.bundle import Bundle, Bundles, Manifest
from pyctrd.runtime.burial import Undertaker
from pyctrd.runtime.operations import Operation, Operations
from pyctrd.runtime.owner import Job, Joining, Owners
from pyctrd.runtime.shim_client import ShimClient, ShimGone
from pyctrd.runtime.shims import Shims
from pyctrd.runtime.table import Deleted, Process, Task, task_not_found
from pyctrd.runtime.tasks import Tasks

# Seconds. They cover hooks, slow mounts and the draining of output.
CREATE_TIMEOUT: Final = 120.0
START_TIMEOUT: Final = 60.0
DELETE_TIMEOUT: Final = 60.0

RESULTS_KEPT: Final = 1024
_NOT_AT_ONCE: Final = 0.05  # seconds: who deletes a task has more to delete, and is not to wait for us meanwhile

_log = Logger("pyctrd.runtime")


class Checkpoint(Protocol):
    """A container's processes, saved."""

    @property
    def digest(self) -> str:
        """What tells it from others."""

    def unpacked(self) -> AbstractAsyncContextManager[str]:
        """Return what makes a directory of it and removes that; raises NotFound, InvalidArgument."""


class Lifecycle:
    """The owner's side of every task."""

    def __init__(
        self,
        tasks: Tasks,
        bundles: Bundles,
        shims: Shims,
        owners: Owners,
        undertaker: Undertaker,
        operations: Operations,
        prepare: Callable[[bytes], Awaitable[None]],
        group: asyncio.TaskGroup,
    ) -> None:
        """What nobody waits for, such as the end of a shim after a Delete, runs in `group`.

        `prepare` is called with each spec before its container is made, for what the kernel needs to know by then;
        raises ApiError.
        """
        self._tasks = tasks
        self._bundles = bundles
        self._shims = shims
        self._owners = owners
        self._undertaker = undertaker
        self._operations = operations
        self._prepare = prepare
        self._group = group
        self._deleted: OrderedDict[tuple[str, str], Deleted] = OrderedDict()

    async def create(
        self,
        namespace: str,
        runtime: str,
        spec: bytes,
        request: shim.CreateTaskRequest,
        checkpoint: Checkpoint | None = None,
        *,
        other_shim: str = "",
    ) -> int:
        """Make the container's first process, up to its exec or as `checkpoint` has saved it, and return its pid.

        `spec` is the OCI specification's JSON; `request.bundle` is filled in here; `other_shim` is the program of a
        shim of another make. A retry of a call whose client
        went away joins it; if every caller is gone when it ends, it is undone. Raises AlreadyExists if there is a
        task, and with a prefix whatever the runtime refuses.
        """
        validate_identifier("task.ID", request.id)
        saved = checkpoint.digest.encode() if checkpoint is not None else b""
        token = hashlib.sha256(request.SerializeToString(deterministic=True) + spec + saved).hexdigest()
        key = (namespace, request.id)

        async def work(job: Job[Task]) -> Task:
            existing = self._tasks.table.find(*key)
            if existing is not None:
                return _unclaimed(existing, token)
            manifest = Manifest(
                namespace=namespace,
                id=request.id,
                runtime=runtime,
                instance=os.urandom(16).hex(),
                created_at_ns=time.time_ns(),
                stdin=request.stdin,
                stdout=request.stdout,
                stderr=request.stderr,
                terminal=request.terminal,
                request=token,
                shim=other_shim,
            )
            subject = f"container {request.id}"
            with self._operations.begin(namespace, subject, "create", timeout=CREATE_TIMEOUT) as operation:
                if checkpoint is None:
                    return await self._create(operation, job, manifest, spec, request)
                operation.stage = "unpack the checkpoint"
                async with checkpoint.unpacked() as directory:
                    request.checkpoint = directory
                    return await self._create(operation, job, manifest, spec, request)

        task = await self._owners.run(key, "create", work, token=token)
        task.claimed = True
        return task.init.pid

    async def _create(
        self, operation: Operation, job: Job[Task], manifest: Manifest, spec: bytes, request: shim.CreateTaskRequest
    ) -> Task:
        operation.stage = "prepare the machine"
        await self._prepare(spec)
        operation.stage = "write the bundle"
        bundle = self._bundles.create(manifest, spec)
        self._deleted.pop((manifest.namespace, manifest.id), None)
        init = Process("", manifest.names)
        task = Task(bundle, init)
        self._tasks.table.introduce(task)
        request.bundle = str(bundle.path)
        try:
            # A crash of ours from here on leaves a shim with a container, which recovery adopts, or a shim that has
            # none yet, which recovery ends.
            if manifest.shim and other_streams.are_ours(manifest.names):
                operation.stage = "open the streams"
                told = other_streams.make_fifos(bundle, "", manifest.names)
                request.stdin, request.stdout, request.stderr = told.stdin, told.stdout, told.stderr
                await self._shims.streams.keep(bundle)
            operation.stage = "start the shim"
            task.shim = await self._shims.launch(bundle, request.options if request.HasField("options") else None)
            operation.stage = "create the container"
            reply = await self._create_in_shim(task, request)
            if job.give_up_if_abandoned():
                raise Cancelled(f"create of task {task.id}")
            init.pid = reply.pid
            if manifest.shim:
                bundle.note_init(reply.pid)
        except (ApiError, OSError) as error:
            # What a full disk or table of files refuses is no reason to leave half a task.
            reason = (
                error if isinstance(error, ApiError) else UnknownError(f"{operation.stage}: {error.strerror or error}")
            )
            operation.stage = f"undo, because of: {reason}"
            await self._undo(task, reason)
            raise error_for(reason.code, f"failed to create shim task: {reason}") from error
        self._tasks.table.publish(task)
        self._undertaker.watch(task)
        return task

    async def _create_in_shim(self, task: Task, request: shim.CreateTaskRequest) -> shim.CreateTaskResponse:
        assert task.shim is not None
        try:
            return await task.shim.call("Create", request, shim.CreateTaskResponse, CREATE_TIMEOUT)
        except ShimGone:
            if self._shims.ever_lived(task.bundle):
                raise
        # The zygote ended, or could not fork, before there was a shim.
        task.shim = await self._shims.launch_cold(task.bundle)
        return await task.shim.call("Create", request, shim.CreateTaskResponse, CREATE_TIMEOUT)

    async def _undo(self, task: Task, error: ApiError) -> None:
        """Leave nothing of a task whose creation failed with `error`."""
        self._tasks.table.remove(task)
        try:
            if task.shim is None or not await self._undone_by_shim(task, task.shim, error):
                await self._shims.kill(task.bundle)
                await self._shims.clean_up(task.bundle)
        except ApiError as failure:
            # What is left needs a bundle to be found by: keep it as a stopped task, whose Delete tries again.
            _log.error("task.not_undone", namespace=task.namespace, container=task.id, error=str(failure))
            task.init.finish(Exit(LOST_EXIT_STATUS, datetime.now(UTC), reason=str(error)))
            task.shim = None
            self._tasks.table.publish(task)
            return
        await self._shims.streams.end(task.bundle)
        self._remove(task, self._bundles.retire(task.bundle))

    async def _undone_by_shim(self, task: Task, client: ShimClient, error: ApiError) -> bool:
        """Let the shim undo its part; False if it cannot be expected to, or did not."""
        if isinstance(error, ShimGone | DeadlineExceeded):
            return False
        try:
            if isinstance(error, Cancelled):
                await client.call("Delete", shim.DeleteRequest(id=task.id), shim.DeleteResponse, DELETE_TIMEOUT)
            await self._shims.shut_down(task.bundle, client)
        except ApiError:
            return False
        return True

    async def start(self, namespace: str, id: str, exec_id: str) -> int:
        """Run a created process and return its pid; a retry of a call whose client went away joins it.

        Raises what the shim says (a program that is not there, a process that runs), NotFound without the process.
        """
        task = self._tasks.find(namespace, id)
        await self._tasks.process(task, exec_id)
        # An exec waits for no other exec, and its Start for no slow call about init.
        key = (namespace, id, exec_id) if exec_id else (namespace, id)

        async def work(_: Job[int]) -> int:
            process = await self._tasks.process(task, exec_id)
            subject = f"exec {id}/{exec_id}" if exec_id else f"container {id}"
            with self._operations.begin(namespace, subject, "start", timeout=START_TIMEOUT) as operation:
                operation.stage = "start the process"
                request = shim.StartRequest(id=id, exec_id=exec_id)
                reply = await self._tasks.call(task, "Start", request, shim.StartResponse, START_TIMEOUT)
            if not exec_id:
                task.bundle.mark_started()
            process.started(reply.pid)
            return reply.pid

        return await self._owners.run(key, "start", work)

    async def delete(self, namespace: str, id: str) -> Deleted:
        """Remove a task that has ended or was never started, and say how its init ended.

        Calls made while it is under way share the result; one repeated because the answer was lost with its client
        or with a daemon gets it too. Raises NotFound without a task, UnknownError while it runs.
        """
        key = (namespace, id)

        async def work(job: Job[Deleted]) -> Deleted:
            task = self._tasks.table.find(*key)
            if task is None:
                if key in self._deleted:
                    return self._deleted.pop(key)
                raise task_not_found(id)
            subject = f"container {id}"
            with self._operations.begin(namespace, subject, "delete", timeout=DELETE_TIMEOUT) as operation:
                deleted = await self._delete(operation, task)
            if job.abandoned:
                self.remember_deleted(key, deleted)
            return deleted

        return await self._owners.run(key, "delete", work, joining=Joining.SHARED)

    def remember_deleted(self, key: tuple[str, str], deleted: Deleted) -> None:
        """Keep the result of a Delete that its client may not have got, until a retry or a new task of that id."""
        self._deleted[key] = deleted
        if len(self._deleted) > RESULTS_KEPT:
            self._deleted.popitem(last=False)

    async def _delete(self, operation: Operation, task: Task) -> Deleted:
        operation.stage = "delete the container"
        try:
            request = shim.DeleteRequest(id=task.id)
            reply = await self._tasks.call(task, "Delete", request, shim.DeleteResponse, DELETE_TIMEOUT)
            deleted = Deleted.of(reply, task.init.exit)
        except NotFound:
            # A daemon that crashed had got this far: the shim has nothing left but the exit record.
            deleted = _known(task)
        except ShimGone:
            if task.init.status is not Status.STOPPED or not task.bundle.buried:
                operation.stage = "bury the task of a lost shim"
                await self._undertaker.bury(task)
            deleted = _known(task)
            self._undertaker.publish_deleted(task)
        if task.bundle.manifest.shim and task.shim is not None:
            # At once: the next shim of this id has the same address.
            operation.stage = "end the shim"
            client, task.shim = task.shim, None
            await self._shims.shut_down(task.bundle, client)
        if task.bundle.manifest.shim:
            operation.stage = "move the last output"
            await self._shims.streams.end(task.bundle)
        operation.stage = "remove the bundle"
        # A crash before this line leaves a task to delete again; after it, a dot name with the exit record, from
        # which recovery answers a retry and then removes it.
        retired = self._bundles.retire(task.bundle)
        self._tasks.table.remove(task)
        self._group.create_task(self._dispose(task, retired), name=f"dispose {task.id}")
        return deleted

    async def _dispose(self, task: Task, retired: Bundle) -> None:
        """End the shim of a deleted task and remove its bundle; the id may be in use again by now.

        If cancelled, the shim is left to the next daemon, with what it has told acknowledged.
        """
        client = task.shim
        if client is not None:
            client.on_close = None
        try:
            await asyncio.sleep(_NOT_AT_ONCE)
            if client is not None:
                await self._shims.shut_down(retired, client)
                self._undertaker.publish_spool(task, retired)
        except (UnknownError, OSError) as error:
            _log.error("shim.not_ended", namespace=task.namespace, container=task.id, error=str(error))
            return
        finally:
            if client is not None:
                client.close()
        self._remove(task, retired)

    def _remove(self, task: Task, retired: Bundle) -> None:
        try:
            self._bundles.remove(retired.path)
        except OSError as error:
            # The next start tries again.
            _log.error("bundle.not_removed", namespace=task.namespace, container=task.id, error=str(error))


def _unclaimed(task: Task, token: str) -> Task:
    """Return a task whose creator never had its answer if this is the same call again, else raise AlreadyExists."""
    if task.claimed or task.init.status is not Status.CREATED or task.bundle.manifest.request != token:
        raise AlreadyExists(f"task {task.id}")
    return task


def _known(task: Task) -> Deleted:
    """Return what the table knows of the task's end, or else its record: that is there before the event is told."""
    ended = task.init.exit
    if ended is None:
        record = task.bundle.exit_of("")
        if record is None:
            raise UnknownError(f"task {task.id}: its shim does not know it and has recorded no exit")
        return Deleted(record.pid, record.exit)
    return Deleted(task.init.pid, ended)
