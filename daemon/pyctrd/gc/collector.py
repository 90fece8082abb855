"""One garbage collection: mark, sweep rows, then files."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from pyctrd.core.digests import Digest
from pyctrd.core.reachability import Node
from pyctrd.core.values import dataclass
from pyctrd.metadata import references
from pyctrd.metadata.database import Database


class Content(Protocol):
    """What a collection needs of the content store."""

    def adopt(self) -> None:
        """Give rows to the blobs that a lost database knew."""

    def locked_refs(self) -> set[tuple[str, str]]:
        """Return namespace and ref of the ingests that have a writer."""

    def sweep(self) -> tuple[Sequence[Digest], int]:
        """Delete the files that no row names; return their digests and the bytes freed."""


class Snapshots(Protocol):
    """What a collection needs of the snapshotters."""

    def cleanup(self) -> Mapping[str, int]:
        """Delete the directories that no row names; return how many, by snapshotter."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection removed from disk; `freed` counts the bytes of blobs."""

    content: Sequence[Digest]
    snapshots: Mapping[str, int]
    freed: int


class Collector:
    """Collects garbage in all namespaces; thread-safe, one collection at a time."""

    def __init__(self, database: Database, content: Content, snapshots: Snapshots) -> None:
        """Use the stores of one daemon, the snapshots among them with their gaps filled.

        What a database with gaps does not know is adopted before it can be collected.
        """
        self._database = database
        self._content = content
        self._snapshots = snapshots
        self._running = threading.Lock()
        if database.has_gaps:
            content.adopt()
            database.gaps_filled()

    def collect(self) -> Collected:
        """Remove what nothing keeps; on return its files are gone too, but for directories that are still mounted.

        A crash between rows and files leaves files without rows, which the next collection removes.
        """
        with self._running:
            self._remove_rows()
            content, freed = self._content.sweep()
            return Collected(content, self._snapshots.cleanup(), freed)

    def freed_without(self, ns: str, images: Iterable[str]) -> set[Node]:
        """Return the objects of `ns` whose space a collection would give back if `images` had been removed."""
        with self._database.snapshot() as reader:
            return references.freed_without(reader, ns, self._database.now(), self._content.locked_refs(), images)

    def _remove_rows(self) -> None:
        # Marked without holding up anybody. What was written meanwhile may refer to what looked like
        # garbage, so if anything was, the marking is done again where nobody can write.
        before = self._database.changes
        with self._database.snapshot() as reader:
            garbage = references.find_garbage(reader, self._database.now(), self._content.locked_refs())
        if not garbage:
            return
        with self._database.freeing() as transaction:
            if transaction.changes != before:
                locked = self._content.locked_refs()
                garbage = references.find_garbage(transaction, transaction.now, locked)
            references.remove(transaction, garbage)
