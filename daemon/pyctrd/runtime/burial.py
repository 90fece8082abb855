"""What happens when a shim is gone that nobody asked to go: its container is ended and its exits are told.

Nobody watches the processes of a lost shim any more, so nobody will learn how they end: what still ran counts as
ended with status 255, reason "shim lost", at the time that this was noticed. What had ended before is in the records.
"""

import asyncio
import os
from datetime import UTC, datetime
from typing import Final

from google.protobuf.message import DecodeError

from pyctr_wire.containerd.events import task_pb2 as events
from pyctr_wire.containerd.types import event_pb2
from pyctr_wire.errors import ApiError
from pyctrd.core.anys import AnyValue
from pyctrd.core.tasks import LOST_EXIT_STATUS, SHIM_LOST, Exit, Status
from pyctrd.log import Logger
from pyctrd.runtime.bundle import Bundle
from pyctrd.runtime.operations import Operations
from pyctrd.runtime.owner import Job, Joining, Owners
from pyctrd.runtime.shims import Shims, whereabouts
from pyctrd.runtime.table import Task, time_of
from pyctrd.runtime.tasks import Tasks, exit_event

BURY_TIMEOUT: Final = 40.0  # seconds
LAST_WORDS: Final = 2.0  # seconds from the end of a connection to the end of the process

_log = Logger("pyctrd.runtime")


class Undertaker:
    """Buries tasks whose shim is dead."""

    def __init__(
        self, tasks: Tasks, shims: Shims, owners: Owners, operations: Operations, group: asyncio.TaskGroup
    ) -> None:
        """Work that starts by itself runs in `group`."""
        self._tasks = tasks
        self._shims = shims
        self._owners = owners
        self._operations = operations
        self._group = group

    def watch(self, task: Task) -> None:
        """Bury the task when its shim ends, or its connection closes by itself. Without calls that one may rest."""
        assert task.shim is not None
        if task.shim.closed:
            self._noticed(task)
        else:
            task.shim.on_close = lambda: self._noticed(task)
            task.shim.may_rest(lambda: whereabouts(task.bundle))

    def _noticed(self, task: Task) -> None:
        task.shim = None
        self._group.create_task(self._bury_lost(task), name=f"bury {task.id}")

    async def _bury_lost(self, task: Task) -> None:
        async def work(_: Job[None]) -> None:
            if self._tasks.table.find(*task.key) is not task:
                return
            if not await self._shims.ended(task.bundle, LAST_WORDS):
                # It lives: it only closed the connection.
                task.shim = await self._shims.connect(task.bundle)
                self.watch(task)
                return
            await self.bury(task)

        try:
            await self._owners.run(task.key, "bury", work, joining=Joining.SHARED)
        except (ApiError, OSError) as error:
            # The task stays, stopped or not, and its Delete tries again.
            _log.error("task.not_buried", namespace=task.namespace, container=task.id, error=str(error))

    async def bury(self, task: Task) -> None:
        """End what is left of the task's container, then tell and record its exits; for the owner of the container.

        Raises UnknownError if something of it cannot be ended; safe to repeat.
        """
        bundle = task.bundle
        subject = f"container {task.id}"
        with self._operations.begin(task.namespace, subject, "bury", timeout=BURY_TIMEOUT) as operation:
            operation.stage = "make sure that the shim is dead"
            await self._shims.kill(bundle)
            lock_fd = bundle.try_lock()
            try:
                if not bundle.buried:
                    operation.stage = "end what the shim left"
                    await self._shims.clean_up(bundle)
                operation.stage = "tell its exits"
                self._tell(task)
                bundle.mark_buried()
            finally:
                if lock_fd is not None:
                    os.close(lock_fd)
        _log.warning("task.shim_lost", namespace=task.namespace, container=task.id, exit_status=_status(task))

    def _tell(self, task: Task) -> None:
        """Publish what the shim had no time to, then the ends that it did not see."""
        self.publish_spool(task, task.bundle)
        recorded = task.bundle.exits()
        for exec_id in recorded:
            task.process_named(exec_id)
        now = datetime.now(UTC)
        for process in task.processes:
            if process.exit is not None:
                continue
            record = recorded.get(process.exec_id)
            if record is None and process.status is Status.CREATED and process.exec_id:
                continue  # was never started, so it has no end
            if record is not None:
                process.pid, ended = record
            else:
                ended = Exit(LOST_EXIT_STATUS, now, reason=SHIM_LOST)
                task.bundle.write_exit(process.exec_id, process.pid, ended)
            process.finish(ended)
            self._tasks.publish(task.namespace, "/tasks/exit", exit_event(task, process, ended))

    def publish_spool(self, task: Task, bundle: Bundle) -> None:
        """Pass on the events in a dead shim's spool."""
        for sequence, data in bundle.spooled():
            try:
                envelope = event_pb2.Envelope.FromString(data)
                self._tasks.forward(
                    envelope.namespace,
                    envelope.topic,
                    AnyValue(envelope.event.type_url, envelope.event.value),
                    time_of(envelope.timestamp),
                    task.bundle.manifest.instance,
                    sequence,
                )
            except DecodeError as error:  # damaged: the ends are in records, too
                _log.error("event.not_told", namespace=task.namespace, container=task.id, error=str(error))

    def publish_deleted(self, task: Task) -> None:
        """Tell the deletion of a task whose shim cannot."""
        ended = task.init.exit
        event = events.TaskDelete(container_id=task.id, pid=task.init.pid)
        if ended is not None:
            event.exit_status = ended.exit_status
            event.exited_at.FromDatetime(ended.exited_at)
        value = AnyValue(event.DESCRIPTOR.full_name, event.SerializeToString())
        self._tasks.publish(task.namespace, "/tasks/delete", value)


def _status(task: Task) -> int | None:
    return task.init.exit.exit_status if task.init.exit is not None else None
