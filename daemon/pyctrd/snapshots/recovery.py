"""What a start repairs: rows lost with the database, directories lost in a power cut."""

from pyctr_wire.errors import ApiError
from pyctrd.core.leases import Resource
from pyctrd.core.snapshots import Kind, SnapshotInfo, Usage
from pyctrd.core.times import from_microseconds
from pyctrd.log import Logger
from pyctrd.metadata import snapshots as rows
from pyctrd.metadata.database import Database
from pyctrd.metadata.leases import attach
from pyctrd.metadata.rebuilt import rebuilt_lease
from pyctrd.snapshots.directories import Directories, Note, note_of
from pyctrd.snapshots.driver import Driver

_log = Logger(__name__)


def adopt(database: Database, directories: Directories, snapshotter: str) -> None:
    """Make the rows say what the directories' notes say; what an old copy of the database did not know is leased.

    A directory that was about to be removed comes back for as long as that lease. Of two that claim
    one name, the younger has it.
    """
    notes, unreadable = dict(directories.notes()), directories.ids()
    unreadable -= notes.keys()
    with database.freeing() as transaction:
        before = rows.all_names(transaction, snapshotter)
        for snapshot_id in rows.ids(transaction, snapshotter) - unreadable:
            rows.delete(transaction, snapshot_id)
        claimed: set[tuple[str, str]] = set()
        for snapshot_id in sorted(notes, reverse=True):
            note = notes[snapshot_id]
            if (note.namespace, note.name) in claimed:
                continue
            claimed.add((note.namespace, note.name))
            rows.insert(transaction, note.namespace, snapshotter, _row(snapshot_id, note))
            if (note.namespace, note.name) not in before:
                lease = rebuilt_lease(transaction, note.namespace)
                attach(transaction, note.namespace, lease, Resource(note.name, f"snapshots/{snapshotter}"))
    if before or claimed:
        _log.warning("snapshots adopted", snapshotter=snapshotter, known=len(before), found=len(claimed))


def recreate(database: Database, directories: Directories, driver: Driver) -> None:
    """Make the directories of active snapshots and views again that a power cut took.

    New directories are not fsynced. What was written below them is lost, as it was not fsynced
    either: fsync of a file makes the directories above it durable.
    """
    with database.snapshot() as reader:
        missing = [
            (ns, row)
            for snapshot_id, kind, ns in rows.uncommitted(reader, driver.name)
            if not driver.kept(directories.path(snapshot_id), kind).exists()
            and (row := rows.find_id(reader, ns, driver.name, snapshot_id)) is not None
        ]
        chains = {row.id: rows.chain(reader, row.id)[1:] for _, row in missing}
    for ns, row in missing:
        directory = directories.path(row.id)
        note = note_of(ns, row)
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            driver.create(directory, [directories.path(parent) for parent in chains[row.id]], note)
            directories.write_note(row.id, note)
        except (ApiError, OSError) as error:  # its disk is not there, say: the others are to be
            _log.error("snapshot not made again", directory=str(directory), error=str(error))
        else:
            _log.warning("snapshot made again", directory=str(directory))


def _row(snapshot_id: int, note: Note) -> rows.SnapshotRow:
    info = SnapshotInfo(
        name=note.name,
        parent="",  # a row has its parent's id
        kind=Kind(note.kind),
        created_at=from_microseconds(note.created_at),
        updated_at=from_microseconds(note.updated_at),
        labels=note.labels,
    )
    return rows.SnapshotRow(snapshot_id, note.parent_id, Usage(note.size, note.inodes), info)
