"""pyctr.v1.Engine: names, what is remembered, where things are."""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyctr_wire import labels
from pyctr_wire.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unauthenticated
from pyctr_wire.pyctr import engine_pb2 as pb
from pyctrd.core.anys import AnyValue
from pyctrd.core.containers import Container
from pyctrd.core.platforms import Platform
from pyctrd.core.tasks import Exit, Status
from pyctrd.offload import Offload
from pyctrd.registry.credentials import Credentials
from pyctrd.rpc.container_index import ContainerIndex
from pyctrd.rpc.engine import Engine
from pyctrd.rpc.volumes import Volumes
from pyctrd.runtime.belongings import Belongings
from pyctrd.runtime.creation import Created, NotUnpacked, Request
from pyctrd.runtime.disk_usage import UsageItem
from pyctrd.runtime.exec_spec import ExecOptions
from pyctrd.runtime.operations import Operations
from pyctrd.runtime.runtimes import Runtimes
from pyctrd.transfer.requests import Unpack

NS = "default"


class Context:
    """A call in the namespace."""

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        return (("containerd-namespace", NS),)


CONTEXT: Any = Context()


@dataclass
class Daemon:
    """Everything that the service asks, scripted."""

    rows: Offload
    folder: Path  # of what containers have
    containers: dict[str, Container] = field(default_factory=dict)
    tasks: dict[str, Any] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    unpacked: list[tuple[str, Unpack]] = field(default_factory=list)
    lacks_snapshots: bool = False

    def __post_init__(self) -> None:
        self.operations = Operations()
        self.index = ContainerIndex(self, self.rows)
        belongings = Belongings(
            self.folder, lambda _, id: id in self.containers, lambda _: list(self.containers.values())
        )
        self.engine = Engine(
            self,  # type: ignore[arg-type]
            Runtimes({}),
            self.index,
            SimpleNamespace(find=self.find_task, table=SimpleNamespace(list=lambda _: list(self.tasks.values()))),
            self.operations,
            self.collect,
            lambda ns: [UsageItem("images", 1, 1, 100, 0)],
            Volumes(belongings.volumes, belongings.named_volumes, self.rows),
            self.rows,
            self.rows,
            Platform("linux", "amd64"),
            self.upgrade,
            self.unpack,
            self.check_login,
        )

    def get(self, ns: str, id: str, /) -> Container:
        if id not in self.containers:
            raise NotFound(f'container "{id}"')
        return self.containers[id]

    def list(self, ns: str, filters: Sequence[str], /) -> Sequence[Container]:
        return list(self.containers.values())

    def add(self, container: Container) -> None:
        self.containers[container.id] = container
        self.index.changed(NS, container.id)

    def create(self, request: Request) -> Created:
        self.requests.append(request)
        if self.lacks_snapshots:
            self.lacks_snapshots = False
            raise NotUnpacked("docker.io/library/demo:latest", "overlayfs")
        container_id = request.id or f"made{len(self.requests)}"
        self.add(named(container_id, request.name))
        return Created(container_id, (), "json-file:///log", "overlayfs", ("watch out",))

    def exec_process(self, namespace: str, container_id: str, options: ExecOptions) -> bytes:
        return f"{container_id} {' '.join(options.args)}".encode()

    def label(self, namespace: str, container_id: str, changed: dict[str, str]) -> None:
        old = self.containers[container_id]
        self.add(replace(old, labels={**old.labels, **changed}))

    def find_task(self, namespace: str, id: str) -> Any:
        if id not in self.tasks:
            raise NotFound(f"task {id} not found")
        return self.tasks[id]

    async def collect(self) -> Any:
        return SimpleNamespace(content=["sha256:00"], snapshots={"overlayfs": 2}, freed=77)

    async def upgrade(self) -> Any:
        return SimpleNamespace(pid=5, version="6")

    async def check_login(self, host: str, credentials: Credentials) -> None:
        if (host, credentials.username, credentials.secret) != ("example.com:5000", "me", "secret"):
            raise Unauthenticated(host)

    async def unpack(self, ns: str, name: str, wanted: Unpack) -> None:
        self.unpacked.append((name, wanted))


def named(container_id: str, name: str = "", **more: str) -> Container:
    found = {labels.NAME: name, **more} if name else dict(more)
    return Container(container_id, labels=found, runtime_name="r", spec=AnyValue("", b"{}"))


@pytest.fixture
async def daemon(tmp_path: Path) -> Any:
    rows = Offload(4)
    yield Daemon(rows, tmp_path)
    rows.close()


async def test_a_container_is_made(daemon: Daemon) -> None:
    options = pb.RunOptions(args=["sh"], console_width=80, console_height=24, log_options={"max-size": "1m"})
    answer = await daemon.engine.RunSpec(
        pb.RunSpecRequest(image="demo", name="web", platform="arm64", runtime=sys.executable, options=options), CONTEXT
    )
    assert (answer.id, answer.log_uri, answer.snapshotter) == ("made1", "json-file:///log", "overlayfs")
    assert list(answer.warnings) == ["watch out"]
    request = daemon.requests[0]
    assert request.options.args == ("sh",)
    assert request.options.console_size == (80, 24)
    assert request.options.network == ""
    assert str(request.platform) == "linux/arm64"
    assert request.runtime_name == sys.executable


async def test_a_runtime_that_is_not_here_is_refused_before_anything_is_made(daemon: Daemon) -> None:
    with pytest.raises(FailedPrecondition, match="no-such-runtime"):
        await daemon.engine.RunSpec(pb.RunSpecRequest(image="demo", runtime="no-such-runtime"), CONTEXT)
    assert daemon.requests == []


async def test_a_name_is_given_once(daemon: Daemon) -> None:
    """However many ask at the same time."""
    calls = (daemon.engine.RunSpec(pb.RunSpecRequest(image="demo", name="web"), CONTEXT) for _ in range(10))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["AlreadyExists"] * 9 + ["RunSpecResponse"]
    with pytest.raises(InvalidArgument):
        await daemon.engine.RunSpec(pb.RunSpecRequest(image="demo", name="no/name"), CONTEXT)


async def test_layers_are_unpacked_when_they_are_missing(daemon: Daemon) -> None:
    daemon.lacks_snapshots = True
    answer = await daemon.engine.RunSpec(pb.RunSpecRequest(image="demo", name="web"), CONTEXT)
    assert answer.id == "made2"
    assert daemon.unpacked == [("docker.io/library/demo:latest", Unpack(None, "overlayfs"))]


async def test_negative_limits_are_refused(daemon: Daemon) -> None:
    with pytest.raises(InvalidArgument, match="memory"):
        await daemon.engine.RunSpec(pb.RunSpecRequest(options=pb.RunOptions(memory=-1)), CONTEXT)


async def test_rename(daemon: Daemon) -> None:
    daemon.add(named("one", "first"))
    daemon.add(named("two", "second"))
    await daemon.engine.Rename(pb.RenameRequest(id="first", name="third"), CONTEXT)
    assert daemon.containers["one"].labels[labels.NAME] == "third"
    with pytest.raises(AlreadyExists, match="two"):
        await daemon.engine.Rename(pb.RenameRequest(id="one", name="second"), CONTEXT)
    with pytest.raises(NotFound):
        await daemon.engine.Rename(pb.RenameRequest(id="first", name="x"), CONTEXT)


async def test_containers_are_found_by_id_name_or_beginning(daemon: Daemon) -> None:
    for one in (named("abc1", "web"), named("abd2", "abc1"), named("web3")):
        daemon.add(one)

    async def found(reference: str) -> str:
        return (await daemon.engine._find(NS, reference)).id

    assert [await found(text) for text in ("abc1", "web", "abd", "web3")] == ["abc1", "abc1", "abd2", "web3"]
    with pytest.raises(InvalidArgument, match="2 ids"):
        await found("ab")
    for text in ("", "x", "abc12"):
        with pytest.raises(NotFound):
            await found(text)


async def test_logs(daemon: Daemon) -> None:
    daemon.add(named("one", "web", **{labels.LOG_DRIVER: "cri", labels.LOG_PATH: "/log"}))
    daemon.add(named("foreign"))
    answer = await daemon.engine.Logs(pb.LogsRequest(id="web"), CONTEXT)
    assert (answer.driver, answer.path) == ("cri", "/log")
    with pytest.raises(FailedPrecondition, match="not made by pyctr"):
        await daemon.engine.Logs(pb.LogsRequest(id="foreign"), CONTEXT)


def task(tmp_path: Path, ended: Exit | None = None, attach: str = "/a") -> Any:
    shim = SimpleNamespace(attach=attach)
    return SimpleNamespace(
        init=SimpleNamespace(exit=ended),
        execs={"e": SimpleNamespace(exit=None)},
        bundle=SimpleNamespace(shim=lambda: shim),
    )


async def test_attach_and_exec(daemon: Daemon, tmp_path: Path) -> None:
    daemon.add(named("one", "web"))
    request = pb.ExecSpecRequest(id="web", args=["ls", "-l"])
    with pytest.raises(FailedPrecondition, match="not running"):
        await daemon.engine.ExecSpec(request, CONTEXT)
    with pytest.raises(NotFound):
        await daemon.engine.Attach(pb.AttachRequest(id="web"), CONTEXT)
    daemon.tasks["one"] = task(tmp_path)
    answer = await daemon.engine.ExecSpec(request, CONTEXT)
    assert (answer.container_id, answer.process) == ("one", b"one ls -l")
    assert (await daemon.engine.Attach(pb.AttachRequest(id="web"), CONTEXT)).path == "/a"
    daemon.tasks["one"] = task(tmp_path, attach="")
    with pytest.raises(FailedPrecondition):
        await daemon.engine.Attach(pb.AttachRequest(id="web"), CONTEXT)


async def test_exit_info(daemon: Daemon, tmp_path: Path) -> None:
    daemon.add(named("one"))
    daemon.tasks["one"] = task(tmp_path)
    with pytest.raises(FailedPrecondition):
        await daemon.engine.ExitInfo(pb.ExitInfoRequest(id="one"), CONTEXT)
    with pytest.raises(NotFound):
        await daemon.engine.ExitInfo(pb.ExitInfoRequest(id="one", exec_id="none"), CONTEXT)
    ended = Exit(exit_status=137, exited_at=datetime(2026, 1, 1, tzinfo=UTC), signal=9, oom_killed=True, reason="oom")
    daemon.tasks["one"] = task(tmp_path, ended)
    answer = await daemon.engine.ExitInfo(pb.ExitInfoRequest(id="one"), CONTEXT)
    assert (answer.exit_status, answer.signal, answer.oom_killed, answer.reason) == (137, 9, True, "oom")


async def test_start_times(daemon: Daemon, tmp_path: Path) -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    for name, status in (("made", Status.CREATED), ("runs", Status.RUNNING), ("ended", Status.STOPPED)):
        bundle = SimpleNamespace(started_at=lambda: moment)
        daemon.tasks[name] = SimpleNamespace(id=name, init=SimpleNamespace(status=status), bundle=bundle)
    answer = await daemon.engine.StartTimes(pb.StartTimesRequest(), CONTEXT)
    assert {name: found.ToDatetime(UTC) for name, found in answer.started_at.items()} == {
        "runs": moment,
        "ended": moment,
    }


async def test_volumes(daemon: Daemon) -> None:
    volume = daemon.folder / "volumes" / NS / "one" / "v1"
    volume.mkdir(parents=True)
    daemon.add(named("one"))
    (shown,) = (await daemon.engine.Volumes(pb.VolumesRequest(), CONTEXT)).volumes
    assert (shown.name, shown.container, shown.path, shown.used) == ("v1", "one", str(volume), True)
    for request in (pb.RemoveVolumesRequest(name="v1"), pb.RemoveVolumesRequest(container="one")):
        with pytest.raises(FailedPrecondition):
            await daemon.engine.RemoveVolumes(request, CONTEXT)
    for request in (pb.RemoveVolumesRequest(), pb.RemoveVolumesRequest(container="..")):
        with pytest.raises(InvalidArgument):
            await daemon.engine.RemoveVolumes(request, CONTEXT)
    with pytest.raises(NotFound):
        await daemon.engine.RemoveVolumes(pb.RemoveVolumesRequest(name="v2"), CONTEXT)
    del daemon.containers["one"]
    await daemon.engine.RemoveVolumes(pb.RemoveVolumesRequest(container="one"), CONTEXT)
    await daemon.engine.RemoveVolumes(pb.RemoveVolumesRequest(container="one"), CONTEXT)
    assert not (await daemon.engine.Volumes(pb.VolumesRequest(), CONTEXT)).volumes


async def test_volumes_with_names(daemon: Daemon) -> None:
    made = await daemon.engine.CreateVolume(pb.CreateVolumeRequest(name="data", labels={"a": "b"}), CONTEXT)
    assert made.name == "data"
    (shown,) = (await daemon.engine.Volumes(pb.VolumesRequest(), CONTEXT)).volumes
    assert (shown.name, shown.container, dict(shown.labels), shown.used) == ("data", "", {"a": "b"}, False)
    spec = json.dumps({"mounts": [{"source": shown.path}]}).encode()
    daemon.add(replace(named("one"), spec=AnyValue("", spec)))
    (shown,) = (await daemon.engine.Volumes(pb.VolumesRequest(), CONTEXT)).volumes
    assert (list(shown.users), shown.used) == (["one"], True)
    with pytest.raises(FailedPrecondition):
        await daemon.engine.RemoveVolumes(pb.RemoveVolumesRequest(name="data"), CONTEXT)
    with pytest.raises(InvalidArgument, match="not both"):
        await daemon.engine.RemoveVolumes(pb.RemoveVolumesRequest(name="data", container="one"), CONTEXT)
    del daemon.containers["one"]
    await daemon.engine.RemoveVolumes(pb.RemoveVolumesRequest(name="data"), CONTEXT)
    assert not (await daemon.engine.Volumes(pb.VolumesRequest(), CONTEXT)).volumes


async def test_operations(daemon: Daemon) -> None:
    with daemon.operations.begin(NS, "container one", "create", timeout=60) as operation:
        operation.stage = "spawn shim"
        (shown,) = (await daemon.engine.Ops(pb.OpsRequest(), CONTEXT)).operations
        assert (shown.object, shown.name, shown.stage) == ("container one", "create", "spawn shim")
        assert shown.HasField("deadline")
        assert not shown.HasField("ended_at")
    with pytest.raises(NotFound), daemon.operations.begin(NS, "container one", "start"):
        raise NotFound("program")
    (failed,) = (await daemon.engine.Why(pb.WhyRequest(id="one"), CONTEXT)).operations
    assert failed.error == "program: not found"
    with pytest.raises(NotFound):
        await daemon.engine.Why(pb.WhyRequest(id="two"), CONTEXT)


async def test_a_login_is_checked_with_its_registry(daemon: Daemon) -> None:
    request = pb.CheckLoginRequest(registry="example.com:5000", username="me", secret="secret")
    assert await daemon.engine.CheckLogin(request, CONTEXT) == pb.CheckLoginResponse()
    request.secret = "wrong"
    with pytest.raises(Unauthenticated):
        await daemon.engine.CheckLogin(request, CONTEXT)


async def test_the_rest(daemon: Daemon) -> None:
    collected = await daemon.engine.CollectGarbage(pb.CollectGarbageRequest(), CONTEXT)
    assert (list(collected.removed_content), collected.reclaimed) == (["sha256:00"], 77)
    assert dict(collected.removed_snapshots) == {"overlayfs": 2}
    assert (await daemon.engine.DiskUsage(pb.DiskUsageRequest(), CONTEXT)).items[0].size == 100
    assert (await daemon.engine.Upgrade(pb.UpgradeRequest(), CONTEXT)).pid == 5
