"""A snapshotter: rows that say what there is, and a driver that makes the files.

The order is the same everywhere: files are made before their row commits and removed after
their row is gone, so a crash leaves a stray directory, which `cleanup` removes.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pyctr_wire.errors import (
    AlreadyExists,
    ApiError,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from pyctrd.core.events import SnapshotCommit, SnapshotPrepare, SnapshotRemove
from pyctrd.core.filters import compile_filters
from pyctrd.core.idmaps import Maps, maps_of, mount_options
from pyctrd.core.labels import Labels, changed, stored, validate_labels
from pyctrd.core.leases import Resource
from pyctrd.core.mounts import Mount
from pyctrd.core.reachability import keep_otherwise
from pyctrd.core.snapshots import TARGET_LABEL, Kind, SnapshotInfo, Usage, fields
from pyctrd.log import Logger
from pyctrd.metadata import snapshots as rows
from pyctrd.metadata.database import Database
from pyctrd.metadata.durable import naming_full_disk
from pyctrd.metadata.leases import attach, detach
from pyctrd.snapshots.directories import Directories, Note, note_of
from pyctrd.snapshots.driver import Driver

_log = Logger(__name__)


class Snapshotter:
    """The snapshots of one driver, in all namespaces; thread-safe. A name or key is taken once per namespace.

    Where another program keeps them, every call may raise Unavailable.
    """

    def __init__(self, driver: Driver, directories: Directories, database: Database) -> None:
        """Use `driver` for the files and `database` for the rows."""
        self._driver = driver
        self._directories = directories
        self._database = database
        self._cleaning = threading.Lock()
        self._noting = threading.Lock()

    @property
    def name(self) -> str:
        """What clients call it."""
        return self._driver.name

    @property
    def is_remote(self) -> bool:
        """Whether another program keeps the snapshots, so that any call may take long."""
        return self._driver.is_remote

    def prepare(
        self, ns: str, key: str, parent: str = "", labels: Labels | None = None, lease: str = ""
    ) -> Sequence[Mount]:
        """Create a writable snapshot on top of `parent` and return the mounts that show it.

        Raises NotFound if `parent` or `lease` does not exist, InvalidArgument if it is not committed,
        AlreadyExists if `key` is taken or the snapshot that the label containerd.io/snapshot.ref
        promises is there, or the driver has it ready: the lease then has that one.
        """
        return self._create(ns, Kind.ACTIVE, key, parent, labels or {}, lease)

    def view(
        self, ns: str, key: str, parent: str = "", labels: Labels | None = None, lease: str = ""
    ) -> Sequence[Mount]:
        """Create a read-only snapshot that shows `parent`. Raises as `prepare` does."""
        return self._create(ns, Kind.VIEW, key, parent, labels or {}, lease)

    def mounts(self, ns: str, key: str) -> Sequence[Mount]:
        """Return the mounts of an active snapshot or a view.

        Raises NotFound, FailedPrecondition for a committed one, DataLoss if its files are gone.
        """
        with self._database.snapshot() as reader:
            row = rows.get(reader, ns, self.name, key)
            if row.info.kind is Kind.COMMITTED:
                raise FailedPrecondition(f"requested snapshot {key} not active or view")
            directory, *parents = map(self._directories.path, rows.chain(reader, row.id))
        needed = (
            self._driver.kept(directory, row.info.kind),
            *(self._driver.kept(path, Kind.COMMITTED) for path in parents),
        )
        for path in needed:
            if not path.exists():
                raise DataLoss(f"snapshot {key}: {path} is gone")
        return self._mounts(self._driver.mounts(directory, parents, row.info.kind), parents, maps_of(row.info.labels))

    def commit(
        self, ns: str, name: str, key: str, labels: Labels | None = None, parent: str = "", lease: str = ""
    ) -> None:
        """Freeze the active snapshot `key` under `name`, with `labels` and no others; the key is free again.

        `parent`, if set, becomes the parent of a snapshot that had none. Raises NotFound,
        FailedPrecondition if `key` is not active, AlreadyExists if `name` is taken (the lease then
        has it), InvalidArgument for a change of parent.
        """
        labels = stored(labels or {})
        validate_labels("info.Labels", labels)
        if not name:
            raise InvalidArgument("a committed snapshot needs a name")
        with self._database.snapshot() as reader:
            # Before all else: who asks once more, since no answer came, has no active snapshot any longer.
            taken = rows.find(reader, ns, self.name, name) is not None
            if not taken:
                old = rows.get(reader, ns, self.name, key)
                _require_active(old)
                parent_id = self._rebased(reader, ns, old, parent)
                parents = [self._directories.path(ancestor) for ancestor in rows.chain(reader, parent_id)]
        if taken:
            raise self._leased(ns, lease, name, AlreadyExists(f'snapshot "{name}"'))
        info = replace(old.info, name=name, kind=Kind.COMMITTED, labels=labels)
        wanted = note_of(ns, old._replace(parent_id=parent_id, info=info))
        with naming_full_disk(f'snapshot "{key}"'):
            note = self._driver.commit(self._directories.path(old.id), parents, wanted)
        with self._noting:
            # A crash after the note leaves an active snapshot whose note says committed: read only if the
            # database is lost too.
            self._replace_note(old, note)
            try:
                self._freeze(ns, old, name, parent, labels, Usage(note.size, note.inodes), lease)
            except BaseException:
                if (row := rows.find_id(self._database.read(), ns, self.name, old.id)) is not None:
                    self._note_again(ns, row)
                raise
        self._driver.committed(self._directories.path(old.id))

    def remove(self, ns: str, key: str, lease: str = "") -> None:
        """Forget a snapshot; its files go with the next cleanup, unless its driver wants it at once.

        Raises NotFound, and FailedPrecondition while it is the parent of another.
        """
        with self._database.freeing() as transaction:
            row = rows.get(transaction, ns, self.name, key)
            if rows.has_children(transaction, row.id):
                raise FailedPrecondition("cannot remove snapshot with child")
            rows.delete(transaction, row.id)
            detach(transaction, ns, lease, self._resource(key))
            transaction.leaves_garbage()
            transaction.publish(ns, SnapshotRemove(key, self.name))
        if self._driver.removes_at_once:
            with self._cleaning:
                self._discard(row.id)

    def stat(self, ns: str, key: str) -> SnapshotInfo:
        """Return a snapshot. Raises NotFound."""
        return rows.get(self._database.read(), ns, self.name, key).info

    def update(self, ns: str, info: SnapshotInfo, mask: Iterable[str] = ()) -> SnapshotInfo:
        """Change a snapshot's labels. Raises NotFound, InvalidArgument."""
        if not info.name:
            raise InvalidArgument("snapshot name must be set")
        with self._noting:
            with self._database.transaction() as transaction:
                row = rows.get(transaction, ns, self.name, info.name)
                labels = changed(row.info.labels, info.labels, mask, f'snapshot "{info.name}"')
                validate_labels("info.Labels", labels)
                result = replace(row.info, labels=labels, updated_at=transaction.now)
                rows.relabel(transaction, row.id, labels, transaction.now)
                if keep_otherwise(row.info.labels, labels):
                    transaction.leaves_garbage()
            # A crash here leaves the note with the old labels: read only if the database is lost too.
            self._note_again(ns, row._replace(info=result))
        self._driver.relabel(self._directories.path(row.id), row.info.labels, labels)
        return result

    def list(self, ns: str, filters: Sequence[str] = ()) -> Iterator[list[SnapshotInfo]]:
        """Return batches of the snapshots that pass, by name. Raises InvalidArgument for a bad filter at once."""
        passes = compile_filters(filters)
        batches = rows.batches(self._database, ns, self.name)
        found = ([info for info in batch if passes(fields(info))] for batch in batches)
        return (batch for batch in found if batch)

    def usage(self, ns: str, key: str) -> Usage:
        """Return what a snapshot adds: measured at its commit, now if it is active, nothing for a view.

        Raises NotFound.
        """
        with self._database.snapshot() as reader:
            row = rows.get(reader, ns, self.name, key)
            if row.info.kind is not Kind.ACTIVE and not self.is_remote:
                return row.usage
            directory, *parents = map(self._directories.path, rows.chain(reader, row.id))
        return self._driver.usage(directory, parents, row.info.kind)

    def cleanup(self) -> Sequence[int]:
        """Remove what no row names, and return the ids; what cannot be removed now is tried again the next time."""
        with self._cleaning:
            # In this order: what is pending after the listing, or has a row after that, is no stray.
            found = self._directories.ids()
            strays = found - self._directories.pending() - rows.ids(self._database.read(), self.name)
            gone = []
            for stray in sorted(strays, reverse=True):  # those on top first: what has children may have to stay
                try:
                    self._driver.remove(self._directories.path(stray))
                except (ApiError, OSError) as error:
                    self._not_removed(stray, error)
                    if isinstance(error, Unavailable | DeadlineExceeded):
                        break  # nor will it remove the others now
                else:
                    gone.append(stray)
            return gone

    def _create(self, ns: str, kind: Kind, key: str, parent: str, labels: Labels, lease: str) -> Sequence[Mount]:
        labels = stored(labels)
        validate_labels("info.Labels", labels)
        if not key:
            raise InvalidArgument("a snapshot needs a key")
        # Known before any directory is made; the transaction below decides.
        reader = self._database.read()
        taken = self._taken(reader, ns, key, labels)
        parent_id = None if taken else self._committed(reader, ns, parent)
        parents = [self._directories.path(ancestor) for ancestor in rows.chain(reader, parent_id)]
        if taken:
            raise self._leased(ns, lease, taken, _already_exists(taken, labels))
        maps = maps_of(labels)
        now = self._database.now()
        row = rows.SnapshotRow(0, parent_id, Usage(), SnapshotInfo(key, parent, kind, now, now, labels))
        with naming_full_disk(f'snapshot "{key}"'), self._directories.claim() as snapshot_id:
            try:
                made = self._make(ns, row._replace(id=snapshot_id), parents, maps, lease)
            except BaseException:
                if not self.is_remote:  # whose call may still be under way
                    self._discard(snapshot_id)
                raise
        if isinstance(made, Note):
            raise AlreadyExists(f'target snapshot "{made.name}" from snapshotter')
        return self._mounts(made, parents, maps)

    def _make(
        self, ns: str, row: rows.SnapshotRow, parents: Sequence[Path], maps: Maps | None, lease: str
    ) -> Sequence[Mount] | Note:
        directory, note = self._directories.path(row.id), note_of(ns, row)
        made = self._driver.create(directory, parents, note)
        if isinstance(made, Note):
            info = replace(row.info, name=made.name, kind=Kind(made.kind), labels=made.labels)
            row = row._replace(info=info)
        elif maps is not None:
            self._driver.give(directory, parents, maps)
        if not self.is_remote:  # which has noted more
            self._directories.write_note(row.id, note)
        self._store(ns, row, lease)
        return made

    def _mounts(self, mounts: Sequence[Mount], parents: Sequence[Path], maps: Maps | None) -> Sequence[Mount]:
        """Return a snapshot's mounts. What is its own belongs to the mapped users anyhow, layers below are shown so."""
        if maps is None or not parents or not self._driver.maps_ids:
            return mounts
        return [replace(mount, options=(*mount_options(maps), *mount.options)) for mount in mounts]

    def _freeze(
        self, ns: str, old: rows.SnapshotRow, name: str, parent: str, labels: Labels, usage: Usage, lease: str
    ) -> None:
        key = old.info.name
        with self._database.transaction() as transaction:
            row = rows.get(transaction, ns, self.name, key)
            if row.id != old.id:
                raise NotFound(f"snapshot {key} does not exist")  # removed meanwhile; this is another of that key
            is_free = rows.find(transaction, ns, self.name, name) is None
            if is_free:
                parent_id = self._rebased(transaction, ns, row, parent)
                rows.commit(transaction, row.id, name, parent_id, labels, usage)
                detach(transaction, ns, lease, self._resource(key))
                transaction.publish(ns, SnapshotCommit(key, name, self.name))
            elif self.is_remote:  # it has committed it under a name that nobody needs: it is of no use any more
                rows.delete(transaction, row.id)
                detach(transaction, ns, lease, self._resource(key))
                transaction.leaves_garbage()
            attach(transaction, ns, lease, self._resource(name))
        if not is_free:
            raise AlreadyExists(f'snapshot "{name}"')

    def _store(self, ns: str, row: rows.SnapshotRow, lease: str) -> None:
        info = row.info
        with self._database.transaction() as transaction:
            taken = self._taken(transaction, ns, info.name, info.labels)
            if not taken:
                if self._committed(transaction, ns, info.parent) != row.parent_id:
                    raise NotFound(f"parent snapshot {info.parent} does not exist")
                rows.insert(transaction, ns, self.name, row)
                if info.kind is Kind.ACTIVE:
                    transaction.publish(ns, SnapshotPrepare(info.name, info.parent, self.name))
            attach(transaction, ns, lease, self._resource(taken or info.name))
        if taken:
            raise _already_exists(taken, info.labels)

    def _leased(self, ns: str, lease: str, name: str, error: AlreadyExists) -> AlreadyExists:
        """Let a lease have what is there already; return the error that says so."""
        with self._database.transaction() as transaction:
            attach(transaction, ns, lease, self._resource(name))
        return error

    def _discard(self, snapshot_id: int) -> None:
        """Remove what a failed call has made; if that fails too, it is a stray."""
        try:
            self._driver.remove(self._directories.path(snapshot_id))
        except (ApiError, OSError) as error:
            self._not_removed(snapshot_id, error)

    def _not_removed(self, snapshot_id: int, error: Exception) -> None:
        _log.warning("snapshot not removed", directory=str(self._directories.path(snapshot_id)), error=str(error))

    def _note_again(self, ns: str, row: rows.SnapshotRow) -> None:
        """Note a row that has changed, beside what its driver has noted."""
        note = note_of(ns, row)
        with suppress(OSError, ValueError, TypeError):
            old = self._directories.note(row.id)
            note = note._replace(remote=old.remote, remote_before=old.remote_before, remote_shared=old.remote_shared)
        self._replace_note(row, note)

    def _replace_note(self, row: rows.SnapshotRow, note: Note) -> None:
        try:
            with naming_full_disk(f'snapshot "{row.info.name}"'):
                self._directories.replace_note(row.id, note)
        except FileNotFoundError:
            raise NotFound(f"snapshot {row.info.name} does not exist") from None  # removed meanwhile

    def _taken(self, reader: rows.Rows, ns: str, key: str, labels: Labels) -> str:
        """Return which of the promised snapshot and `key` is there already, "" if neither is."""
        candidates = (labels.get(TARGET_LABEL, ""), key)
        return next((name for name in candidates if name and rows.identify(reader, ns, self.name, name)), "")

    def _committed(self, reader: rows.Rows, ns: str, parent: str) -> int | None:
        """Return the id of the snapshot that is to be a parent, None for none."""
        if not parent:
            return None
        found = rows.identify(reader, ns, self.name, parent)
        if found is None:
            raise NotFound(f"parent snapshot {parent} does not exist")
        snapshot_id, kind = found
        if kind is not Kind.COMMITTED:
            raise InvalidArgument(f'parent "{parent}" is not committed snapshot')
        return snapshot_id

    def _rebased(self, reader: rows.Rows, ns: str, row: rows.SnapshotRow, parent: str) -> int | None:
        """Return the parent's id after a commit that may name one."""
        if not parent:
            return row.parent_id
        if row.parent_id is not None:
            raise InvalidArgument("cannot change parent of active snapshot")
        if not self._driver.can_rebase:
            raise InvalidArgument(f"the {self.name} snapshotter cannot put a snapshot on top of another afterwards")
        return self._committed(reader, ns, parent)

    def _resource(self, name: str) -> Resource:
        return Resource(name, f"snapshots/{self.name}")


def _require_active(row: rows.SnapshotRow) -> None:
    if row.info.kind is not Kind.ACTIVE:
        raise FailedPrecondition(f'snapshot "{row.info.name}" is not active')


def _already_exists(taken: str, labels: Labels) -> AlreadyExists:
    return AlreadyExists(f'target snapshot "{taken}"' if taken == labels.get(TARGET_LABEL) else f'snapshot "{taken}"')
