"""A snapshotter: rows that say what there is, and a driver that makes the directories.

The order is the same everywhere: directories are made before their row commits and removed after
their row is gone, so a crash leaves a stray directory, which `cleanup` removes.
"""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Protocol

from pyctr_wire.errors import AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, NotFound
from pyctrd.core.events import SnapshotCommit, SnapshotPrepare, SnapshotRemove
from pyctrd.core.filters import compile_filters
from pyctrd.core.idmaps import Maps, mapped_root, maps_of, mount_options
from pyctrd.core.labels import Labels, changed, stored, validate_labels
from pyctrd.core.leases import Resource
from pyctrd.core.mounts import Mount
from pyctrd.core.snapshots import TARGET_LABEL, Kind, SnapshotInfo, Usage, fields
from pyctrd.metadata import snapshots as rows
from pyctrd.metadata.database import Database
from pyctrd.metadata.durable import naming_full_disk
from pyctrd.metadata.leases import attach, detach
from pyctrd.snapshots.directories import Directories, note_of
from pyctrd.snapshots.owners import shift


class Driver(Protocol):
    """What makes one kind of snapshots; it sees directories and knows no names."""

    @property
    def name(self) -> str:
        """What clients call it."""

    @property
    def can_rebase(self) -> bool:
        """Whether a snapshot made without a parent may be committed on top of one."""

    @property
    def maps_ids(self) -> bool:
        """Whether whoever mounts a snapshot can show what is below it with other owners; a copy is given to them."""

    def create(self, directory: Path, parents: Sequence[Path], kind: Kind) -> None:
        """Fill a new directory, on top of `parents`, the nearest first."""

    def mounts(self, directory: Path, parents: Sequence[Path], kind: Kind) -> Sequence[Mount]:
        """Return the mounts that show a snapshot; the same ones each time."""

    def usage(self, directory: Path) -> Usage:
        """Measure what a snapshot adds."""


class Snapshotter:
    """The snapshots of one driver, in all namespaces; thread-safe. A name or key is taken once per namespace."""

    is_remote: ClassVar[bool] = False

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

    def prepare(
        self, ns: str, key: str, parent: str = "", labels: Labels | None = None, lease: str = ""
    ) -> Sequence[Mount]:
        """Create a writable snapshot on top of `parent` and return the mounts that show it.

        Raises NotFound if `parent` or `lease` does not exist, InvalidArgument if it is not committed,
        AlreadyExists if `key` is taken or the snapshot that the label containerd.io/snapshot.ref
        promises is there: the lease then has that one.
        """
        return self._create(ns, Kind.ACTIVE, key, parent, labels or {}, lease)

    def view(
        self, ns: str, key: str, parent: str = "", labels: Labels | None = None, lease: str = ""
    ) -> Sequence[Mount]:
        """Create a read-only snapshot that shows `parent`. Raises as `prepare` does."""
        return self._create(ns, Kind.VIEW, key, parent, labels or {}, lease)

    def mounts(self, ns: str, key: str) -> Sequence[Mount]:
        """Return the mounts of an active snapshot or a view.

        Raises NotFound, FailedPrecondition for a committed one, DataLoss if a directory is gone.
        """
        with self._database.snapshot() as reader:
            row = rows.get(reader, ns, self.name, key)
            if row.info.kind is Kind.COMMITTED:
                raise FailedPrecondition(f"requested snapshot {key} not active or view")
            directory, *parents = map(self._directories.path, rows.chain(reader, row.id))
        for path in (directory, *parents):
            if not (path / "fs").is_dir():
                raise DataLoss(f"snapshot {key}: the directory {path}/fs is gone")
        return self._mounts(directory, parents, row.info.kind, maps_of(row.info.labels))

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
        old = rows.get(self._database.read(), ns, self.name, key)
        _require_active(old)
        usage = self._driver.usage(self._directories.path(old.id))
        committed = old._replace(
            parent_id=self._rebased(self._database.read(), ns, old, parent),
            usage=usage,
            info=replace(old.info, name=name, kind=Kind.COMMITTED, labels=labels),
        )
        with self._noting:
            # A crash after the note leaves an active snapshot whose note says committed: read only if the
            # database is lost too.
            self._replace_note(ns, committed)
            try:
                self._freeze(ns, old, name, parent, labels, usage, lease)
            except BaseException:
                if (row := rows.find_id(self._database.read(), ns, self.name, old.id)) is not None:
                    self._replace_note(ns, row)
                raise

    def remove(self, ns: str, key: str, lease: str = "") -> None:
        """Forget a snapshot; its directory goes with the next cleanup.

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
                transaction.leaves_garbage()
            # A crash here leaves the note with the old labels: read only if the database is lost too.
            self._replace_note(ns, row._replace(info=result))
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
        row = rows.get(self._database.read(), ns, self.name, key)
        if row.info.kind is Kind.ACTIVE:
            return self._driver.usage(self._directories.path(row.id))
        return row.usage

    def cleanup(self) -> Sequence[int]:
        """Remove the directories that no row names, and return their ids."""
        with self._cleaning:
            # In this order: what is pending after the listing, or has a row after that, is no stray.
            found = self._directories.ids()
            strays = found - self._directories.pending() - rows.ids(self._database.read(), self.name)
            return [stray for stray in sorted(strays) if self._directories.remove(stray)]

    def _create(self, ns: str, kind: Kind, key: str, parent: str, labels: Labels, lease: str) -> Sequence[Mount]:
        labels = stored(labels)
        validate_labels("info.Labels", labels)
        if not key:
            raise InvalidArgument("a snapshot needs a key")
        with self._database.snapshot() as reader:
            taken = self._taken(reader, ns, key, labels)
            parent_id = None if taken else self._committed(reader, ns, parent)
            parents = [self._directories.path(ancestor) for ancestor in rows.chain(reader, parent_id)]
        if taken:
            # Known before any directory is made; the transaction below decides.
            with self._database.transaction() as transaction:
                attach(transaction, ns, lease, self._resource(taken))
            raise _already_exists(taken, labels)
        maps = maps_of(labels)
        now = self._database.now()
        info = SnapshotInfo(key, parent, kind, now, now, labels)
        with naming_full_disk(f'snapshot "{key}"'), self._directories.new() as snapshot_id:
            directory = self._directories.path(snapshot_id)
            self._driver.create(directory, parents, kind)
            if maps is not None and parents and not self._driver.maps_ids:
                shift(directory / "fs", maps)
            elif maps is not None:
                os.chown(directory / "fs", *mapped_root(maps))
            row = rows.SnapshotRow(snapshot_id, parent_id, Usage(), info)
            self._directories.write_note(snapshot_id, note_of(ns, row))
            self._store(ns, row, lease)
        return self._mounts(directory, parents, kind, maps)

    def _mounts(self, directory: Path, parents: Sequence[Path], kind: Kind, maps: Maps | None) -> Sequence[Mount]:
        """Return a snapshot's mounts. What is its own belongs to the mapped users anyhow, layers below are shown so."""
        mounts = self._driver.mounts(directory, parents, kind)
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

    def _replace_note(self, ns: str, row: rows.SnapshotRow) -> None:
        try:
            with naming_full_disk(f'snapshot "{row.info.name}"'):
                self._directories.replace_note(row.id, note_of(ns, row))
        except FileNotFoundError:
            raise NotFound(f"snapshot {row.info.name} does not exist") from None  # removed meanwhile

    def _taken(self, reader: rows.Rows, ns: str, key: str, labels: Labels) -> str:
        """Return which of the promised snapshot and `key` is there already, "" if neither is."""
        candidates = (labels.get(TARGET_LABEL, ""), key)
        return next((name for name in candidates if name and rows.find(reader, ns, self.name, name)), "")

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
