"""A program that uses the stores and dies, by SIGKILL, the n-th time that it reaches a given point.

python -m support.dying_stores ROOT POINT N
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyctr_wire.errors import AlreadyExists, NotFound
from pyctrd.content.blobs import Blobs
from pyctrd.content.ingests import IngestFile, Ingests
from pyctrd.content.store import ContentStore
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.digests import digest_of
from pyctrd.core.images import Image
from pyctrd.metadata import references
from pyctrd.metadata.copies import Copies
from pyctrd.metadata.database import Database
from pyctrd.snapshots.directories import Directories
from pyctrd.snapshots.manager import SnapshotManager
from pyctrd.snapshots.overlay import Overlay
from support.stores import NS, Stores, container, open_stores

# Each is a function that does one step: we die right after it.
POINTS: dict[str, tuple[Any, str]] = {
    "ingest row, no file": (ContentStore, "_begin"),
    "ingest written": (IngestFile, "append"),
    "blob sealed": (IngestFile, "seal"),
    "blob placed": (Blobs, "place"),
    "ingest removed": (Ingests, "remove"),
    "snapshot made": (Overlay, "create"),
    "snapshot noted": (Directories, "write_note"),
    "commit noted": (Directories, "replace_note"),
    "committed": (Database, "_committed"),
    "garbage marked": (references, "find_garbage"),
    "garbage removed in the transaction": (references, "remove"),
    "content swept": (ContentStore, "sweep"),
    "snapshots cleaned": (SnapshotManager, "cleanup"),
    "directory removed": (Overlay, "remove"),
    "database put aside": (Copies, "_quarantine"),
    "database restored": (Copies, "_restore"),
    "content adopted": (ContentStore, "adopt"),
}

LAYER, MANIFEST = b"layer", b"manifest"


def scenario(stores: Stores) -> None:
    """Pull an image, run a container, remove both: each step is done already or is done now."""
    layer = stores.content.write_blob(NS, "layer", LAYER, labels={"containerd.io/gc.root": "x"})
    labels = {"containerd.io/gc.ref.content.0": layer}
    manifest = stores.content.write_blob(NS, "manifest", MANIFEST, labels=labels)
    overlay = stores.snapshots.named("overlayfs")
    with suppress(AlreadyExists):
        overlay.prepare(NS, "extract", labels={"containerd.io/snapshot.ref": "chain"})
    with suppress(AlreadyExists, NotFound):
        overlay.commit(NS, "chain", "extract", {"containerd.io/gc.root": "x"})
    with suppress(AlreadyExists):
        stores.images.create(NS, Image("image", Descriptor("type", manifest, len(MANIFEST))))
    with suppress(AlreadyExists):
        overlay.prepare(NS, "rootfs", "chain", {"containerd.io/gc.root": "x"})
    with suppress(AlreadyExists):
        stores.containers.create(NS, container(snapshotter="overlayfs", snapshot_key="rootfs"))
    stores.collector.collect()
    stores.containers.delete(NS, "c1")
    overlay.remove(NS, "rootfs")
    stores.images.delete(NS, "image")
    stores.content.write_blob(NS, "unreferenced", b"unreferenced")
    stores.collector.collect()


def check_after(stores: Stores) -> None:
    """What `scenario` leaves."""
    assert stores.digests() == [digest_of(LAYER)]
    assert [info.name for batch in stores.snapshots.named("overlayfs").list(NS) for info in batch] == ["chain"]
    assert stores.containers.list(NS) == []
    assert stores.images.list(NS) == []


def _dying_after(step: Callable[..., Any], turns: int) -> Callable[..., Any]:
    left = turns

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        result = step(*args, **kwargs)
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return dying


def main() -> None:
    root, point, turns = sys.argv[1:]
    owner, name = POINTS[point]
    setattr(owner, name, _dying_after(getattr(owner, name), int(turns)))
    with open_stores(Path(root)) as stores:
        scenario(stores)


if __name__ == "__main__":
    main()
