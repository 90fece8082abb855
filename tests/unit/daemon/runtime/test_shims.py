"""Shims found and ended, with the lock and the pid of a process of ours."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctrd.runtime.bundle import Bundle, Bundles, Manifest
from pyctrd.runtime.programs import Endpoints
from pyctrd.runtime.shims import Shims
from support.runtime_engine import ScriptedPrograms, until
from support.scripted_shim import ScriptedZygote

_HOLDER = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"


class _Zygote(ScriptedZygote):
    """May have a request under way."""

    asked = False

    @property
    def unanswered(self) -> bool:
        return self.asked


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundles(tmp_path).create(Manifest("default", "web", "r", "abc", 1), b"{}")


@pytest.fixture
def holder(bundle: Bundle) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the bundle's lock and is named in it as its shim."""
    command = [sys.executable, "-c", _HOLDER, str(bundle.path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (bundle.path / "shim.json").write_text(json.dumps({"pid": process.pid, "address": "unix:///nowhere"}))
        yield process
        process.kill()


def shims(tmp_path: Path, zygote: ScriptedZygote) -> Shims:
    return Shims(Endpoints(tmp_path, "/g", "/t", "info"), zygote, ScriptedPrograms(), lambda _request: b"")


async def test_a_shim_is_killed(tmp_path: Path, bundle: Bundle, holder: "subprocess.Popen[bytes]") -> None:
    await shims(tmp_path, ScriptedZygote()).kill(bundle)
    assert holder.wait() == -9


async def test_none_is_killed_while_it_may_be_about_to_become_another(
    tmp_path: Path, bundle: Bundle, holder: "subprocess.Popen[bytes]"
) -> None:
    zygote = _Zygote()
    zygote.asked = True
    async with asyncio.TaskGroup() as group:
        group.create_task(shims(tmp_path, zygote).kill(bundle))
        for _ in range(3):
            await asyncio.sleep(0.02)
            assert holder.poll() is None
        zygote.asked = False
    await until(lambda: holder.poll() == -9)
