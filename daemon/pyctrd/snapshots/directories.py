"""The directories of one snapshotter, a number each, and the note in each of what it is.

<root>/<id>/            the driver's own                                 0700
<root>/<id>/meta.json   what a lost row can be rebuilt from
"""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from pyctrd.core.times import to_microseconds
from pyctrd.log import Logger
from pyctrd.metadata.durable import replacing
from pyctrd.metadata.snapshots import SnapshotRow

_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC

_encode = json.JSONEncoder(ensure_ascii=False).encode
_log = Logger(__name__)


class Note(NamedTuple):
    """The content of meta.json; times in microseconds since 1970, `name` is the key of an uncommitted one.

    `remote` is what another program that keeps the snapshot calls it, `remote_before` what it did before its commit,
    and `remote_shared` tells that other snapshots of ours may be the same one there.
    """

    namespace: str
    name: str
    parent_id: int | None
    kind: int
    labels: dict[str, str]
    created_at: int
    updated_at: int
    size: int = 0
    inodes: int = 0
    remote: str = ""
    remote_before: str = ""
    remote_shared: bool = False


def note_of(ns: str, row: SnapshotRow) -> Note:
    """Return what is to be noted of a row."""
    info = row.info
    return Note(
        namespace=ns,
        name=info.name,
        parent_id=row.parent_id,
        kind=info.kind,
        labels=dict(info.labels),
        created_at=to_microseconds(info.created_at),
        updated_at=to_microseconds(info.updated_at),
        size=row.usage.size,
        inodes=row.usage.inodes,
    )


class Directories:
    """The directories below one root; thread-safe."""

    def __init__(self, root: Path, ids: Iterator[int]) -> None:
        """Own `root`, and take the numbers of new directories from `ids`."""
        self._root = root
        self._ids = ids
        self._pending: set[int] = set()
        self._lock = threading.Lock()

    def path(self, snapshot_id: int) -> Path:
        """Return a snapshot's directory."""
        return self._root / str(snapshot_id)

    @contextmanager
    def claim(self) -> Iterator[int]:
        """Make a directory and yield its id; a cleanup keeps off while the block stores its row.

        If the block fails, the directory is a stray.
        """
        snapshot_id = next(self._ids)
        with self._lock:
            self._pending.add(snapshot_id)
        try:
            os.mkdir(f"{self._root}/{snapshot_id}", 0o700)
            yield snapshot_id
        finally:
            with self._lock:
                self._pending.discard(snapshot_id)

    def write_note(self, snapshot_id: int, note: Note) -> None:
        """Write meta.json of a new snapshot.

        Not fsynced, and neither are the new directories: that would double the price of starting a
        container. If the power fails within seconds, the row may be there and the directory not;
        then `SnapshotManager` makes it again, as empty as it was.
        """
        fd = os.open(f"{self._root}/{snapshot_id}/meta.json", _NEW_FILE, 0o644)
        try:
            data = _to_json(note).encode()
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)

    def replace_note(self, snapshot_id: int, note: Note) -> None:
        """Replace meta.json, durably."""
        replace_note(self.path(snapshot_id), note)

    def note(self, snapshot_id: int) -> Note:
        """Return a directory's note. Raises OSError, ValueError, TypeError."""
        return read_note(self.path(snapshot_id))

    def notes(self) -> Iterator[tuple[int, Note]]:
        """Yield the id and the note of every directory that has a readable one."""
        for snapshot_id in self.ids():
            try:
                note = self.note(snapshot_id)
            except (OSError, ValueError, TypeError) as error:
                _log.warning("snapshot has no note", directory=str(self.path(snapshot_id)), error=str(error))
            else:
                yield snapshot_id, note

    def ids(self) -> set[int]:
        """Return the ids of all directories."""
        with os.scandir(self._root) as entries:
            return {int(entry.name) for entry in entries if entry.name.isdecimal()}

    def pending(self) -> set[int]:
        """Return the ids of directories whose rows are on their way."""
        with self._lock:
            return set(self._pending)


def read_note(directory: Path) -> Note:
    """Return a directory's note. Raises OSError, ValueError, TypeError."""
    return Note(**json.loads((directory / "meta.json").read_text()))


def replace_note(directory: Path, note: Note) -> None:
    """Replace a directory's meta.json, durably."""
    with replacing(directory / "meta.json") as temporary:
        temporary.write_text(_to_json(note))


def _to_json(note: Note) -> str:
    return _encode(note._asdict())
