"""The same call from many threads at once has one effect, and every caller is told the truth."""

import threading
from collections import Counter
from collections.abc import Callable

import pytest

from pyctr_wire.errors import AlreadyExists, ApiError, NotFound, Unavailable
from pyctrd.core.digests import digest_of
from support.stores import NS, Stores, container, names

CALLERS = 10


def at_once(call: Callable[[int], object]) -> Counter[str]:
    """Run `call` with a number from each of ten threads, let go together; count what came of it."""
    barrier, outcomes = threading.Barrier(CALLERS, timeout=30), Counter[str]()

    def run(number: int) -> None:
        barrier.wait()
        try:
            call(number)
        except ApiError as error:
            outcomes[type(error).__name__] += 1
        else:
            outcomes["done"] += 1

    threads = [threading.Thread(target=run, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return outcomes


@pytest.mark.parametrize("name", ["overlayfs", "native"])
def test_snapshots(stores: Stores, name: str) -> None:
    snapshotter = stores.snapshots.named(name)
    assert at_once(lambda _: snapshotter.prepare(NS, "key")) == {"done": 1, "AlreadyExists": CALLERS - 1}
    assert at_once(lambda number: snapshotter.commit(NS, f"name{number}", "key")) == {
        "done": 1,
        "NotFound": CALLERS - 1,
    }
    (committed,) = names(snapshotter)
    assert at_once(lambda number: snapshotter.prepare(NS, f"child{number}", committed)) == {"done": CALLERS}
    for number in range(CALLERS):
        snapshotter.remove(NS, f"child{number}")
    assert at_once(lambda _: snapshotter.remove(NS, committed)) == {"done": 1, "NotFound": CALLERS - 1}
    at_once(lambda _: snapshotter.cleanup())
    assert not list(stores.snapshots.roots()[name].iterdir())


def test_the_notes_are_right_after_a_race_of_commits(stores: Stores) -> None:
    """Those that lost the race must not leave their name in the winner's note."""
    overlay = stores.snapshots.named("overlayfs")
    overlay.prepare(NS, "key")
    at_once(lambda number: overlay.commit(NS, f"name{number}", "key"))
    (note,) = (stores.snapshots.roots()["overlayfs"]).glob("*/meta.json")
    assert f'"name": "{names(overlay)[0]}"' in note.read_text()


def test_containers(stores: Stores) -> None:
    assert at_once(lambda _: stores.containers.create(NS, container())) == {"done": 1, "AlreadyExists": CALLERS - 1}
    assert at_once(lambda _: stores.containers.delete(NS, "c1")) == {"done": 1, "NotFound": CALLERS - 1}


def test_a_ref_has_one_writer(stores: Stores) -> None:
    writers = []
    assert at_once(lambda _: writers.append(stores.content.open_writer(NS, "ref"))) == {
        "done": 1,
        "Unavailable": CALLERS - 1,
    }
    assert at_once(lambda _: writers[0].close()) == {"done": CALLERS}
    stores.content.open_writer(NS, "ref").close()


def test_one_blob_by_many_routes(stores: Stores) -> None:
    """Ten pulls of one layer under refs of their own: all succeed, the blob is there once."""
    data = b"layer" * 1000
    assert at_once(lambda number: stores.content.write_blob(NS, f"ref{number}", data)) == {"done": CALLERS}
    assert stores.digests() == [digest_of(data)]
    assert stores.content.verify(digest_of(data))
    assert stores.content.list_statuses(NS) == []
    assert at_once(lambda _: stores.content.delete(NS, digest_of(data))) == {"done": 1, "NotFound": CALLERS - 1}


def test_collections_among_writers_take_nothing_that_is_wanted(stores: Stores) -> None:
    """Blobs and snapshots that carry a root label from birth survive any number of collections."""
    overlay = stores.snapshots.named("overlayfs")
    root = {"containerd.io/gc.root": "x"}

    def work(number: int) -> None:
        for turn in range(5):
            if number < 3:
                stores.collector.collect()
                continue
            data = b"%d" % turn  # the same in every thread: written, dropped and written again
            stores.content.write_blob(NS, f"ref{number}", data, labels=root)
            overlay.prepare(NS, f"{number}-{turn}", labels=root)
            try:
                stores.content.delete(NS, digest_of(data))
            except NotFound:
                continue
            try:
                stores.content.write_blob(NS, f"ref{number}", data, labels=root)
            except (AlreadyExists, Unavailable):
                continue

    assert at_once(work) == {"done": CALLERS}
    stores.collector.collect()
    for digest in stores.digests():
        assert stores.content.verify(digest)
    assert len(names(overlay)) == 7 * 5
    for name in names(overlay):
        assert overlay.mounts(NS, name)
