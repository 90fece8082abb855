"""Snapshots that another program keeps, such as a snapshotter that fetches layers when they are read.

    <root>/<id>/meta.json    what is known of a snapshot, and what it is called there: see directories.py

The rows say what there is, as for all snapshotters: namespaces, leases and collection are ours. The other program sees
names that we make of namespace, id and name, so that what belongs to others there is never touched. The order: our
directory, with the names that will be used, then the call, then the row; and row, then call, then directory when a
snapshot goes. So whatever a crash leaves has a directory without a row, and the next collection removes it there too.

Source: containerd.services.snapshots.v1; containerd docs/PLUGINS.md on proxy plugins.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, Final, Protocol, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from pyctr_wire.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from pyctr_wire.containerd.types import mount_pb2
from pyctr_wire.errors import AlreadyExists, ApiError, FailedPrecondition, InvalidArgument, NotFound
from pyctrd.core.events import SnapshotCommit, SnapshotPrepare, SnapshotRemove
from pyctrd.core.filters import compile_filters
from pyctrd.core.labels import Labels, changed, stored, validate_labels
from pyctrd.core.leases import Resource
from pyctrd.core.mounts import Mount
from pyctrd.core.snapshots import TARGET_LABEL, Kind, SnapshotInfo, Usage, fields
from pyctrd.log import Logger
from pyctrd.metadata import snapshots as rows
from pyctrd.metadata.database import Database
from pyctrd.metadata.leases import attach, detach
from pyctrd.snapshots.directories import Directories, Note, note_of

_SERVICE: Final = "/containerd.services.snapshots.v1.Snapshots/"
# What the other program is told of our labels; whatever else stands there is our clients' business.
_TOLD: Final = "containerd.io/snapshot"
# One that collects garbage by itself must not take ours for that.
_KEPT: Final = {"containerd.io/gc.root": "pyctrd"}

Reply = TypeVar("Reply", bound=Message)
_log = Logger("pyctrd.snapshots")


class Service(Protocol):
    """The other program."""

    @property
    def what(self) -> str:
        """What it is called in errors."""

    def call(self, method: str, request: Message, reply: type[Reply]) -> Reply: ...
    def receive(self, method: str, request: Message, reply: type[Reply]) -> Iterator[Reply]: ...


class RemoteSnapshotter:
    """One other program's snapshots, in all namespaces of ours; thread-safe. Every call may raise Unavailable."""

    is_remote: ClassVar[bool] = True

    def __init__(
        self, name: str, name_there: str, service: Service, directories: Directories, database: Database
    ) -> None:
        """Call `service`, where the snapshotter is called `name_there`; clients of ours call it `name`."""
        self.name = name
        self._snapshotter_there = name_there
        self._service = service
        self._directories = directories
        self._database = database
        self._cleaning = threading.Lock()

    def prepare(
        self, ns: str, key: str, parent: str = "", labels: Labels | None = None, lease: str = ""
    ) -> Sequence[Mount]:
        """Create a writable snapshot on top of `parent` and return the mounts that show it.

        Raises NotFound, InvalidArgument, and AlreadyExists also if the snapshot that the label
        containerd.io/snapshot.ref promises is there, or the other program has it ready: it is known here then.
        """
        return self._create(ns, Kind.ACTIVE, key, parent, labels or {}, lease)

    def view(
        self, ns: str, key: str, parent: str = "", labels: Labels | None = None, lease: str = ""
    ) -> Sequence[Mount]:
        """Create a read-only snapshot that shows `parent`. Raises as `prepare` does."""
        return self._create(ns, Kind.VIEW, key, parent, labels or {}, lease)

    def mounts(self, ns: str, key: str) -> Sequence[Mount]:
        """Return the mounts of an active snapshot or a view. Raises NotFound, FailedPrecondition."""
        row = rows.get(self._database.read(), ns, self.name, key)
        if row.info.kind is Kind.COMMITTED:
            raise FailedPrecondition(f"requested snapshot {key} not active or view")
        request = pb.MountsRequest(key=self._uncommitted_there(row.id))
        return _mounts(self._call("Mounts", request, pb.MountsResponse).mounts)

    def commit(
        self, ns: str, name: str, key: str, labels: Labels | None = None, parent: str = "", lease: str = ""
    ) -> None:
        """Freeze the active snapshot `key` under `name`. Raises NotFound, FailedPrecondition, AlreadyExists."""
        labels = stored(labels or {})
        validate_labels("info.Labels", labels)
        if not name:
            raise InvalidArgument("a committed snapshot needs a name")
        with self._database.snapshot() as reader:
            row = rows.get(reader, ns, self.name, key)
            taken = rows.find(reader, ns, self.name, name) is not None
            parent_id = self._committed(reader, ns, parent) if parent else row.parent_id
        if row.info.kind is not Kind.ACTIVE:
            raise FailedPrecondition(f'snapshot "{key}" is not active')
        if taken:
            with self._database.transaction() as transaction:
                attach(transaction, ns, lease, self._resource(name))
            raise AlreadyExists(f'snapshot "{name}"')
        there, before = f"{ns}/{row.id}-committed/{name}", self._uncommitted_there(row.id)
        info = replace(row.info, name=name, kind=Kind.COMMITTED, labels=labels)
        note = note_of(ns, row._replace(info=info, parent_id=parent_id))
        self._directories.replace_note(row.id, note._replace(remote=there, remote_before=before))
        request = pb.CommitSnapshotRequest(name=there, key=before, labels=_told(labels))
        if parent and parent_id is not None:
            request.parent = self._name_there(parent_id)
        try:
            self._call("Commit", request, Empty)
        except NotFound:
            # Done before, by a daemon that was killed then? If not, this says so.
            self._call("Stat", pb.StatSnapshotRequest(key=there), pb.StatSnapshotResponse)
        with self._database.transaction() as transaction:
            free = rows.find(transaction, ns, self.name, name) is None
            if free:
                rows.commit(transaction, row.id, name, parent_id, labels, Usage())
                transaction.publish(ns, SnapshotCommit(key, name, self.name))
            else:  # somebody else was faster with the same layer: ours is of no use any more
                rows.delete(transaction, row.id)
                transaction.leaves_garbage()
            detach(transaction, ns, lease, self._resource(key))
            attach(transaction, ns, lease, self._resource(name))
        if not free:
            raise AlreadyExists(f'snapshot "{name}"')

    def remove(self, ns: str, key: str, lease: str = "") -> None:
        """Forget a snapshot; the other program is told at the next cleanup. Raises NotFound, FailedPrecondition."""
        with self._database.freeing() as transaction:
            row = rows.get(transaction, ns, self.name, key)
            if rows.has_children(transaction, row.id):
                raise FailedPrecondition("cannot remove snapshot with child")
            rows.delete(transaction, row.id)
            detach(transaction, ns, lease, self._resource(key))
            transaction.leaves_garbage()
            transaction.publish(ns, SnapshotRemove(key, self.name))

    def stat(self, ns: str, key: str) -> SnapshotInfo:
        """Return a snapshot. Raises NotFound."""
        return rows.get(self._database.read(), ns, self.name, key).info

    def update(self, ns: str, info: SnapshotInfo, mask: Iterable[str] = ()) -> SnapshotInfo:
        """Change a snapshot's labels. Raises NotFound, InvalidArgument."""
        if not info.name:
            raise InvalidArgument("snapshot name must be set")
        with self._database.transaction() as transaction:
            row = rows.get(transaction, ns, self.name, info.name)
            labels = changed(row.info.labels, info.labels, mask, f'snapshot "{info.name}"')
            validate_labels("info.Labels", labels)
            result = replace(row.info, labels=labels, updated_at=transaction.now)
            rows.relabel(transaction, row.id, labels, transaction.now)
            transaction.leaves_garbage()
        note = self._note(row.id)
        new = note_of(ns, row._replace(info=result))
        self._directories.replace_note(row.id, new._replace(remote=note.remote, remote_before=note.remote_before))
        if _told(labels) != _told(row.info.labels):
            there = pb.Info(name=note.remote, labels=_told(labels))
            self._call("Update", pb.UpdateSnapshotRequest(info=there), pb.UpdateSnapshotResponse)
        return result

    def list(self, ns: str, filters: Sequence[str] = ()) -> Iterator[list[SnapshotInfo]]:
        """Return batches of the snapshots that pass, by name. Raises InvalidArgument for a bad filter at once."""
        passes = compile_filters(filters)
        batches = rows.batches(self._database, ns, self.name)
        found = ([info for info in batch if passes(fields(info))] for batch in batches)
        return (batch for batch in found if batch)

    def usage(self, ns: str, key: str) -> Usage:
        """Return what a snapshot adds, as the other program says. Raises NotFound."""
        row = rows.get(self._database.read(), ns, self.name, key)
        committed = row.info.kind is Kind.COMMITTED
        key = self._name_there(row.id) if committed else self._uncommitted_there(row.id)
        answer = self._call("Usage", pb.UsageRequest(key=key), pb.UsageResponse)
        return Usage(answer.size, answer.inodes)

    def cleanup(self) -> Sequence[int]:
        """Have the other program remove what no row names, and return the ids; what it keeps is tried again later."""
        with self._cleaning:
            found = self._directories.ids()
            strays = found - self._directories.pending() - rows.ids(self._database.read(), self.name)
            # Those on top first: what has children cannot go.
            gone = []
            for stray in sorted(strays, reverse=True):
                try:
                    self._remove_there(stray, found - strays)
                except ApiError as error:
                    _log.warning("snapshot not removed", snapshotter=self.name, id=stray, error=str(error))
                    if not isinstance(error, FailedPrecondition):
                        break  # nor will it remove the others now
                    continue
                if self._directories.remove(stray):
                    gone.append(stray)
            return gone

    def _remove_there(self, stray: int, others: Iterable[int]) -> None:
        try:
            note = self._directories.note(stray)
        except (OSError, ValueError, TypeError):
            return  # a crash came before it was written, so before the call too
        for there in {note.remote, note.remote_before} - {""}:
            if note.remote_shared and any(self._note(other).remote == there for other in others):
                continue
            try:
                self._call("Remove", pb.RemoveSnapshotRequest(key=there), Empty)
            except NotFound:
                continue

    def _create(self, ns: str, kind: Kind, key: str, parent: str, labels: Labels, lease: str) -> Sequence[Mount]:
        labels = stored(labels)
        validate_labels("info.Labels", labels)
        if not key:
            raise InvalidArgument("a snapshot needs a key")
        target = labels.get(TARGET_LABEL, "")
        with self._database.snapshot() as reader:
            taken = self._taken(reader, ns, key, target)
            parent_id = None if taken else self._committed(reader, ns, parent)
        if taken:
            with self._database.transaction() as transaction:
                attach(transaction, ns, lease, self._resource(taken))
            raise AlreadyExists(f'snapshot "{taken}"')
        parent_there = self._name_there(parent_id) if parent_id is not None else ""
        now = self._database.now()
        info = SnapshotInfo(key, parent, kind, now, now, labels)
        with self._directories.claim() as snapshot_id:
            row = rows.SnapshotRow(snapshot_id, parent_id, Usage(), info)
            note = note_of(ns, row)._replace(remote=f"{ns}/{snapshot_id}/{key}")
            self._directories.write_note(snapshot_id, note)
            try:
                mounts = self._made(kind, note.remote, parent_there, labels)
            except AlreadyExists:
                if not target:
                    raise
                ready = self._ready(target, parent_there)
                info = replace(info, name=target, kind=Kind.COMMITTED, labels={**ready.labels, **labels})
                row = row._replace(info=info)
                self._directories.write_note(
                    snapshot_id, note_of(ns, row)._replace(remote=ready.name, remote_shared=True)
                )
                self._store(ns, row, lease)
                raise AlreadyExists(f'target snapshot "{target}" from snapshotter') from None
            self._store(ns, row, lease)
        return mounts

    def _made(self, kind: Kind, there: str, parent: str, labels: Labels) -> Sequence[Mount]:
        told = _told(labels)
        if kind is Kind.VIEW:
            view = pb.ViewSnapshotRequest(key=there, parent=parent, labels=told)
            return _mounts(self._call("View", view, pb.ViewSnapshotResponse).mounts)
        prepare = pb.PrepareSnapshotRequest(key=there, parent=parent, labels=told)
        return _mounts(self._call("Prepare", prepare, pb.PrepareSnapshotResponse).mounts)

    def _ready(self, target: str, parent: str) -> pb.Info:
        """Return the committed snapshot that the other program has for a label's promise. Raises NotFound."""
        filters = [f'labels."{TARGET_LABEL}"=="{target}",parent=="{parent}"']
        request = pb.ListSnapshotsRequest(snapshotter=self._snapshotter_there, filters=filters)
        for batch in self._service.receive(f"{_SERVICE}List", request, pb.ListSnapshotsResponse):
            for info in batch.info:  # not every program honours filters
                if info.kind == pb.COMMITTED and info.parent == parent and info.labels.get(TARGET_LABEL) == target:
                    return info
        raise NotFound(f'{self._service.what}: target snapshot "{target}"')

    def _store(self, ns: str, row: rows.SnapshotRow, lease: str) -> None:
        info = row.info
        with self._database.transaction() as transaction:
            taken = rows.find(transaction, ns, self.name, info.name) is not None
            if not taken:
                if self._committed(transaction, ns, info.parent) != row.parent_id:
                    raise NotFound(f"parent snapshot {info.parent} does not exist")
                rows.insert(transaction, ns, self.name, row)
                if info.kind is Kind.ACTIVE:
                    transaction.publish(ns, SnapshotPrepare(info.name, info.parent, self.name))
            attach(transaction, ns, lease, self._resource(info.name))
        if taken:
            raise AlreadyExists(f'snapshot "{info.name}"')

    def _taken(self, reader: rows.Rows, ns: str, key: str, target: str) -> str:
        return next((name for name in (target, key) if name and rows.find(reader, ns, self.name, name)), "")

    def _committed(self, reader: rows.Rows, ns: str, parent: str) -> int | None:
        """Return the id of the snapshot that is to be a parent, None for none."""
        if not parent:
            return None
        row = rows.find(reader, ns, self.name, parent)
        if row is None:
            raise NotFound(f"parent snapshot {parent} does not exist")
        if row.info.kind is not Kind.COMMITTED:
            raise InvalidArgument(f'parent "{parent}" is not committed snapshot')
        return row.id

    def _name_there(self, snapshot_id: int) -> str:
        return self._note(snapshot_id).remote

    def _uncommitted_there(self, snapshot_id: int) -> str:
        """Return what a snapshot is called there that is not committed, though somebody may have tried to."""
        note = self._note(snapshot_id)
        return note.remote_before or note.remote

    def _note(self, snapshot_id: int) -> Note:
        try:
            return self._directories.note(snapshot_id)
        except (OSError, ValueError, TypeError) as error:
            raise NotFound(f"{self._service.what}: what snapshot {snapshot_id} is called there: {error}") from None

    def _call(self, method: str, request: Message, reply: type[Reply]) -> Reply:
        request.snapshotter = self._snapshotter_there  # type: ignore[attr-defined]  # all of this service's have it
        return self._service.call(f"{_SERVICE}{method}", request, reply)

    def _resource(self, name: str) -> Resource:
        return Resource(name, f"snapshots/{self.name}")


def _told(labels: Labels) -> dict[str, str]:
    return {name: value for name, value in labels.items() if name.startswith(_TOLD)} | _KEPT


def _mounts(messages: Iterable[mount_pb2.Mount]) -> list[Mount]:
    return [Mount(one.type, one.source, one.target, tuple(one.options)) for one in messages]
