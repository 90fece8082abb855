"""Sandboxes of containerd's Sandbox API, as the controller "shim" runs them for our own shim.

    <state>/sandboxes/<namespace>/<id>.json    what is known of one; gone with the machine, as its containers are

A sandbox needs no process: its containers have shims of their own, and share what their specs say that they share.
What it has is a life: while it is ready, tasks may be made in it, and when it stops, whatever runs in it ends.
Source: containerd.services.sandbox.v1.Controller; containerd docs on sandboxes.
"""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from pyctr_wire.containerd.events import sandbox_pb2
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as shim
from pyctr_wire.errors import AlreadyExists, DeadlineExceeded, FailedPrecondition, NotFound
from pyctrd.core.anys import AnyValue
from pyctrd.core.identifiers import validate_identifier
from pyctrd.core.tasks import Exit, Status
from pyctrd.core.times import from_microseconds, to_microseconds
from pyctrd.core.values import dataclass
from pyctrd.metadata.durable import replacing
from pyctrd.runtime.table import Task
from pyctrd.runtime.tasks import Tasks

READY: Final = "SANDBOX_READY"
NOT_READY: Final = "SANDBOX_NOTREADY"
_KILL_TIMEOUT: Final = 30.0  # seconds that a process may take to go after SIGKILL


class Publisher(Protocol):
    """Where events go."""

    def publish(self, namespace: str, topic: str, event: AnyValue) -> None: ...


@dataclass(frozen=True, slots=True)
class State:
    """Where a sandbox is in its life: made, started, stopped."""

    id: str
    created_at: datetime
    netns: str = ""
    started: bool = False
    stopped_at: datetime | None = None

    @property
    def name(self) -> str:
        """What clients call it."""
        return READY if self.started and self.stopped_at is None else NOT_READY


class SandboxController:
    """Makes, starts and stops sandboxes. Lives on the event loop; its files are small and on tmpfs."""

    def __init__(
        self,
        folder: Path,
        tasks: Tasks,
        members: Callable[[str, str], Awaitable[Sequence[str]]],
        publisher: Publisher,
    ) -> None:
        """Own `folder`, and know again what a daemon before us has left there.

        `members` returns the ids of the containers of a namespace that are in a sandbox.
        """
        self._folder = folder
        self._tasks = tasks
        self._members = members
        self._publisher = publisher
        self._waiters: dict[tuple[str, str], asyncio.Event] = {}
        self._states: dict[tuple[str, str], State] = {}
        for path in folder.glob("*/*.json"):
            with suppress(OSError, ValueError, KeyError):
                self._states[path.parent.name, path.stem] = _read(path)

    def create(self, ns: str, sandbox_id: str, netns: str) -> State:
        """Make a sandbox. Raises AlreadyExists, InvalidArgument."""
        validate_identifier("sandbox ID", sandbox_id)
        if (ns, sandbox_id) in self._states:
            raise AlreadyExists(f"sandbox {sandbox_id} already running")
        state = State(sandbox_id, datetime.now(UTC), netns)
        self._note(ns, state)
        self._tell(ns, "create", sandbox_pb2.SandboxCreate(sandbox_id=sandbox_id))
        return state

    def start(self, ns: str, sandbox_id: str) -> State:
        """Let containers be run in it. Raises NotFound, FailedPrecondition if it has been started before."""
        state = self.get(ns, sandbox_id)
        if state.started:
            raise FailedPrecondition(f"sandbox {sandbox_id} has been started before")
        state = replace(state, started=True)
        self._note(ns, state)
        self._tell(ns, "start", sandbox_pb2.SandboxStart(sandbox_id=sandbox_id))
        return state

    async def stop(self, ns: str, sandbox_id: str, grace: float) -> None:
        """End all that runs in it: SIGTERM, and SIGKILL after `grace` seconds. Raises NotFound, DeadlineExceeded.

        No task can be made in it from the beginning of this on; a call that is cut short can be repeated.
        """
        state = self.get(ns, sandbox_id)
        if state.stopped_at is None:
            state = replace(state, stopped_at=datetime.now(UTC))
            self._note(ns, state)
        running = await self.running(ns, sandbox_id)
        if grace > 0:
            await self._signal(running, signal.SIGTERM)
            await self._ended(running, grace)
        running = [task for task in running if task.init.exit is None]
        await self._signal(running, signal.SIGKILL)
        if not await self._ended(running, _KILL_TIMEOUT):
            raise DeadlineExceeded(f"sandbox {sandbox_id}: a container does not end even after SIGKILL")
        if self.get(ns, sandbox_id).created_at != state.created_at:  # shut down meanwhile, and made anew
            raise NotFound(f"sandbox {sandbox_id}")
        waiter = self._waiters.setdefault((ns, sandbox_id), asyncio.Event())
        if not waiter.is_set():
            waiter.set()
            exit = sandbox_pb2.SandboxExit(sandbox_id=sandbox_id)
            exit.exited_at.FromDatetime(state.stopped_at or state.created_at)
            self._tell(ns, "exit", exit)

    async def shut_down(self, ns: str, sandbox_id: str) -> None:
        """Stop it if that has not been done, and forget it. Raises NotFound, DeadlineExceeded."""
        await self.stop(ns, sandbox_id, 0)
        path = self._path(ns, sandbox_id)
        path.unlink(missing_ok=True)
        with suppress(OSError):  # others are in there
            path.parent.rmdir()
            self._folder.rmdir()
        del self._states[ns, sandbox_id]
        self._waiters.pop((ns, sandbox_id), None)

    async def wait(self, ns: str, sandbox_id: str) -> Exit:
        """Return when it has stopped. Raises NotFound."""
        state = self.get(ns, sandbox_id)
        if state.stopped_at is None:
            await self._waiters.setdefault((ns, sandbox_id), asyncio.Event()).wait()
            state = self._states.get((ns, sandbox_id), state)
        return Exit(0, state.stopped_at or datetime.now(UTC))

    async def running(self, ns: str, sandbox_id: str) -> list[Task]:
        """Return the tasks in it that have not ended."""
        tasks = [self._tasks.table.find(ns, one) for one in await self._members(ns, sandbox_id)]
        return [task for task in tasks if task is not None and task.init.status is not Status.STOPPED]

    def get(self, ns: str, sandbox_id: str) -> State:
        """Return what is known of a sandbox. Raises NotFound."""
        try:
            return self._states[ns, sandbox_id]
        except KeyError:
            raise NotFound(f"sandbox {sandbox_id}") from None

    def check_member(self, ns: str, sandbox_id: str) -> None:
        """Raise FailedPrecondition if no task may be made in a sandbox; one that nobody runs has no say."""
        state = self._states.get((ns, sandbox_id))
        if state is not None and state.name != READY:
            doing = "has been stopped" if state.started else "has not been started"
            raise FailedPrecondition(f"sandbox {sandbox_id} {doing}")

    async def _signal(self, tasks: Sequence[Task], number: int) -> None:
        for task in tasks:
            with suppress(NotFound):
                await self._tasks.kill(task.namespace, shim.KillRequest(id=task.id, signal=number, all=number == 9))
            if task.init.status is Status.PAUSED:
                with suppress(NotFound):  # it ended meanwhile
                    await self._tasks.resume(task.namespace, task.id)

    async def _ended(self, tasks: Sequence[Task], seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                for task in tasks:
                    with suppress(NotFound):  # deleted by now
                        await task.init.wait()
        except TimeoutError:
            return False
        return True

    def _note(self, ns: str, state: State) -> None:
        path = self._path(ns, state.id)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(_to_json(state))
        self._states[ns, state.id] = state

    def _path(self, ns: str, sandbox_id: str) -> Path:
        return self._folder / ns / f"{sandbox_id}.json"

    def _tell(
        self, ns: str, what: str, event: sandbox_pb2.SandboxCreate | sandbox_pb2.SandboxStart | sandbox_pb2.SandboxExit
    ) -> None:
        packed = AnyValue(event.DESCRIPTOR.full_name, event.SerializeToString())
        self._publisher.publish(ns, f"/sandboxes/{what}", packed)


def _to_json(state: State) -> str:
    return json.dumps(
        {
            "id": state.id,
            "created_at": to_microseconds(state.created_at),
            "netns": state.netns,
            "started": state.started,
            "stopped_at": to_microseconds(state.stopped_at) if state.stopped_at is not None else None,
        }
    )


def _read(path: Path) -> State:
    found = json.loads(path.read_text())
    stopped_at = found["stopped_at"]
    return State(
        id=found["id"],
        created_at=from_microseconds(found["created_at"]),
        netns=found["netns"],
        started=found["started"],
        stopped_at=from_microseconds(stopped_at) if stopped_at is not None else None,
    )
