"""A snapshotter that another program keeps: what it is asked, and what is left when it fails."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from pyctr_wire.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from pyctr_wire.containerd.types import mount_pb2
from pyctr_wire.errors import AlreadyExists, ApiError, FailedPrecondition, NotFound, Unavailable
from pyctrd.core.snapshots import TARGET_LABEL, Kind
from pyctrd.snapshots.manager import SnapshotManager
from pyctrd.snapshots.remote import RemoteSnapshots
from support.stores import NS, Stores, names

CHAIN = "sha256:aaaa"


class Program:
    """A program that keeps snapshots, in memory; `fails` is raised by its next call."""

    what = "snapshotter far"

    def __init__(self) -> None:
        self.snapshots: dict[str, pb.Info] = {}
        self.ready: pb.Info | None = None
        self.fails: ApiError | None = None
        self.failing = ""

    def call(self, method: str, request: Any, reply: type[Message]) -> Any:
        name = method.rpartition("/")[2]
        assert request.snapshotter == "theirs"
        if self.fails is not None and self.failing in ("", name):
            raise self.fails
        result: Any = getattr(self, name)(request)
        return result

    def receive(self, method: str, request: Any, reply: type[Message]) -> Iterator[Any]:
        known = [*self.snapshots.values(), *([self.ready] if self.ready is not None else [])]
        yield pb.ListSnapshotsResponse(info=known)

    def Prepare(self, request: pb.PrepareSnapshotRequest) -> pb.PrepareSnapshotResponse:
        if self.ready is not None and request.labels.get(TARGET_LABEL):
            raise AlreadyExists("target")
        self._add(request.key, request.parent, pb.ACTIVE, dict(request.labels))
        return pb.PrepareSnapshotResponse(mounts=[mount_pb2.Mount(type="bind", source=f"/far/{request.key}")])

    def Commit(self, request: pb.CommitSnapshotRequest) -> None:
        if request.key not in self.snapshots:
            raise NotFound(request.key)
        old = self.snapshots.pop(request.key)
        self._add(request.name, old.parent, pb.COMMITTED, dict(request.labels))

    def Stat(self, request: pb.StatSnapshotRequest) -> pb.StatSnapshotResponse:
        if request.key not in self.snapshots:
            raise NotFound(request.key)
        return pb.StatSnapshotResponse(info=self.snapshots[request.key])

    def Remove(self, request: pb.RemoveSnapshotRequest) -> None:
        if any(one.parent == request.key for one in self.snapshots.values()):
            raise FailedPrecondition("it has children")
        if self.snapshots.pop(request.key, None) is None:
            raise NotFound(request.key)

    def _add(self, name: str, parent: str, kind: int, labels: dict[str, str]) -> None:
        assert labels.pop("containerd.io/gc.root")
        self.snapshots[name] = pb.Info(name=name, parent=parent, kind=kind, labels=labels)  # type: ignore[arg-type]


@pytest.fixture
def program() -> Program:
    return Program()


@pytest.fixture
def far(stores: Stores, program: Program, tmp_path: Path) -> Any:
    driver = RemoteSnapshots("far", program, "theirs")
    return SnapshotManager(tmp_path / "with-remote", stores.database, (driver,)).named("far")


def test_the_program_sees_names_of_ours_and_labels_of_its_own(far: Any, program: Program) -> None:
    far.prepare(NS, "key", labels={"containerd.io/snapshot/remote/x": "1", "private": "2"})
    far.commit(NS, "base", "key", {"more": "3"})
    mounts = far.prepare(NS, "key", "base")

    base, key = program.snapshots.values()
    assert base.name.startswith(f"{NS}/")
    assert base.name.endswith("/base")
    assert (key.parent, base.kind) == (base.name, pb.COMMITTED)
    assert mounts[0].source == f"/far/{key.name}"
    assert far.stat(NS, "base").labels == {"more": "3"}


def test_what_it_has_ready_is_known_at_once(far: Any, program: Program) -> None:
    """A snapshotter that needs no layers says so when it is asked to prepare one."""
    program.ready = pb.Info(name="theirs-alone", kind=pb.COMMITTED, labels={TARGET_LABEL: CHAIN})

    for ns in (NS, "other"):
        with pytest.raises(AlreadyExists, match=CHAIN):
            far.prepare(ns, "extract", labels={TARGET_LABEL: CHAIN})
        assert far.stat(ns, CHAIN).kind is Kind.COMMITTED
    program.snapshots["theirs-alone"], program.ready = program.ready, None
    far.prepare(NS, "box", CHAIN)

    far.remove(NS, "box")
    far.remove(NS, CHAIN)
    far.cleanup()
    assert list(program.snapshots) == ["theirs-alone"]  # the other namespace has it still
    far.remove("other", CHAIN)
    far.cleanup()
    assert program.snapshots == {}


@pytest.mark.parametrize("failing", ["Prepare", "Commit"])
def test_a_call_that_fails_leaves_what_was(far: Any, program: Program, failing: str) -> None:
    far.prepare(NS, "key")
    program.fails, program.failing = Unavailable("gone"), failing
    with pytest.raises(Unavailable):
        far.prepare(NS, "second") if failing == "Prepare" else far.commit(NS, "base", "key")
    program.fails = None

    far.commit(NS, "base", "key")

    assert names(far)[0] == "base"
    for name in names(far):
        far.remove(NS, name)
    far.cleanup()
    assert program.snapshots == {}
    assert not list(far._directories.ids())


def test_a_commit_that_a_killed_daemon_has_not_noted_is_done_when_it_is_asked_for_again(
    far: Any, program: Program
) -> None:
    far.prepare(NS, "key")

    def noted(*_: object, **__: object) -> None:
        raise OSError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyctrd.snapshots.snapshotter.rows.commit", noted)
        with pytest.raises(OSError, match="killed"):
            far.commit(NS, "base", "key")

    far.commit(NS, "base", "key")

    assert far.stat(NS, "base").kind is Kind.COMMITTED
    far.prepare(NS, "above", "base")


def test_what_cannot_be_removed_now_is_removed_later(far: Any, program: Program) -> None:
    far.prepare(NS, "key")
    far.remove(NS, "key")
    program.fails = Unavailable("gone")
    assert far.cleanup() == []
    program.fails = None

    assert len(far.cleanup()) == 1
    assert program.snapshots == {}
