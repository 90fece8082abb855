"""What follows from events, seen and missed."""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyctr_wire import labels
from pyctr_wire.containerd.events import task_pb2
from pyctr_wire.errors import NotFound, Unavailable
from pyctrd.core.anys import AnyValue
from pyctrd.core.containers import Container
from pyctrd.core.events import ContainerDelete
from pyctrd.core.filters import compile_filters
from pyctrd.core.namespaces import Namespace
from pyctrd.core.tasks import Status
from pyctrd.events.exchange import Exchange
from pyctrd.offload import Offload
from pyctrd.rpc.convert.events import event_to_any
from pyctrd.runtime.aftermath import Aftermath
from pyctrd.runtime.belongings import Belongings
from pyctrd.runtime.log_folders import LogFolders

NS = "default"
NOW = datetime.now(UTC)


class World:
    """Stores and tasks in memory; `removed` is what went, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.containers: dict[str, Container] = {}
        self.stopped: dict[str, bool] = {}
        self.removed: list[str] = []
        self.logs = LogFolders(folder / "logs")
        self.belongings = Belongings(
            folder, lambda _, id: id in self.containers, lambda _: list(self.containers.values())
        )
        self.exchange = Exchange(event_to_any, 100)
        self.rows = Offload(4)
        self.fails: set[str] = set()
        self.aftermath = Aftermath(
            self.exchange,
            SimpleNamespace(get=self.entry),
            self,
            SimpleNamespace(list=lambda: [Namespace(NS)]),
            SimpleNamespace(named=lambda name: SimpleNamespace(remove=self.remove_snapshot)),
            SimpleNamespace(delete=self.delete_task),  # type: ignore[arg-type]
            SimpleNamespace(find=self.find),  # type: ignore[arg-type]
            self.logs,
            self.belongings,
            self.rows,
            self.rows,
        )

    def add(self, name: str, *, auto_remove: bool, created_at: datetime = NOW) -> None:
        found = {labels.AUTO_REMOVE: "true"} if auto_remove else {}
        self.containers[name] = Container(
            name, found, snapshotter="overlayfs", snapshot_key=name, created_at=created_at
        )
        self.make_log(name)

    def make_log(self, name: str) -> None:
        (self.folder / "logs" / NS / name).mkdir(parents=True)

    def get(self, ns: str, container_id: str, /) -> Container:
        if container_id not in self.containers:
            raise NotFound(container_id)
        return self.containers[container_id]

    async def entry(self, ns: str, container_id: str) -> Any:
        return SimpleNamespace(container=self.get(ns, container_id))

    def list(self, ns: str, filters: Sequence[str] = (), /) -> Sequence[Container]:
        from pyctrd.core.containers import fields

        passes = compile_filters(filters)
        return [container for container in self.containers.values() if passes(fields(container))]

    def delete(self, ns: str, container_id: str, /) -> None:
        if self.containers.pop(container_id, None) is None:
            raise NotFound(container_id)
        self.removed.append(f"container {container_id}")
        self.exchange.publish_core(NS, ContainerDelete(container_id))

    def remove_snapshot(self, ns: str, key: str) -> None:
        self.removed.append(f"snapshot {key}")

    async def delete_task(self, ns: str, container_id: str) -> None:
        if container_id in self.fails:
            raise Unavailable("its shim does not answer")
        if self.stopped.pop(container_id, None) is None:
            raise NotFound(container_id)
        self.removed.append(f"task {container_id}")

    def find(self, ns: str, container_id: str) -> Any:
        if container_id not in self.stopped:
            return None
        status = Status.STOPPED if self.stopped[container_id] else Status.RUNNING
        return SimpleNamespace(init=SimpleNamespace(status=status))

    def end(self, container_id: str, process: str = "") -> None:
        event = task_pb2.TaskExit(container_id=container_id, id=process or container_id)
        self.exchange.publish(NS, "/tasks/exit", AnyValue("containerd.events.TaskExit", event.SerializeToString()))

    async def until(self, count: int) -> Sequence[str]:
        while len(self.removed) < count:
            await asyncio.sleep(0.005)
        return self.removed


@pytest.fixture
async def world(tmp_path: Path) -> Any:
    world = World(tmp_path)
    yield world
    world.exchange.close()
    world.rows.close()


async def running(world: World) -> "asyncio.Task[None]":
    """Start the aftermath and return once it listens."""
    task = asyncio.ensure_future(world.aftermath.run())
    world.add("marker", auto_remove=True, created_at=datetime(2000, 1, 1, tzinfo=UTC))
    assert "container marker" in await world.until(2)
    world.removed.clear()
    return task


async def test_a_container_with_rm_goes_when_its_task_ends(world: World) -> None:
    loop = await running(world)
    world.add("gone", auto_remove=True)
    world.add("stays", auto_remove=False)
    world.stopped = {"gone": True, "stays": True}
    world.end("stays")
    world.end("gone", "an exec")
    world.end("gone")
    assert await world.until(3) == ["task gone", "container gone", "snapshot gone"]
    assert list(world.containers) == ["stays"]
    world.exchange.close()
    await loop


async def test_logs_go_with_their_container(world: World, tmp_path: Path) -> None:
    loop = await running(world)
    world.add("one", auto_remove=False)
    world.delete(NS, "one")
    while (tmp_path / "logs/default/one").exists():
        await asyncio.sleep(0.005)
    world.exchange.close()
    await loop


@pytest.mark.parametrize("id", ["", ".", "..", "../default/one", "../..", "one/json.log", "a\0b", "a" * 300])
async def test_an_event_that_names_no_container_removes_nothing(world: World, tmp_path: Path, id: str) -> None:
    """Any client may publish it."""
    loop = await running(world)
    world.add("one", auto_remove=False)
    victims = tmp_path / "logs/default/one/json.log", tmp_path / "victim"
    for victim in victims:
        victim.touch()
    world.exchange.publish_core(NS, ContainerDelete(id))
    world.add("two", auto_remove=False)
    world.delete(NS, "two")
    while (tmp_path / "logs/default/two").exists():
        await asyncio.sleep(0.005)
    assert all(victim.exists() for victim in victims)
    world.exchange.close()
    await loop


async def test_volumes_go_with_their_container_unless_they_are_kept(world: World, tmp_path: Path) -> None:
    loop = await running(world)
    for name in ("temporary", "permanent"):
        with world.belongings.making(NS, name):
            volume = world.belongings.volumes.make(NS, name, "/data", ())
            world.add(name, auto_remove=False)
    world.belongings.volumes.keep(NS, "permanent", {volume.name: "/data"})
    world.delete(NS, "permanent")
    world.delete(NS, "temporary")
    while (tmp_path / "volumes/default/temporary").exists() or (tmp_path / "logs/default/permanent").exists():
        await asyncio.sleep(0.005)
    assert [(one.container, one.used) for one in world.belongings.volumes.list(NS)] == [("permanent", False)]
    world.exchange.close()
    await loop


async def test_the_log_of_a_container_that_is_being_made_stays(world: World, tmp_path: Path) -> None:
    """Its record may come to be between the looks at logs and at records; a log has its record before itself."""
    listed = world.logs.list

    def list_and_make() -> list[tuple[str, str]]:
        found = listed()
        world.add("new", auto_remove=False)
        return found

    world.make_log("swept")
    world.logs.list = list_and_make  # type: ignore[method-assign]
    loop = await running(world)
    while (tmp_path / "logs/default/swept").exists():
        await asyncio.sleep(0.005)
    assert (tmp_path / "logs/default/new").exists()
    world.exchange.close()
    await loop


async def test_what_was_missed_is_made_good(world: World, tmp_path: Path) -> None:
    """Ended while no daemon ran, or lost with the machine; one that is only being made is left alone."""
    world.add("ended", auto_remove=True)
    world.add("lost", auto_remove=True, created_at=NOW - timedelta(days=10_000))
    world.add("young", auto_remove=True, created_at=NOW + timedelta(days=1))
    world.add("runs", auto_remove=True)
    world.stopped = {"ended": True, "runs": False}
    world.make_log("swept")
    for name in ("swept", "runs", ".half-removed"):
        for kind in ("volumes", "network"):
            (tmp_path / kind / NS / name / "v").mkdir(parents=True)
    loop = asyncio.ensure_future(world.aftermath.run())
    await world.until(5)
    assert set(world.containers) == {"young", "runs"}
    left = {"logs/default": ["runs", "young"], "volumes/default": ["runs"], "network/default": ["runs"]}
    while any(sorted(os.listdir(tmp_path / folder)) != names for folder, names in left.items()):
        await asyncio.sleep(0.005)
    world.exchange.close()
    await loop


async def test_one_that_cannot_be_removed_does_not_stop_the_others(world: World) -> None:
    loop = await running(world)
    for name in ("stuck", "fine"):
        world.add(name, auto_remove=True)
        world.stopped[name] = True
    world.fails.add("stuck")
    world.end("stuck")
    world.end("fine")
    assert await world.until(3) == ["task fine", "container fine", "snapshot fine"]
    assert list(world.containers) == ["stuck"]
    loop.cancel()
    with suppress(asyncio.CancelledError):
        await loop


async def test_what_clients_publish_is_not_taken_for_granted(world: World) -> None:
    """Bytes that are no event, another event, and one that is not true."""
    loop = await running(world)
    world.add("stays", auto_remove=False)
    untrue = task_pb2.TaskExit(container_id="stays", id="stays").SerializeToString()
    for topic in ("/tasks/exit", "/containers/delete"):
        for kind in ("TaskExit", "ContainerDelete", "NoSuch"):
            world.exchange.publish(NS, topic, AnyValue(f"containerd.events.{kind}", b"\xff\xff"))
            world.exchange.publish(NS, topic, AnyValue(f"containerd.events.{kind}", untrue))
    world.exchange.publish_core(NS, ContainerDelete("stays"))
    world.add("gone", auto_remove=True)
    world.stopped = {"gone": True}
    world.end("gone")

    assert await world.until(3) == ["task gone", "container gone", "snapshot gone"]
    while world.logs.has(NS, "gone"):
        await asyncio.sleep(0.005)
    assert world.logs.has(NS, "stays")
    assert not loop.done()
    world.exchange.close()
    await loop
