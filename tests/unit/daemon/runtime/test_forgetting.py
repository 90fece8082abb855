"""Ended execs of our command line go after a while, others' stay."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pyctr_wire import exec_ids
from pyctr_wire.errors import NotFound, UnknownError
from pyctrd.runtime.forgetting import Forgetting
from support.runtime_engine import NS, Engine, engine
from support.scripted_shim import ScriptedShim, ScriptedZygote

OURS, RUNS, OTHERS = f"{exec_ids.OURS}1", f"{exec_ids.OURS}2", "1"


@pytest.fixture
async def zygote() -> AsyncIterator[ScriptedZygote]:
    scripted = ScriptedZygote()
    yield scripted
    await scripted.close()


async def run_execs(daemon: Engine) -> ScriptedShim:
    """Start three, of which ours and the other's end."""
    shim = await daemon.run()
    for exec_id in (OURS, RUNS, OTHERS):
        await daemon.exec(exec_id)
        await daemon.start(exec_id=exec_id)
    for exec_id in (OURS, OTHERS):
        shim.exit(exec_id, 3)
        await daemon.tasks.wait(NS, "web", exec_id)
    return shim


def known(daemon: Engine) -> set[str]:
    return set(daemon.tasks.find(NS, "web").execs)


async def test_an_ended_one_goes_at_the_second_look(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        shim = await run_execs(daemon)
        forgetting = Forgetting(daemon.tasks)
        await forgetting.look()
        assert known(daemon) == {OURS, RUNS, OTHERS}
        await forgetting.look()
        assert known(daemon) == {RUNS, OTHERS}
        assert set(daemon.tasks.find(NS, "web").bundle.execs()) == {RUNS, OTHERS}
        assert set(daemon.tasks.find(NS, "web").bundle.exits()) == {OTHERS}
        with pytest.raises(NotFound):
            await daemon.tasks.wait(NS, "web", OURS)

        shim.exit(RUNS, 0)
        await daemon.tasks.wait(NS, "web", RUNS)
        await forgetting.look()
        assert known(daemon) == {RUNS, OTHERS}
        await forgetting.look()
        await forgetting.look()
        assert known(daemon) == {OTHERS}


async def test_the_next_daemon_goes_on(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as old:
        shim = await run_execs(old)
    async with engine(tmp_path, zygote) as new:
        await new.recovery.run()
        forgetting = Forgetting(new.tasks)
        shim.exit(RUNS, 4)  # it ends under a daemon that did not start it
        await new.tasks.wait(NS, "web", RUNS)
        await forgetting.look()
        assert known(new) == {OURS, RUNS, OTHERS}
        await forgetting.look()
        assert known(new) == {OTHERS}


async def test_what_cannot_be_deleted_now_is_tried_again(tmp_path: Path, zygote: ScriptedZygote) -> None:
    async with engine(tmp_path, zygote) as daemon:
        shim = await run_execs(daemon)
        shim.script["Delete"].append(UnknownError("not now"))
        forgetting = Forgetting(daemon.tasks)
        for _ in range(2):
            await forgetting.look()
        assert known(daemon) == {OURS, RUNS, OTHERS}
        await forgetting.look()
        assert known(daemon) == {RUNS, OTHERS}
