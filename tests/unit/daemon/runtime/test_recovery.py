"""Lost shims and restarted daemons, on scripted shims."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pyctr_wire.containerd.events import task_pb2 as events
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as shim
from pyctr_wire.errors import AlreadyExists, ApiError, NotFound
from pyctrd.core.tasks import Status
from pyctrd.runtime import recovery
from support.runtime_engine import NS, Engine, engine, until
from support.scripted_shim import Die, Hang, ScriptedZygote


@pytest.fixture
async def zygote() -> AsyncIterator[ScriptedZygote]:
    scripted = ScriptedZygote()
    yield scripted
    await scripted.close()


def exit_events(daemon: Engine) -> list[tuple[str, int]]:
    """Id and status of the exits that were told, in order."""
    told = [
        events.TaskExit.FromString(event.value) for topic, event in daemon.published.events if topic == "/tasks/exit"
    ]
    return [(event.id, event.exit_status) for event in told]


async def test_lost_shim_is_buried(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        one = await daemon.run()
        for exec_id, status in (("ended", 3), ("running", None), ("waiting", None)):
            await daemon.exec(exec_id)
            if exec_id != "waiting":
                await daemon.start(exec_id=exec_id)
            if status is not None:
                one.exit(exec_id, status)
        waiting = asyncio.ensure_future(daemon.tasks.wait(NS, "web", ""))
        one.die()

        assert (await waiting).exit_status == 255
        assert daemon.programs.commands == ["delete"]
        assert exit_events(daemon) == [("ended", 3), ("running", 255), ("web", 255)]
        ended = daemon.tasks.find(NS, "web").init.exit
        assert ended is not None
        assert ended.reason == "shim lost"
        with pytest.raises(NotFound, match="process already finished"):
            await daemon.tasks.kill(NS, shim.KillRequest(id="web", signal=9))
        assert (await daemon.lifecycle.delete(NS, "web")).exit.exit_status == 255
        await until(lambda: daemon.left() == [])
        assert daemon.published.topics[-1] == "/tasks/delete"


async def test_shim_lost_after_the_exit_was_recorded(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        one = await daemon.run()
        one.record("", 4000, 42)
        one.die()
        assert (await daemon.tasks.wait(NS, "web", "")).exit_status == 42
        assert exit_events(daemon) == [("web", 42)]


@pytest.mark.parametrize("method", ["Start", "Delete"])
async def test_shim_lost_in_a_call(tmp_path: Path, zygote: ScriptedZygote, method: str) -> None:
    async with engine(tmp_path, zygote) as daemon:
        await daemon.create()
        zygote.shims["web"].script[method].append(Die)
        if method == "Start":
            with pytest.raises(ApiError):
                await daemon.start()
        assert (await daemon.lifecycle.delete(NS, "web")).exit.exit_status == 255
        await until(lambda: daemon.left() == [])
        assert exit_events(daemon) == [("web", 255)]


async def test_connection_lost_and_found(
    tmp_path: Path, zygote: ScriptedZygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyctrd.runtime.burial.LAST_WORDS", 0.05)
    async with engine(tmp_path, zygote) as daemon:
        one = await daemon.run()
        task = daemon.tasks.find(NS, "web")
        before = task.shim
        one.hang_up()
        await until(lambda: task.shim not in (None, before))
        one.exit("", 5)
        assert (await daemon.lifecycle.delete(NS, "web")).exit.exit_status == 5
        assert daemon.programs.commands == []


async def test_clean_up_that_fails_is_tried_again_by_delete(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        one = await daemon.run()
        daemon.programs.returncodes = [1]
        one.die()
        await until(lambda: daemon.programs.commands == ["delete"])
        await until(lambda: not daemon.operations.running())
        assert daemon.operations.about("web")[0].name == "bury"
        assert (await daemon.lifecycle.delete(NS, "web")).exit.exit_status == 255


async def test_adoption(tmp_path: Path, zygote: ScriptedZygote) -> None:
    """A new daemon knows each task's state, and learns of execs when it is asked."""
    async with engine(tmp_path, zygote) as old:
        await old.create("created")
        (await old.run("stopped")).exit("", 139)
        running = await old.run("running")
        await old.exec("one", id="running")
        await old.exec("two", id="running")
        await old.start("running", "one")
        await old.start("running", "two")
        running.exit("two", 7)
        await old.run("dead")
        await old.exec("sh", id="dead")
    running.exit("one", 137)
    zygote.shims["dead"].die()

    async with engine(tmp_path, zygote) as new:
        await new.recovery.run()
        await until(lambda: all(task.init.exit or task.shim for task in new.tasks.table))
        states = {task.id: task.init.status for task in new.tasks.table}
        assert states == {
            "created": Status.CREATED,
            "stopped": Status.STOPPED,
            "running": Status.RUNNING,
            "dead": Status.STOPPED,
        }
        assert (await new.tasks.wait(NS, "stopped", "")).exit_status == 139
        assert (await new.tasks.wait(NS, "running", "one")).exit_status == 137
        assert (await new.tasks.wait(NS, "running", "two")).exit_status == 7
        assert (await new.tasks.wait(NS, "dead", "")).exit_status == 255
        assert (await new.tasks.wait(NS, "dead", "sh")).exit_status == 255
        assert exit_events(new) == [("sh", 255), ("dead", 255)]
        with pytest.raises(NotFound):
            await new.tasks.wait(NS, "running", "three")
        await new.start("created")


async def test_resting(tmp_path: Path, zygote: ScriptedZygote, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without calls there is no connection, the next call makes one, and the shim's loss is seen all the same."""
    monkeypatch.setattr("pyctrd.runtime.shim_client.REST_AFTER", 0.01)
    async with engine(tmp_path, zygote) as daemon:
        one = await daemon.run()
        for _ in range(3):
            await until(lambda: not one.connected)
            await asyncio.gather(*(daemon.exec(f"e{len(one.calls)}-{number}") for number in range(3)))
        await until(lambda: not one.connected)
        one.exit("", 3)
        assert (await daemon.tasks.wait(NS, "web", "")).exit_status == 3
        assert (await daemon.lifecycle.delete(NS, "web")).exit.exit_status == 3
        two = await daemon.run("other")
        await until(lambda: not two.connected)
        two.die()
        assert (await daemon.tasks.wait(NS, "other", "")).exit_status == 255
        await until(lambda: daemon.programs.commands == ["delete"])


async def test_calls_while_the_connection_is_being_closed(
    tmp_path: Path, zygote: ScriptedZygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyctrd.runtime.shim_client.REST_AFTER", 0)
    async with engine(tmp_path, zygote) as daemon:
        await daemon.run()
        for number in range(100):
            await daemon.exec(f"e{number}")
            for _ in range(number % 4):
                await asyncio.sleep(0)


async def test_sleeping_shims_are_not_woken(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as old:
        one = await old.run()
        for exec_id in ("gone", "runs"):
            await old.exec(exec_id)
            await old.start(exec_id=exec_id)
    (one.bundle / "asleep").write_text('{"": [4000, "paused"], "runs": [4002, "running"], "gone": [4001, "created"]}')
    calls = list(one.calls)
    async with engine(tmp_path, zygote) as new:
        await new.recovery.run()
        task = new.tasks.find(NS, "web")
        assert (task.init.status, task.init.pid) == (Status.PAUSED, 4000)
        assert (task.execs["runs"].status, task.execs["runs"].pid) == (Status.RUNNING, 4002)
        assert task.execs["gone"].status is Status.CREATED
        assert one.calls == calls
        assert not one.connected
        one.exit("runs", 5)
        assert (await new.tasks.wait(NS, "web", "runs")).exit_status == 5
        await new.tasks.kill(NS, shim.KillRequest(id="web", signal=9))
        assert one.calls == [*calls, "Kill"]
        assert (await new.tasks.wait(NS, "web", "")).exit_status == 137


@pytest.mark.parametrize("text", ['{"": [4000, "stopped"]}', "{}", "[]", '{"": "running"}', '{"": [1, "odd"]}', "not"])
async def test_sleeping_shims_that_know_more_are_asked(tmp_path: Path, zygote: ScriptedZygote, text: str) -> None:
    """An end that could not be recorded, or words that say nothing."""
    async with engine(tmp_path, zygote) as old:
        one = await old.run()
    (one.bundle / "asleep").write_text(text)
    async with engine(tmp_path, zygote) as new:
        await new.recovery.run()
        assert one.calls[-1] == "State"
        assert new.tasks.find(NS, "web").init.status is Status.RUNNING


async def test_exec_that_runs_on_is_found(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as old:
        one = await old.run()
        await old.exec("sh")
        await old.start(exec_id="sh")
    async with engine(tmp_path, zygote) as new:
        await new.recovery.run()
        waiting = asyncio.ensure_future(new.tasks.wait(NS, "web", "sh"))
        await until(lambda: one.calls[-1] == "State")
        await asyncio.sleep(0.01)
        one.exit("sh", 6)
        assert (await waiting).exit_status == 6


async def test_create_retried_after_a_restart(tmp_path: Path, zygote: ScriptedZygote) -> None:
    """The answer was lost with the daemon: the same call gets it from the next one, another call does not."""
    async with engine(tmp_path, zygote) as old:
        await old.create(stdout="/out")
    async with engine(tmp_path, zygote) as new:
        await new.recovery.run()
        with pytest.raises(AlreadyExists):
            await new.create(stdout="/elsewhere")
        assert await new.create(stdout="/out") == 4000
        with pytest.raises(AlreadyExists):
            await new.create(stdout="/out")


@pytest.mark.parametrize("alive", [True, False])
async def test_unfinished_create_is_undone(tmp_path: Path, zygote: ScriptedZygote, alive: bool) -> None:
    zygote.prepare = lambda one: one.script["Create"].append(Hang)
    async with engine(tmp_path, zygote) as old:
        call = asyncio.ensure_future(old.create())
        await until(lambda: "web" in zygote.shims and "Create" in zygote.shims["web"].calls)
    call.cancel()
    one = zygote.shims["web"]
    if not alive:
        one.die()
    async with engine(tmp_path, zygote) as new:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pyctrd.runtime.shims._kill", lambda _: one.kill())
            await new.recovery.run()
            await until(lambda: new.left() == [])
        assert not one.alive
        zygote.prepare = lambda _: None
        await new.create()


async def test_delete_interrupted_before_its_answer(tmp_path: Path, zygote: ScriptedZygote) -> None:
    """The shim had deleted the container, or even the bundle had its new name: the retry gets the real status."""
    async with engine(tmp_path, zygote) as old:
        for id in ("early", "late"):
            one = await old.run(id)
            one.exit("", 11)
            del one.processes[""]
        old.bundles.retire(old.tasks.find(NS, "late").bundle)
    async with engine(tmp_path, zygote) as new:
        await new.recovery.run()
        for id in ("early", "late"):
            assert (await new.lifecycle.delete(NS, id)).exit.exit_status == 11
            with pytest.raises(ApiError, match="not found"):
                await new.lifecycle.delete(NS, id)
        await until(lambda: new.left() == [] and not any(one.alive for one in zygote.shims.values()))


async def test_buried_task_stays_buried(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as old:
        (await old.run()).die()
        await old.tasks.wait(NS, "web", "")
        await until(lambda: not old.operations.running())
    async with engine(tmp_path, zygote) as new:
        await new.recovery.run()
        assert new.programs.commands == []
        assert new.published.topics == []
        assert (await new.lifecycle.delete(NS, "web")).exit.exit_status == 255
        await until(lambda: new.left() == [])


async def test_rubbish_is_swept(tmp_path: Path, zygote: ScriptedZygote) -> None:
    for name in ("tasks/default/.web.1234", "tasks/default/empty"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "tasks/default/.web.1234/config.json").write_text("{")
    async with engine(tmp_path, zygote) as new:
        await new.recovery.run()
        assert new.left() == []


async def test_stopped_shims_delay_nobody(
    tmp_path: Path, zygote: ScriptedZygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recovery ends without them; what their files tell is served meanwhile, and what they say later is believed."""
    monkeypatch.setattr(recovery, "PATIENCE", 0.05)
    async with engine(tmp_path, zygote) as old:
        for number in range(20):
            await old.run(f"c{number}")
    for number in range(5):
        zygote.shims[f"c{number}"].script["State"].append(Hang)
    async with engine(tmp_path, zygote) as new:
        async with asyncio.timeout(5):
            await new.recovery.run()
        assert len(new.tasks.table) == 20
        assert {task.init.status for task in new.tasks.table} == {Status.RUNNING}
        zygote.shims["c0"].exit("", 3)
        zygote.shims["c0"].wake()
        assert (await new.tasks.wait(NS, "c0", "")).exit_status == 3


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("exits/init.json", "{}"),
        ("exits/init.json", '{"exec_id": "", "pid": 1, "exit_status": 0, "exited_at_ns": 1e300}'),
        ("exits/init.json", "[" * 100_000),
        ("execs/sh.json", '{"stdin": 5}'),
        ("execs/sh.json", '{"odd": ""}'),
        ("state.json", '{"pid": "odd"}'),
        ("shim.json", "{}"),
    ],
)
async def test_a_damaged_record_ends_nothing(tmp_path: Path, zygote: ScriptedZygote, name: str, text: str) -> None:
    """Neither the next daemon, nor the container."""
    async with engine(tmp_path, zygote) as old:
        one = await old.run()
        await old.run("other")
    (one.bundle / name).parent.mkdir(exist_ok=True)
    (one.bundle / name).write_text(text)
    async with engine(tmp_path, zygote) as new:
        await new.recovery.run()
        assert {task.id: task.init.status for task in new.tasks.table} == dict.fromkeys(
            ("web", "other"), Status.RUNNING
        )
        assert one.alive


async def test_a_copy_of_a_bundle_is_none(tmp_path: Path, zygote: ScriptedZygote) -> None:
    """Nobody holds its lock, but what its records name is the container of the original."""
    async with engine(tmp_path, zygote) as old:
        one = await old.run()
    for name in ("a", "b", "c", "x", "y", "z"):  # in whatever order they are found
        shutil.copytree(one.bundle, one.bundle.with_name(name))
    async with engine(tmp_path, zygote) as new:
        await new.recovery.run()
        assert new.programs.commands == []
        assert [(task.bundle.path, task.init.status) for task in new.tasks.table] == [(one.bundle, Status.RUNNING)]


async def test_a_damaged_event_in_the_spool_of_a_lost_shim(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        one = await daemon.run()
        (one.bundle / "spool").mkdir()
        for number in ("00000000000000000009", "²"):
            (one.bundle / "spool" / number).write_bytes(b"\xff")
        one.die()
        assert (await daemon.tasks.wait(NS, "web", "")).exit_status == 255
        await until(lambda: not daemon.operations.running())


async def test_an_exec_is_deleted_while_its_state_is_asked_for(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        one = await daemon.run()
        await daemon.exec("sh")
        one.script["State"].append(Hang)
        learning = asyncio.ensure_future(daemon.tasks.refresh(daemon.tasks.find(NS, "web")))
        await until(lambda: one.holding == ["State"])
        await daemon.tasks.delete_process(NS, "web", "sh")
        one.wake()
        await learning
