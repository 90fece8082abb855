"""What takes space, and what of it could go, over real stores."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from pyctrd.core.descriptors import Descriptor
from pyctrd.core.images import Image
from pyctrd.core.leases import Lease, Resource
from pyctrd.core.tasks import Status
from pyctrd.runtime.disk_usage import DiskUsage, UsageItem
from pyctrd.runtime.log_folders import LogFolders
from pyctrd.runtime.named_volumes import NamedVolumes
from pyctrd.runtime.presence import Presence
from pyctrd.runtime.volumes import Volumes
from support.stores import NS, Stores, container

SIZE = 100_000  # bytes of each blob and each snapshot's file


@pytest.fixture
def running() -> set[str]:
    """The ids of containers that run."""
    return set()


@pytest.fixture
def usage(stores: Stores, running: set[str], tmp_path: Path) -> DiskUsage:
    def find(ns: str, id: str) -> SimpleNamespace:
        status = Status.RUNNING if id in running else Status.STOPPED
        return SimpleNamespace(init=SimpleNamespace(status=status))

    return DiskUsage(
        stores.containers,
        stores.images,
        stores.content,
        stores.snapshots,
        tuple(stores.snapshots.roots()),
        stores.collector.freed_without,
        SimpleNamespace(find=find),  # type: ignore[arg-type]
        LogFolders(tmp_path / "logs"),
        (
            Volumes(tmp_path / "volumes", Presence(lambda _, id: id in running)),
            NamedVolumes(tmp_path / "named", lambda _: ()),
        ),
    )


def unpacked_image(stores: Stores, name: str, parent: str = "") -> str:
    """Make an image of one layer that is unpacked on top of `parent`; return the name of its snapshot."""
    overlay = stores.snapshots.named("overlayfs")
    write_snapshot(stores, f"making {name}", parent)
    overlay.commit(NS, f"layer of {name}", f"making {name}")
    labels = {"containerd.io/gc.ref.snapshot.overlayfs": f"layer of {name}"}
    digest = stores.content.write_blob(NS, name, name[0].encode() * SIZE, labels=labels)
    stores.images.create(NS, Image(name, Descriptor("type", digest, SIZE)))
    return f"layer of {name}"


def write_snapshot(stores: Stores, key: str, parent: str = "") -> None:
    (mount,) = stores.snapshots.named("overlayfs").prepare(NS, key, parent)
    options = dict(option.partition("=")[::2] for option in mount.options)
    folder = Path(options.get("upperdir", mount.source))
    (folder / "file").write_bytes(b"x" * SIZE)


def measured(usage: DiskUsage) -> dict[str, UsageItem]:
    return {item.kind: item for item in usage.measure(NS)}


def about(size: int, count: int) -> bool:
    """Tell whether `size` is that of `count` files with their directories, whatever the file system adds."""
    return count * SIZE <= size < (count + 1) * SIZE


def test_what_only_unused_images_need_could_go(stores: Stores, usage: DiskUsage) -> None:
    base = unpacked_image(stores, "base")
    unpacked_image(stores, "child", base)
    unpacked_image(stores, "lonely")
    stores.containers.create(NS, container(image="child", snapshotter="overlayfs", snapshot_key="c1"))
    write_snapshot(stores, "c1", "layer of child")
    items = measured(usage)
    images = items["images"]
    assert (images.count, images.active) == (3, 1)
    assert about(images.size, 3)
    assert about(images.reclaimable, 1)  # base has no container, but child stands on its layer
    assert items["content"] == UsageItem("content", 3, 1, 3 * SIZE, 2 * SIZE)
    assert about(items["containers"].size, 1)
    assert items["snapshots"] == UsageItem("snapshots", 0, 0, 0, 0)
    for name in ("base", "lonely"):
        stores.images.delete(NS, name)
    freed = stores.collector.collect().freed
    assert freed == items["content"].reclaimable
    assert about(measured(usage)["images"].size, 2)


def test_what_runs_or_is_kept_cannot_go(stores: Stores, usage: DiskUsage, running: set[str]) -> None:
    unpacked_image(stores, "leased")
    (image,) = stores.images.list(NS)
    stores.leases.create(NS, Lease("l"))
    stores.leases.add_resource(NS, "l", Resource(image.target.digest, "content"))
    stores.containers.create(NS, container(snapshotter="overlayfs", snapshot_key="c1"))
    write_snapshot(stores, "c1")
    items = measured(usage)
    assert items["images"].reclaimable == items["content"].reclaimable == 0
    assert items["containers"].reclaimable == items["containers"].size
    running.add("c1")
    assert measured(usage)["containers"].reclaimable == 0


def test_snapshots_that_are_nobodys(stores: Stores, usage: DiskUsage) -> None:
    write_snapshot(stores, "extract-1")
    write_snapshot(stores, "leased")
    stores.leases.create(NS, Lease("l"))
    stores.leases.add_resource(NS, "l", Resource("leased", "snapshots/overlayfs"))
    found = measured(usage)["snapshots"]
    assert (found.count, found.active) == (2, 1)
    assert about(found.size, 2)
    assert about(found.reclaimable, 1)


def test_blobs_of_other_namespaces_free_nothing(stores: Stores, usage: DiskUsage) -> None:
    data = b"s" * SIZE
    for ns in (NS, "other"):
        stores.content.write_blob(ns, "shared", data)
    assert measured(usage)["content"] == UsageItem("content", 1, 1, SIZE, 0)
