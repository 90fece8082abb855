"""Snapshots that another program keeps, such as a snapshotter that fetches layers when they are read.

    <root>/<id>/meta.json    what is known of a snapshot, and what it is called there: see directories.py

The other program sees names that we make of namespace, id and name, so that what belongs to others there is never
touched. The order: our directory, with the names that will be used, then the call, then the row; and row, then call,
then directory when a snapshot goes. So whatever a crash leaves has a directory without a row, and the next collection
removes it there too.

Source: containerd.services.snapshots.v1; containerd docs/PLUGINS.md on proxy plugins.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final, Protocol, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from pyctr_wire.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from pyctr_wire.containerd.types import mount_pb2
from pyctr_wire.errors import AlreadyExists, NotFound
from pyctrd.core.idmaps import Maps
from pyctrd.core.labels import Labels
from pyctrd.core.mounts import Mount
from pyctrd.core.snapshots import TARGET_LABEL, Kind, Usage
from pyctrd.snapshots.directories import Note, read_note, replace_note
from pyctrd.snapshots.driver import Driver

_SERVICE: Final = "/containerd.services.snapshots.v1.Snapshots/"
# What the other program is told of our labels; whatever else stands there is our clients' business.
_TOLD: Final = "containerd.io/snapshot"
# One that collects garbage by itself must not take ours for that.
_KEPT: Final = {"containerd.io/gc.root": "pyctrd"}

Reply = TypeVar("Reply", bound=Message)


class Service(Protocol):
    """The other program."""

    @property
    def what(self) -> str:
        """What it is called in errors."""

    def call(self, method: str, request: Message, reply: type[Reply]) -> Reply: ...
    def receive(self, method: str, request: Message, reply: type[Reply]) -> Iterator[Reply]: ...


class RemoteSnapshots(Driver):
    """One other program's snapshots. Every call may raise Unavailable."""

    can_rebase: ClassVar[bool] = True
    is_remote: ClassVar[bool] = True

    def __init__(self, name: str, service: Service, name_there: str) -> None:
        """Call `service`, where the snapshotter is called `name_there`; clients of ours call it `name`."""
        self.name = name
        self._snapshotter_there = name_there
        self._service = service

    def create(self, directory: Path, parents: Sequence[Path], note: Note) -> Sequence[Mount] | Note:
        """Have a snapshot made, unless the other program has what the label containerd.io/snapshot.ref promises."""
        note = note._replace(remote=f"{note.namespace}/{directory.name}/{note.name}")
        parent = self._note(parents[0]).remote if parents else ""
        replace_note(directory, note)
        told = _told(note.labels)
        try:
            if note.kind == Kind.VIEW:
                view = pb.ViewSnapshotRequest(key=note.remote, parent=parent, labels=told)
                return _mounts(self._call("View", view, pb.ViewSnapshotResponse).mounts)
            prepare = pb.PrepareSnapshotRequest(key=note.remote, parent=parent, labels=told)
            return _mounts(self._call("Prepare", prepare, pb.PrepareSnapshotResponse).mounts)
        except AlreadyExists:
            target = note.labels.get(TARGET_LABEL, "")
            if not target:
                raise
            there = self._ready(target, parent)
            ready = note._replace(
                name=target,
                kind=Kind.COMMITTED,
                labels={**there.labels, **note.labels},
                remote=there.name,
                remote_shared=True,
            )
            replace_note(directory, ready)
            return ready

    def mounts(self, directory: Path, parents: Sequence[Path], kind: Kind) -> Sequence[Mount]:
        """Return the mounts that the other program names."""
        reply = self._call("Mounts", pb.MountsRequest(key=self._uncommitted(directory)), pb.MountsResponse)
        return _mounts(reply.mounts)

    def usage(self, directory: Path, parents: Sequence[Path], kind: Kind) -> Usage:
        """Return what a snapshot adds, as the other program says."""
        key = self._note(directory).remote if kind is Kind.COMMITTED else self._uncommitted(directory)
        reply = self._call("Usage", pb.UsageRequest(key=key), pb.UsageResponse)
        return Usage(reply.size, reply.inodes)

    def kept(self, directory: Path, kind: Kind) -> Path:
        """Return the file that says what it is called there."""
        return directory / "meta.json"

    def give(self, directory: Path, parents: Sequence[Path], maps: Maps) -> None:
        """Leave it to the other program, which has the labels that say so."""

    def commit(self, directory: Path, parents: Sequence[Path], note: Note) -> Note:
        """Have a snapshot frozen. Raises NotFound if the other program does not have it."""
        old = self._note(directory)
        before = old.remote_before or old.remote
        there = f"{note.namespace}/{directory.name}-committed/{note.name}"
        note = note._replace(remote=there, remote_before=before)
        replace_note(directory, note)
        request = pb.CommitSnapshotRequest(name=there, key=before, labels=_told(note.labels))
        if parents and old.parent_id is None:
            request.parent = self._note(parents[0]).remote
        try:
            self._call("Commit", request, Empty)
        except NotFound:
            # Done before, by a daemon that was killed then? If not, this says so.
            self._call("Stat", pb.StatSnapshotRequest(key=there), pb.StatSnapshotResponse)
        return note

    def relabel(self, directory: Path, old: Labels, new: Labels) -> None:
        """Tell the other program of labels that are its business, too."""
        if _told(new) != _told(old):
            info = pb.Info(name=self._note(directory).remote, labels=_told(new))
            self._call("Update", pb.UpdateSnapshotRequest(info=info), pb.UpdateSnapshotResponse)

    def remove(self, directory: Path) -> None:
        """Have a snapshot removed, unless another one of ours is the same there."""
        # A crash may have come before the note was written, so before the call too.
        with suppress(OSError, ValueError, TypeError):
            note = read_note(directory)
            for there in {note.remote, note.remote_before} - {""}:
                if not (note.remote_shared and self._has_others(directory, there)):
                    with suppress(NotFound):
                        self._call("Remove", pb.RemoveSnapshotRequest(key=there), Empty)
        super().remove(directory)

    def _has_others(self, directory: Path, there: str) -> bool:
        for other in directory.parent.iterdir():
            with suppress(OSError, ValueError, TypeError):
                if other != directory and read_note(other).remote == there:
                    return True
        return False

    def _ready(self, target: str, parent: str) -> pb.Info:
        """Return the committed snapshot that the other program has for a label's promise. Raises NotFound."""
        filters = [f'labels."{TARGET_LABEL}"=="{target}",parent=="{parent}"']
        request = pb.ListSnapshotsRequest(snapshotter=self._snapshotter_there, filters=filters)
        for batch in self._service.receive(f"{_SERVICE}List", request, pb.ListSnapshotsResponse):
            for info in batch.info:  # not every program honours filters
                if info.kind == pb.COMMITTED and info.parent == parent and info.labels.get(TARGET_LABEL) == target:
                    return info
        raise NotFound(f'{self._service.what}: target snapshot "{target}"')

    def _uncommitted(self, directory: Path) -> str:
        """Return what a snapshot is called there that is not committed, though somebody may have tried to."""
        note = self._note(directory)
        return note.remote_before or note.remote

    def _note(self, directory: Path) -> Note:
        try:
            return read_note(directory)
        except (OSError, ValueError, TypeError) as error:
            raise NotFound(f"{self._service.what}: what snapshot {directory.name} is called there: {error}") from None

    def _call(self, method: str, request: Message, reply: type[Reply]) -> Reply:
        request.snapshotter = self._snapshotter_there  # type: ignore[attr-defined]  # all of this service's have it
        return self._service.call(f"{_SERVICE}{method}", request, reply)


def _told(labels: Labels) -> dict[str, str]:
    return {name: value for name, value in labels.items() if name.startswith(_TOLD)} | _KEPT


def _mounts(messages: Iterable[mount_pb2.Mount]) -> list[Mount]:
    return [Mount(one.type, one.source, one.target, tuple(one.options)) for one in messages]
