"""The life of a sandbox, with tasks that end when a test says so."""

import asyncio
import signal
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyctr_wire.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from pyctrd.core.tasks import Exit, Status
from pyctrd.runtime.table import Process
from pyctrd.sandbox.controller import NOT_READY, READY, SandboxController

NS = "ns"


class World:
    """Tasks that SIGKILL ends, and SIGTERM too unless they are `stubborn`."""

    def __init__(self, folder: Path, stubborn: bool = False) -> None:
        self.folder = folder
        self.stubborn = stubborn
        self.tasks: dict[str, Any] = {}
        self.signals: list[int] = []
        self.topics: list[str] = []
        self.table = SimpleNamespace(find=lambda ns, id: self.tasks.get(id))
        self.controller = self.next_controller()

    def next_controller(self) -> SandboxController:
        return SandboxController(self.folder, self, self.members, self)  # type: ignore[arg-type]

    def add(self, id: str) -> Any:
        self.tasks[id] = SimpleNamespace(id=id, namespace=NS, init=Process("", status=Status.RUNNING))
        return self.tasks[id]

    async def members(self, ns: str, sandbox_id: str) -> list[str]:
        return list(self.tasks)

    async def kill(self, ns: str, request: Any) -> None:
        self.signals.append(request.signal)
        if request.signal == signal.SIGKILL or not self.stubborn:
            self.tasks[request.id].init.finish(Exit(128 + request.signal, datetime.now(UTC)))

    def publish(self, ns: str, topic: str, event: Any) -> None:
        self.topics.append(topic)


async def test_a_life(tmp_path: Path) -> None:
    world = World(tmp_path)
    controller = world.controller
    controller.create(NS, "pod", "/run/netns/x")
    assert controller.get(NS, "pod").name == NOT_READY
    with pytest.raises(FailedPrecondition, match="not been started"):
        controller.check_member(NS, "pod")
    controller.start(NS, "pod")
    controller.check_member(NS, "pod")
    task = world.add("c")
    waiting = asyncio.ensure_future(controller.wait(NS, "pod"))
    await asyncio.sleep(0)
    assert not waiting.done()

    await controller.stop(NS, "pod", 0)

    assert (await waiting).exit_status == 0
    assert task.init.status is Status.STOPPED
    assert controller.get(NS, "pod").name == NOT_READY
    with pytest.raises(FailedPrecondition, match="stopped"):
        controller.check_member(NS, "pod")
    await controller.stop(NS, "pod", 0)
    await controller.shut_down(NS, "pod")
    with pytest.raises(NotFound):
        controller.get(NS, "pod")
    assert world.topics == ["/sandboxes/create", "/sandboxes/start", "/sandboxes/exit"]
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(("stubborn", "signals"), [(False, [15]), (True, [15, 9])])
async def test_grace(tmp_path: Path, stubborn: bool, signals: list[int]) -> None:
    world = World(tmp_path, stubborn)
    world.controller.create(NS, "pod", "")
    world.controller.start(NS, "pod")
    world.add("c")

    await world.controller.stop(NS, "pod", 0.01 if stubborn else 30)

    assert world.signals == signals


async def test_the_next_daemon_knows_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.controller.create(NS, "pod", "/run/netns/x")
    world.controller.start(NS, "pod")
    (tmp_path / NS / "damaged.json").write_text("{")

    controller = world.next_controller()

    state = controller.get(NS, "pod")
    assert (state.name, state.netns) == (READY, "/run/netns/x")
    with pytest.raises(AlreadyExists):
        controller.create(NS, "pod", "")
    with pytest.raises(FailedPrecondition, match="started before"):
        controller.start(NS, "pod")
    await controller.stop(NS, "pod", 0)
    assert (await world.next_controller().wait(NS, "pod")).exit_status == 0


@pytest.mark.parametrize("made_anew", [False, True])
async def test_of_two_who_shut_it_down_one_does(tmp_path: Path, made_anew: bool) -> None:
    """The other finds none, and the next sandbox of that id is not taken for one that has stopped."""
    world = World(tmp_path)
    looks = [asyncio.Event(), asyncio.Event()]
    waited_for = iter(looks)

    async def members(*_: str) -> list[str]:
        await next(waited_for).wait()
        return []

    controller = SandboxController(tmp_path, world, members, world)  # type: ignore[arg-type]
    controller.create(NS, "pod", "")
    slow, fast = [asyncio.ensure_future(controller.shut_down(NS, "pod")) for _ in looks]
    await asyncio.sleep(0)
    looks[1].set()
    await fast
    if made_anew:
        controller.create(NS, "pod", "")
    looks[0].set()

    with pytest.raises(NotFound):
        await slow

    if not made_anew:
        controller.create(NS, "pod", "")
    assert len(list(tmp_path.rglob("*.json"))) == 1
    assert world.topics.count("/sandboxes/exit") == 1
    waiting = asyncio.ensure_future(controller.wait(NS, "pod"))
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()


async def test_what_is_no_sandbox(tmp_path: Path) -> None:
    controller = World(tmp_path).controller

    controller.check_member(NS, "unknown")  # nobody runs it, so it has no say
    with pytest.raises(InvalidArgument):
        controller.create(NS, "../x", "")
    for call in (
        controller.stop(NS, "unknown", 0),
        controller.shut_down(NS, "unknown"),
        controller.wait(NS, "unknown"),
    ):
        with pytest.raises(NotFound):
            await call
