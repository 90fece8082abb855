"""Bundles appear whole and disappear at once."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pyctr_wire.errors import AlreadyExists
from pyctrd.core.tasks import Exit
from pyctrd.runtime.bundle import Bundles, ExitRecord, Manifest, StdioNames

MANIFEST = Manifest("default", "web", "io.containerd.runc.v2", "abc", 1, stdout="/out", request="digest")


def test_created_bundle_is_found_again(tmp_path: Path) -> None:
    bundle = Bundles(tmp_path).create(MANIFEST, b'{"b": 1, "a": 2}')
    assert (bundle.path / "config.json").read_bytes() == b'{"b": 1, "a": 2}'
    assert bundle.path.stat().st_mode & 0o777 == 0o700
    whole, retired, rubbish = Bundles(tmp_path).list()
    assert (whole, retired, rubbish) == ([bundle], [], [])


def test_id_can_be_taken_once(tmp_path: Path) -> None:
    bundles = Bundles(tmp_path)
    bundle = bundles.create(MANIFEST, b"{}")
    with pytest.raises(AlreadyExists):
        bundles.create(MANIFEST, b"{}")
    assert os.listdir(bundle.path.parent) == ["web"]


def test_retired_bundle_frees_the_id_and_can_be_removed(tmp_path: Path) -> None:
    bundles = Bundles(tmp_path)
    bundle = bundles.create(MANIFEST, b"{}")
    (bundle.path / "exits").mkdir()
    (bundle.path / "exits/init.json").write_text("{}")
    (bundle.path / "rootfs").mkdir()
    retired = bundles.retire(bundle)
    bundles.create(Manifest("default", "web", "r", "def", 2), b"{}")
    assert [one.path for one in bundles.list()[1]] == [retired.path]
    bundles.remove(retired.path)
    assert os.listdir(bundle.path.parent) == ["web"]


@pytest.mark.parametrize("name", ["rootfs", "attached"])
def test_files_below_a_root_are_not_removed(tmp_path: Path, name: str) -> None:
    bundles = Bundles(tmp_path)
    bundle = bundles.create(MANIFEST, b"{}")
    (bundle.path / name).mkdir()
    (bundle.path / name / "precious").touch()
    with pytest.raises(OSError, match="not empty"):
        bundles.remove(bundle.path)
    assert (bundle.path / name / "precious").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": 2}', '{"version": 1, "strange": 1}'])
def test_directory_without_a_manifest_of_ours_is_rubbish(tmp_path: Path, content: str) -> None:
    bundles = Bundles(tmp_path)
    path = tmp_path / "tasks/default/web"
    path.mkdir(parents=True)
    (path / "task.json").write_text(content)
    assert bundles.list() == ([], [], [path])


def test_exit_records(tmp_path: Path) -> None:
    bundle = Bundles(tmp_path).create(MANIFEST, b"{}")
    assert bundle.exits() == {}
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    ended = Exit(137, at, signal=9, oom_killed=True, reason="oom")
    bundle.write_exit("", 10, ended)
    bundle.write_exit("sh", 11, Exit(1, at))
    (bundle.path / "exits/.half.json").write_text("{")
    assert bundle.exits() == {"": ExitRecord(10, ended), "sh": ExitRecord(11, Exit(1, at))}


def test_execs_are_noted(tmp_path: Path) -> None:
    bundle = Bundles(tmp_path).create(MANIFEST, b"{}")
    assert bundle.execs() == {}
    bundle.write_exec("a.b", StdioNames(stdout="/x", terminal=True))
    bundle.write_exec("c", StdioNames())
    bundle.forget_exec("c")
    bundle.forget_exec("never")
    assert bundle.execs() == {"a.b": StdioNames(stdout="/x", terminal=True)}


def test_a_forgotten_exec_has_no_record_either(tmp_path: Path) -> None:
    """But init keeps its own, also if an exec is called "init"."""
    bundle = Bundles(tmp_path).create(MANIFEST, b"{}")
    ended = Exit(7, datetime(2026, 1, 2, tzinfo=UTC))
    for exec_id in ("", "sh", "init"):
        bundle.write_exec(exec_id or "noted", StdioNames())
        bundle.write_exit(exec_id, 10, ended)
    assert bundle.exit_of("init") == bundle.exit_of("") == ExitRecord(10, ended)
    bundle.forget_exec("noted")
    bundle.forget_exec("sh")
    bundle.forget_exec("init")
    assert bundle.execs() == {}
    assert bundle.exits() == {"": ExitRecord(10, ended)}


def test_spool_is_read_in_order(tmp_path: Path) -> None:
    bundle = Bundles(tmp_path).create(MANIFEST, b"{}")
    (bundle.path / "spool").mkdir()
    for number in (10, 9, 100):
        (bundle.path / f"spool/{number:020}").write_bytes(b"%d" % number)
    (bundle.path / "spool/.00000000000000000101").write_bytes(b"half")
    assert list(bundle.spooled()) == [(9, b"9"), (10, b"10"), (100, b"100")]


def test_lock_tells_who_lives(tmp_path: Path) -> None:
    bundle = Bundles(tmp_path).create(MANIFEST, b"{}")
    held = bundle.try_lock()
    assert held is not None
    assert bundle.try_lock() is None
    os.close(held)
    free = bundle.try_lock()
    assert free is not None
    os.close(free)


def test_hostile_record_is_not_followed(tmp_path: Path) -> None:
    bundle = Bundles(tmp_path).create(MANIFEST, b"{}")
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps({"pid": 1, "address": "x"}))
    (bundle.path / "shim.json").symlink_to(secret)
    os.mkfifo(bundle.path / "state.json")
    assert bundle.shim() is None
    assert bundle.recorded_pid() == 0


def test_when_it_was_started(tmp_path: Path) -> None:
    """A daemon that dies before it notes that knows when the task was created."""
    bundle = Bundles(tmp_path).create(MANIFEST._replace(created_at_ns=1_000_000_000), b"{}")
    assert bundle.started_at() == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
    before = datetime.now(UTC) - timedelta(seconds=1)  # the file system's clock is coarser
    bundle.mark_started()
    assert before < bundle.started_at() < before + timedelta(seconds=60)
    retired = Bundles(tmp_path).retire(bundle)
    bundle.mark_started()
    assert bundle.started_at().year == 1970
    assert retired.started_at() > before
