"""A new task for a container whose last one has ended, made from its record alone: no client is there.

The order, and what a crash leaves behind:

    count, mark        the old task, ended: the next daemon finds it and starts it again
    old task deleted   no task, and a mark that says that there was to be one
    new task created   a task that nobody has started, and the mark
    new task started   the mark, which says nothing any more
    mark removed
"""

import asyncio
import json
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Protocol

from google.protobuf.any_pb2 import Any as AnyMessage

from pyctr_wire import labels as names
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as shim
from pyctr_wire.containerd.types import mount_pb2
from pyctr_wire.errors import ApiError, DeadlineExceeded, NotFound
from pyctrd.core.containers import Container
from pyctrd.core.restarts import count_of
from pyctrd.core.tasks import Status
from pyctrd.offload import Offload
from pyctrd.runtime.creation import Snapshotters
from pyctrd.runtime.lifecycle import Lifecycle
from pyctrd.runtime.runtimes import Runtimes
from pyctrd.runtime.tasks import Tasks

ATTACHED: Final = "attach:"  # a stream that is only there for whoever attaches
_KILL_TIMEOUT: Final = 30.0  # seconds that a process may take to go after SIGKILL


class ContainerRows(Protocol):
    """The containers of a namespace."""

    def get(self, ns: str, container_id: str, /) -> Container: ...
    def update(self, ns: str, container: Container, mask: Sequence[str], /) -> Container: ...


class Revival:
    """Makes, starts and ends tasks on nobody's behalf."""

    def __init__(
        self,
        containers: ContainerRows,
        snapshots: Snapshotters,
        lifecycle: Lifecycle,
        tasks: Tasks,
        runtimes: Runtimes,
        rows: Offload,
    ) -> None:
        """Work on these; calls of stores run in `rows`."""
        self._containers = containers
        self._snapshots = snapshots
        self._lifecycle = lifecycle
        self._tasks = tasks
        self._runtimes = runtimes
        self._rows = rows

    async def start_again(self, namespace: str, container: Container) -> None:
        """Replace the container's task, if any, by a new one that runs. Raises ApiError; no task is left then."""
        key = (namespace, container.id)
        count = str(count_of(container.labels) + 1)
        await self.label(*key, {names.RESTART_COUNT: count, names.RESTARTING: "true"})
        await self.end(*key)
        try:
            await self._lifecycle.create(namespace, container.runtime_name, _spec(container), await self._call(*key))
            # Whoever has removed the container meanwhile found no task.
            await self._rows.run(self._containers.get, *key)
            await self._lifecycle.start(*key, "")
        except ApiError:
            with suppress(NotFound):
                await self.end(*key)
            raise
        await self.label(*key, {names.RESTARTING: ""})

    async def end(self, namespace: str, id: str) -> None:
        """Remove the container's task, if any, killing what runs. Raises ApiError."""
        task = self._tasks.table.find(namespace, id)
        if task is None:
            return
        if task.init.status is not Status.STOPPED:
            with suppress(NotFound):
                await self._tasks.kill(namespace, shim.KillRequest(id=id, signal=signal.SIGKILL, all=True))
            if task.init.status is Status.PAUSED:
                with suppress(ApiError):  # version 1 keeps SIGKILL waiting until it goes on
                    await self._tasks.resume(namespace, id)
            try:
                async with asyncio.timeout(_KILL_TIMEOUT):
                    await task.init.wait()
            except TimeoutError:
                raise DeadlineExceeded(f"container {id} does not end even after SIGKILL") from None
        with suppress(NotFound):
            await self._lifecycle.delete(namespace, id)

    async def label(self, namespace: str, id: str, labels: dict[str, str]) -> None:
        """Change some labels of a container. Raises NotFound."""
        changed = Container(id=id, labels=labels)
        await self._rows.run(self._containers.update, namespace, changed, tuple(f"labels.{name}" for name in labels))

    async def _call(self, namespace: str, id: str) -> shim.CreateTaskRequest:
        """Return what a client would have said to make the container's task. Raises NotFound, FailedPrecondition."""
        container = await self._rows.run(self._containers.get, namespace, id)
        labels, packed = container.labels, container.runtime_options
        options = AnyMessage(type_url=packed.type_url, value=packed.value) if packed is not None else None
        terminal = _has_terminal(_spec(container))
        output = labels.get(names.RESTART_LOG_URI, "") or labels.get(names.LOG_URI, "")
        rootfs = []
        if container.snapshot_key:
            snapshotter = self._snapshots.named(container.snapshotter)
            mounts = await self._rows.run(snapshotter.mounts, namespace, container.snapshot_key)
            rootfs = [mount_pb2.Mount(type=one.type, source=one.source, options=one.options) for one in mounts]
        return shim.CreateTaskRequest(
            id=id,
            rootfs=rootfs,
            terminal=terminal,
            stdin=ATTACHED if labels.get(names.INTERACTIVE) == "true" else "",
            stdout=output,
            stderr="" if terminal else output,
            options=self._runtimes.resolve(container.runtime_name, options).options,
        )


def _has_terminal(spec: bytes) -> bool:
    """Return whether a spec asks for a terminal. What is wrong with it otherwise is the runtime's to say."""
    try:
        return bool(json.loads(spec)["process"]["terminal"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _spec(container: Container) -> bytes:
    return container.spec.value if container.spec is not None else b"{}"
