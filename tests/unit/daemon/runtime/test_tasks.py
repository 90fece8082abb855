"""What a daemon learns of tasks by asking."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from pyctr_wire.containerd.events import task_pb2 as events
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as shim
from pyctr_wire.containerd.types.task import task_pb2
from pyctrd.core.anys import AnyValue
from pyctrd.offload import Offload
from pyctrd.runtime.bundle import Bundles, Manifest
from pyctrd.runtime.table import Process, Task
from pyctrd.runtime.tasks import Tasks
from support.runtime_engine import NS, Recorder


class _Shim:
    """One of another make, whose event of an end comes, late, while it is asked for the state."""

    closed = False

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    async def call(self, method: str, _request: Message, reply: type[Any], _seconds: float) -> Any:
        if method != "State":
            return reply()
        event = events.TaskExit(container_id="web", id="web", pid=7, exit_status=3)
        value = AnyValue(event.DESCRIPTOR.full_name, event.SerializeToString())
        self._tasks.forward(NS, "/tasks/exit", value, datetime.now(UTC), "", 0)
        return shim.StateResponse(id="web", pid=7, status=task_pb2.STOPPED, exit_status=3)


async def test_an_end_that_is_told_while_it_is_asked_for_is_told_once(tmp_path: Path) -> None:
    published, threads = Recorder(), Offload(1)
    async with asyncio.TaskGroup() as group:
        tasks = Tasks(published, group, threads)
        manifest = Manifest(NS, "web", "io.example.other.v1", "instance", 1, shim="/bin/other")
        task = Task(Bundles(tmp_path).create(manifest, b"{}"), Process("", pid=7), adopted=True)
        task.init.started(7)
        task.shim = _Shim(tasks)  # type: ignore[assignment]
        tasks.table.publish(task)
        await tasks.refresh(task)
    threads.close()
    assert published.topics == ["/tasks/exit"]
