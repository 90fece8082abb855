"""Create, start and delete on scripted shims."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pyctr_wire.containerd.events import task_pb2 as events
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as shim
from pyctr_wire.errors import (
    AlreadyExists,
    ApiError,
    Code,
    Internal,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
    UnknownError,
)
from pyctrd.core.tasks import Status
from pyctrd.runtime import lifecycle
from support.runtime_engine import NS, Engine, engine, until
from support.scripted_shim import Die, Hang, ScriptedZygote
from support.staged_kernel import StagedKernel


@pytest.fixture
async def zygote() -> AsyncIterator[ScriptedZygote]:
    scripted = ScriptedZygote()
    yield scripted
    await scripted.close()


async def gone(daemon: Engine) -> None:
    """Wait until nothing is left of any task."""
    await until(lambda: not daemon.left() and not any(one.alive for one in daemon.zygote.shims.values()))


async def test_whole_life_in_order(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        assert await daemon.create() == 4000
        assert daemon.tasks.find(NS, "web").init.status is Status.CREATED
        waiting = asyncio.ensure_future(daemon.tasks.wait(NS, "web", ""))
        assert not (daemon.tasks.find(NS, "web").bundle.path / "started").exists()
        assert await daemon.start() == 4000
        assert daemon.tasks.find(NS, "web").init.status is Status.RUNNING
        assert (daemon.tasks.find(NS, "web").bundle.path / "started").exists()
        zygote.shims["web"].exit("", 7)
        assert (await waiting).exit_status == 7
        assert (await daemon.tasks.wait(NS, "web", "")).exit_status == 7

        deleted = await daemon.lifecycle.delete(NS, "web")

        assert (deleted.pid, deleted.exit.exit_status) == (4000, 7)
        with pytest.raises(ApiError, match=r"^task web not found$") as refused:
            daemon.tasks.find(NS, "web")
        assert refused.value.code == Code.NOT_FOUND
        await gone(daemon)
        assert daemon.published.topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


async def test_a_container_is_made_once_its_profile_is_loaded_or_not_at_all(
    tmp_path: Path, zygote: ScriptedZygote
) -> None:
    spec, loaded = b'{"process": {"apparmorProfile": "pyctr-default"}}', []
    zygote.prepare = lambda _: loaded.append(kernel.loads())
    with StagedKernel(tmp_path) as kernel:
        async with engine(tmp_path, zygote) as daemon:
            kernel.failing.touch()
            with pytest.raises(Internal, match="pyctr-default"):
                await daemon.lifecycle.create(NS, "io.containerd.runc.v2", spec, shim.CreateTaskRequest(id="web"))
            assert (daemon.left(), loaded) == ([], [])
            kernel.failing.unlink()
            await daemon.lifecycle.create(NS, "io.containerd.runc.v2", spec, shim.CreateTaskRequest(id="web"))
            assert loaded == [["pyctr-default"]]


async def test_what_is_told_again_of_a_task_that_is_gone_is_no_news(tmp_path: Path, zygote: ScriptedZygote) -> None:
    """As a shim does to a daemon that hung: by each of the connections that it had given up."""
    async with engine(tmp_path, zygote) as daemon:
        one = await daemon.run()
        one.exit("", 0)
        await daemon.lifecycle.delete(NS, "web")
        for _ in range(2):
            one.sequence -= 1
            one.publish("/tasks/delete", events.TaskDelete(container_id="web"))
        assert daemon.published.topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
        one.publish("/tasks/later", events.TaskDelete(container_id="web"))
        assert daemon.published.topics[-1] == "/tasks/later"


async def test_a_daemon_that_stops_right_after_a_delete_leaves_no_connection(
    tmp_path: Path, zygote: ScriptedZygote
) -> None:
    """Closing it acknowledges what has been told; the next daemon would tell it again."""
    async with engine(tmp_path, zygote) as daemon:
        one = await daemon.run()
        one.exit("", 0)
        await daemon.lifecycle.delete(NS, "web")
        await asyncio.sleep(0)
    await until(lambda: not one.connected)
    assert one.alive


async def test_same_id_again_right_after_delete(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        for _ in range(5):
            (await daemon.run()).exit("", 0)
            await daemon.lifecycle.delete(NS, "web")
        await gone(daemon)


async def test_refused_create_leaves_nothing(tmp_path: Path, zygote: ScriptedZygote) -> None:
    zygote.prepare = lambda one: one.script["Create"].append(UnknownError("OCI runtime create failed: no such file"))
    async with engine(tmp_path, zygote) as daemon:
        with pytest.raises(UnknownError, match=r"^failed to create shim task: OCI runtime create failed: no such file"):
            await daemon.create()
        assert daemon.left() == []
        assert not zygote.shims["web"].alive
        assert daemon.programs.commands == []
        assert [one.name for one in daemon.operations.about("web")] == ["create"]


async def test_what_the_machine_refuses_leaves_nothing(
    tmp_path: Path, zygote: ScriptedZygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with engine(tmp_path, zygote) as daemon:
        with monkeypatch.context() as changed:
            changed.setattr("pyctrd.runtime.shims.socket.socketpair", refuse)
            with pytest.raises(UnknownError, match=r"^failed to create shim task: start the shim: Too many open files"):
                await daemon.create()
        assert daemon.left() == []
        assert await daemon.create() == 4000


async def test_another_shim_that_answers_what_nobody_understands_leaves_nothing(
    tmp_path: Path, zygote: ScriptedZygote
) -> None:
    async with engine(tmp_path, zygote) as daemon:
        request = shim.CreateTaskRequest(id="web")
        with pytest.raises(Unimplemented, match=r"unsupported shim version \(0\)"):
            await daemon.lifecycle.create(NS, "io.example.other.v1", b"{}", request, other_shim="/bin/other")
        assert daemon.programs.commands == ["start", "delete"]
        assert daemon.left() == []
        with pytest.raises(NotFound):
            await daemon.lifecycle.delete(NS, "web")


@pytest.mark.parametrize("outcome", [Die, Hang])
async def test_shim_that_fails_in_create_is_cleaned_up(
    tmp_path: Path, zygote: ScriptedZygote, outcome: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dead or stuck, it is ended and its container with it, and the id is free."""
    monkeypatch.setattr(lifecycle, "CREATE_TIMEOUT", 0.05)
    monkeypatch.setattr("pyctrd.runtime.shims._kill", lambda _: zygote.shims["web"].kill())
    zygote.prepare = lambda one: one.script["Create"].append(outcome)
    async with engine(tmp_path, zygote) as daemon:
        with pytest.raises(ApiError, match=r"^failed to create shim task: task web: Create"):
            await daemon.create()
        assert daemon.programs.commands == ["delete"]
        assert daemon.left() == []
        zygote.prepare = lambda _: None
        monkeypatch.undo()
        await daemon.create()


async def test_what_cannot_be_undone_stays_to_be_deleted(tmp_path: Path, zygote: ScriptedZygote) -> None:
    zygote.prepare = lambda one: one.script["Create"].append(Die)
    async with engine(tmp_path, zygote) as daemon:
        daemon.programs.returncodes = [1]
        with pytest.raises(Unavailable):
            await daemon.create()
        assert daemon.tasks.find(NS, "web").init.status is Status.STOPPED
        assert (await daemon.lifecycle.delete(NS, "web")).exit.exit_status == 255
        await gone(daemon)
        assert daemon.programs.commands == ["delete", "delete"]


async def test_second_create_is_refused(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        results = await asyncio.gather(*(daemon.create() for _ in range(5)), return_exceptions=True)
        assert results.count(4000) == 1
        assert all(isinstance(result, AlreadyExists) for result in results if result != 4000)
        with pytest.raises(AlreadyExists, match=r"^task web: already exists$"):
            await daemon.create()


async def test_create_whose_client_left_is_undone(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        call = asyncio.ensure_future(daemon.create())
        await until(lambda: bool(daemon.left()))
        call.cancel()
        await gone(daemon)
        assert daemon.tasks.table.find(NS, "web") is None
        await daemon.create()


async def test_retry_joins_a_create_whose_client_left(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        first = asyncio.ensure_future(daemon.create(stdout="/out"))
        await until(lambda: bool(daemon.left()))
        retry = asyncio.ensure_future(daemon.create(stdout="/out"))
        await asyncio.sleep(0)
        first.cancel()
        assert await retry == 4000
        assert zygote.shims["web"].calls.count("Create") == 1


async def test_who_asks_for_a_task_during_its_create_finds_it(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        call = asyncio.ensure_future(daemon.create())
        await until(lambda: bool(daemon.left()))
        assert daemon.tasks.table.find(NS, "web") is None
        await daemon.tasks.wait_created(NS, "web")
        assert daemon.tasks.find(NS, "web").init.status is Status.CREATED
        await call
        await daemon.tasks.wait_created(NS, "web")


@pytest.mark.parametrize("outcome", [UnknownError("no"), Hang])
async def test_nobody_waits_for_a_create_that_fails_or_takes_long(
    tmp_path: Path, zygote: ScriptedZygote, outcome: UnknownError | type[Hang], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyctrd.runtime.tasks.CALL_TIMEOUT", 0.05)
    zygote.prepare = lambda one: one.script["Create"].append(outcome)
    async with engine(tmp_path, zygote) as daemon:
        call = asyncio.ensure_future(daemon.create())
        await until(lambda: bool(daemon.left()))
        await daemon.tasks.wait_created(NS, "web")
        assert daemon.tasks.table.find(NS, "web") is None
        call.cancel()


async def test_bad_id(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        with pytest.raises(InvalidArgument):
            await daemon.create("../web")


async def test_start_reports_the_runtimes_words(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        await daemon.create()
        text = 'OCI runtime start failed: exec: "x": executable file not found in $PATH'
        zygote.shims["web"].script["Start"].append(UnknownError(text))
        with pytest.raises(UnknownError) as refused:
            await daemon.start()
        assert str(refused.value) == text
        assert daemon.tasks.find(NS, "web").init.status is Status.CREATED


async def test_exit_that_beats_the_answer_to_start(tmp_path: Path, zygote: ScriptedZygote) -> None:
    """The event may be handled before the answer: a stopped process must not come back to life."""
    async with engine(tmp_path, zygote) as daemon:
        await daemon.create()
        one = zygote.shims["web"]
        usual = one._start

        def start(payload: bytes) -> object:
            answer = usual(payload)
            one.exit("", 3)
            return answer

        one._start = start  # type: ignore[method-assign,assignment]
        await daemon.start()
        assert daemon.tasks.find(NS, "web").init.status is Status.STOPPED
        assert daemon.published.topics == ["/tasks/create", "/tasks/start", "/tasks/exit"]


async def test_running_task_is_not_deleted(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        await daemon.run()
        with pytest.raises(UnknownError, match="cannot delete a running process"):
            await daemon.lifecycle.delete(NS, "web")
        assert daemon.left() == ["web"]


async def test_concurrent_deletes_share_one_result(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        (await daemon.run()).exit("", 9)
        results = await asyncio.gather(*(daemon.lifecycle.delete(NS, "web") for _ in range(10)))
        assert {result.exit.exit_status for result in results} == {9}
        assert zygote.shims["web"].calls.count("Delete") == 1
        with pytest.raises(ApiError, match="task web not found"):
            await daemon.lifecycle.delete(NS, "web")


async def test_delete_whose_client_left_answers_the_retry_once(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        (await daemon.run()).exit("", 9)
        call = asyncio.ensure_future(daemon.lifecycle.delete(NS, "web"))
        await until(lambda: "Delete" in zygote.shims["web"].calls)
        call.cancel()
        await gone(daemon)
        assert (await daemon.lifecycle.delete(NS, "web")).exit.exit_status == 9
        with pytest.raises(ApiError, match="task web not found"):
            await daemon.lifecycle.delete(NS, "web")


async def test_a_record_is_enough_where_the_shim_knows_no_more(tmp_path: Path, zygote: ScriptedZygote) -> None:
    """It has deleted the container, the answer was lost, and the event of the exit is still on its way."""
    async with engine(tmp_path, zygote) as daemon:
        one = await daemon.run()
        one.record("", 4000, 7)
        one.script["Delete"].append(NotFound("container not created"))
        deleted = await daemon.lifecycle.delete(NS, "web")
        assert (deleted.pid, deleted.exit.exit_status) == (4000, 7)
        await gone(daemon)


async def test_created_task_is_deleted(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        await daemon.create()
        assert (await daemon.lifecycle.delete(NS, "web")).exit.exit_status == 137
        await gone(daemon)


async def test_exec(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        one = await daemon.run()
        await daemon.exec("sh")
        with pytest.raises(AlreadyExists, match=r"^id sh: already exists$"):
            await daemon.exec("sh")
        with pytest.raises(InvalidArgument):
            await daemon.exec("")
        waiting = asyncio.ensure_future(daemon.tasks.wait(NS, "web", "sh"))
        assert await daemon.start(exec_id="sh") > 0
        one.exit("sh", 4)
        assert (await waiting).exit_status == 4
        with pytest.raises(NotFound, match="process already finished: not found"):
            await daemon.tasks.kill(NS, shim.KillRequest(id="web", exec_id="sh", signal=9))
        assert (await daemon.tasks.delete_process(NS, "web", "sh")).exit.exit_status == 4
        with pytest.raises(NotFound):
            await daemon.tasks.wait(NS, "web", "sh")


async def test_exec_whose_client_left_is_known(tmp_path: Path, zygote: ScriptedZygote) -> None:
    """It is to be started or deleted; that its shim knows it is not enough."""
    async with engine(tmp_path, zygote) as daemon:
        one = await daemon.run()
        one.script["Exec"].append(Hang)
        calling = asyncio.ensure_future(daemon.exec("e"))
        await until(lambda: one.holding == ["Exec"])
        calling.cancel()
        await asyncio.sleep(0)
        one.wake()
        with pytest.raises(asyncio.CancelledError):
            await calling
        with pytest.raises(AlreadyExists):
            await daemon.exec("e")
        assert await daemon.start(exec_id="e") > 0
        assert daemon.tasks.find(NS, "web").bundle.execs().keys() == {"e"}


async def test_waiter_of_an_exec_that_never_runs(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        await daemon.run()
        await daemon.exec("sh")
        waiting = asyncio.ensure_future(daemon.tasks.wait(NS, "web", "sh"))
        await asyncio.sleep(0)
        await daemon.tasks.delete_process(NS, "web", "sh")
        with pytest.raises(NotFound):
            await waiting


async def test_exec_of_the_containers_own_name(tmp_path: Path, zygote: ScriptedZygote) -> None:
    """TaskExit names an exec by its id and init by the container's: the pid tells them apart."""
    async with engine(tmp_path, zygote) as daemon:
        one = await daemon.run()
        await daemon.exec("web")
        await daemon.start(exec_id="web")
        one.exit("web", 4)
        task = daemon.tasks.find(NS, "web")
        assert (task.init.status, task.execs["web"].status) == (Status.RUNNING, Status.STOPPED)


async def test_cold_start_without_zygote(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        zygote.available = False
        with pytest.raises(ApiError):  # the scripted program prints no address
            await daemon.create()
        assert daemon.programs.commands == ["start", "delete"]
        assert daemon.left() == []


async def test_unresponsive_shim_is_noticed_and_forgiven(
    tmp_path: Path, zygote: ScriptedZygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyctrd.runtime.tasks.CALL_TIMEOUT", 0.05)
    async with engine(tmp_path, zygote) as daemon:
        one = await daemon.run()
        await daemon.run("other")
        one.script["Pause"].append(Hang)
        one.script["Connect"].append(Hang)
        with pytest.raises(ApiError, match="the shim did not answer"):
            await daemon.tasks.pause(NS, "web")
        task = daemon.tasks.find(NS, "web")
        assert task.unresponsive_since is not None
        assert daemon.tasks.find(NS, "other").unresponsive_since is None
        assert task.init.status is Status.RUNNING
        await until(lambda: one.holding == ["Pause", "Connect"])
        one.wake()
        await until(lambda: task.unresponsive_since is None)
        assert daemon.tasks.find(NS, "web").init.status is Status.PAUSED


async def test_events_are_taken_in_once(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        one = await daemon.run()
        one.exit("", 1)
        one.sequence -= 1
        one.publish("/tasks/exit", events.TaskExit(container_id="web", id="web", exit_status=2))
        assert daemon.published.topics.count("/tasks/exit") == 1
        assert (await daemon.tasks.wait(NS, "web", "")).exit_status == 1
