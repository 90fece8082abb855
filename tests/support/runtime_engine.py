"""The runtime's parts on scripted shims."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as shim
from pyctrd.core.anys import AnyValue
from pyctrd.offload import Offload
from pyctrd.runtime.apparmor import AppArmor
from pyctrd.runtime.bundle import Bundles
from pyctrd.runtime.burial import Undertaker
from pyctrd.runtime.lifecycle import Lifecycle
from pyctrd.runtime.operations import Operations
from pyctrd.runtime.owner import Owners
from pyctrd.runtime.programs import Endpoints
from pyctrd.runtime.recovery import Recovery
from pyctrd.runtime.shims import Shims
from pyctrd.runtime.tasks import Tasks
from support.scripted_shim import ScriptedShim, ScriptedZygote

NS = "default"


@dataclass
class ScriptedPrograms:
    """Stands for threads that run the shim's program: notes the commands, answers from `returncodes`, then 0."""

    commands: list[str] = field(default_factory=list)
    returncodes: list[int] = field(default_factory=list)

    async def run(self, function: Callable[..., Any], /, command: list[str], **options: Any) -> Any:
        self.commands.append(command[-1])
        code = self.returncodes.pop(0) if self.returncodes else 0
        return subprocess.CompletedProcess(command, code, b"", b"cannot")


@dataclass
class Recorder:
    """Keeps what was published."""

    events: list[tuple[str, AnyValue]] = field(default_factory=list)

    def publish(self, namespace: str, topic: str, event: AnyValue, timestamp: datetime | None = None) -> None:
        self.events.append((topic, event))

    @property
    def topics(self) -> list[str]:
        return [topic for topic, _ in self.events]


@dataclass
class Engine:
    """One daemon's runtime."""

    tasks: Tasks
    lifecycle: Lifecycle
    bundles: Bundles
    operations: Operations
    recovery: Recovery
    zygote: ScriptedZygote
    published: Recorder
    programs: ScriptedPrograms
    state: Path

    async def create(self, id: str = "web", **options: Any) -> int:
        return await self.lifecycle.create(NS, "io.containerd.runc.v2", b"{}", shim.CreateTaskRequest(id=id, **options))

    async def start(self, id: str = "web", exec_id: str = "") -> int:
        return await self.lifecycle.start(NS, id, exec_id)

    async def run(self, id: str = "web") -> ScriptedShim:
        await self.create(id)
        await self.start(id)
        return self.zygote.shims[id]

    async def exec(self, exec_id: str, id: str = "web") -> None:
        await self.tasks.exec(NS, shim.ExecProcessRequest(id=id, exec_id=exec_id))

    def left(self) -> list[str]:
        """What is in the namespace's directory of bundles."""
        folder = self.state / "tasks" / NS
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@asynccontextmanager
async def engine(state: Path, zygote: ScriptedZygote) -> AsyncIterator[Engine]:
    """Run a daemon's runtime on `state`; ending it leaves shims alone, as the end of a daemon does."""
    programs, published, operations, threads = ScriptedPrograms(), Recorder(), Operations(), Offload(1)
    async with asyncio.TaskGroup() as group:
        bundles = Bundles(state)
        shims = Shims(Endpoints(state, "/grpc", "/ttrpc", "info"), zygote, programs, lambda _request: b"")
        owners = Owners(group)
        tasks = Tasks(published, group, threads)
        apparmor = AppArmor(threads, state / "sys", str(state / "bin"))  # where StagedKernel has it
        undertaker = Undertaker(tasks, shims, owners, operations, group)
        lifecycle = Lifecycle(tasks, bundles, shims, owners, undertaker, operations, apparmor.prepare, group)
        recovery = Recovery(tasks, bundles, shims, owners, undertaker, lifecycle, group)
        zygote.forward = tasks.forward
        try:
            yield Engine(tasks, lifecycle, bundles, operations, recovery, zygote, published, programs, state)
        finally:
            zygote.forward = None
            tasks.let_go()
            threads.close()
            for task in asyncio.all_tasks():
                if task in group._tasks:
                    task.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds; fail after 10 s."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)
