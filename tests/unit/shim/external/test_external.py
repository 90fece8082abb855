"""What is read of another runtime: its containers' cgroups, its log, its words, its record."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyctr_shim.external import cgroup, command, container, remains
from pyctr_shim.external.command import Result
from pyctr_shim.external.container import _release as release
from pyctr_shim.oci.cgroups import Hierarchies
from pyctr_shim.oci.errors import OciError

V1 = Hierarchies({"memory": "/m", "pids": "/p", "freezer": "/f"}, "")
HYBRID = Hierarchies(V1.controllers, "/u")
V2 = Hierarchies({}, "/u")


def placed(path: str, unified: str = "/shims") -> dict[str, str]:
    return {"memory": path, "pids": path, "freezer": path, "name=systemd": path, "": unified}


@pytest.mark.parametrize(
    ("hierarchies", "theirs", "expected"),
    [
        (V1, placed("/ns/c"), "/ns/c"),
        (V1, placed("/shims/c"), "/shims/c"),  # made relative to the shim's
        (HYBRID, placed("/ns/c", "/ns/c"), "/ns/c"),
        (HYBRID, placed("/shims", "/ns/c"), "unified:/ns/c"),  # a runtime that sees version 2 alone
        (V2, {"": "/ns/c"}, "/ns/c"),
        # Where the shim itself is, or what contains that: whoever ended everything there would end shims.
        (V1, placed("/shims"), ""),
        (V1, placed("/"), ""),
        (HYBRID, placed("/shims", "/"), ""),
        (V2, {"": "/shims"}, ""),
        (V2, {"": "/"}, ""),
        (V2, {}, ""),
        (V2, {"": "/shims-of-others"}, "/shims-of-others"),
    ],
)
def test_a_cgroup_is_a_containers_if_no_shim_is_in_it(
    hierarchies: Hierarchies, theirs: dict[str, str], expected: str
) -> None:
    assert cgroup.choose(hierarchies, theirs, placed("/shims")) == expected


def test_a_container_without_a_cgroup_is_said_to_have_none() -> None:
    nowhere = cgroup.cgroup_of("")
    nowhere.kill()
    nowhere.remove()
    assert (nowhere.oom_kills(), nowhere.oom_watch(), nowhere.is_paused()) == (0, None, False)
    for call in (nowhere.pids, nowhere.metrics):
        with pytest.raises(OciError, match="no cgroup of its own"):
            call()


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ('{"level":"error","msg":"first"}\n{"level":"warning","msg":"then"}\n', "first"),
        ('{"level":"error","msg":"first"}\n{"level":"error","msg":" last \\n"}\nrubbish\n[1]\n"text"\n', "last"),
        ('{"level":"fatal","msg":"dead"}', "dead"),
        ('{"level":"error"}\n', ""),
        ('{"level":"info","msg":"fine"}\n', ""),
        ("x" * 200_000 + '\n{"level":"error","msg":"' + "y" * 9000 + '"}', "y" * command.KEPT),
        ("", ""),
        (None, ""),
    ],
)
def test_the_last_error_of_a_log(tmp_path: Path, log: str | None, expected: str) -> None:
    if log is not None:
        (tmp_path / "log").write_text(log)
    assert command.last_error(str(tmp_path / "log")) == expected


def test_a_log_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text('{"level":"error","msg":"secret"}')
    (tmp_path / "log").symlink_to("secret")
    assert command.last_error(str(tmp_path / "log")) == ""


@pytest.mark.parametrize(
    ("result", "logged", "expected"),
    [
        (Result(None, "words"), "logged", "runc start: no end after 2.5 s: killed"),
        (Result(1, "words"), "logged", "logged"),
        (Result(1, "words"), "", "runc start: exit status 1: words"),
        (Result(-11, ""), "", "runc start: killed by signal 11"),
    ],
)
def test_a_failure_is_one_line(result: Result, logged: str, expected: str) -> None:
    assert command.explain("runc", "start", result, 2.5, logged) == expected


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = remains.Record("c", "/usr/bin/crun", "/r", 3.5, True, "/b/rootfs", "/ns/c", "/ns/c", 7)
    assert remains.read(str(tmp_path)) is None
    remains.write(str(tmp_path), record)
    assert remains.read(str(tmp_path)) == record
    assert record.name == "crun"
    assert record.arguments("/l") == ["--root", "/r", "--log", "/l", "--log-format", "json", "--systemd-cgroup"]
    remains.forget(str(tmp_path))
    assert remains.read(str(tmp_path)) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"version": 2}), json.dumps({"version": 1, "id": "c"})])
def test_a_damaged_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / remains.NAME).write_text(text)
    with pytest.raises(OciError, match=r"runtime\.json"):
        remains.read(str(tmp_path))


def test_versions_of_the_specification_are_compared_by_what_they_have() -> None:
    assert release("1.0.2-dev") < release("1.2.0") < release("1.3.0")
    assert release("1.2.0") == release("1.2.1")


@pytest.mark.parametrize(("parent", "seen", "is_found"), [(0, [False, True], True), (1, [False], False)])
def test_a_process_may_be_reaped_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parent: int, seen: list[bool], is_found: bool
) -> None:
    """Then it has no parent any more, and the keeper tells of it; one with another parent is a stranger."""

    async def wait(*_: object) -> bool:
        return False

    looks = iter(seen)
    around: Any = SimpleNamespace(
        loop=SimpleNamespace(wait=wait), reaper=SimpleNamespace(has_seen=lambda _pid: next(looks)), keeper_pid=-1
    )
    record: Any = SimpleNamespace(name="runc")
    monkeypatch.setattr(container, "_parent_of", lambda _pid: parent)
    (tmp_path / "pid").write_text(str(os.getpid()))
    external = container.External(around, str(tmp_path), record, own_pid_namespace=True)
    finding = external._find("exec", str(tmp_path / "pid"))

    if is_found:
        with pytest.raises(StopIteration) as end:
            finding.send(None)
        assert end.value.value == (os.getpid(), None)
    else:
        with pytest.raises(OciError, match="none of its making"):
            finding.send(None)
