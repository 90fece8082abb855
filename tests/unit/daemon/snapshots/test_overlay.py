"""What an overlay snapshot's mounts look like, and what its directories are."""

import os
from pathlib import Path

import pytest

from pyctrd.core.mounts import Mount
from pyctrd.core.snapshots import Kind
from pyctrd.snapshots.overlay import Overlay, stack
from support.stores import NS, Stores

R = Path("/r")
OWN, P1, P2 = R / "3", R / "2", R / "1"


@pytest.mark.parametrize(
    ("kind", "parents", "mount"),
    [
        (Kind.ACTIVE, [], Mount("bind", "/r/3/fs", options=("rw", "rbind"))),
        (Kind.VIEW, [], Mount("bind", "/r/3/fs", options=("ro", "rbind"))),
        (Kind.VIEW, [P1], Mount("bind", "/r/2/fs", options=("ro", "rbind"))),
        (
            Kind.ACTIVE,
            [P1, P2],
            Mount(
                "overlay",
                "overlay",
                options=("workdir=/r/3/work", "upperdir=/r/3/fs", "lowerdir=/r/2/fs:/r/1/fs", "index=off"),
            ),
        ),
        (Kind.VIEW, [P1, P2], Mount("overlay", "overlay", options=("lowerdir=/r/2/fs:/r/1/fs", "index=off"))),
    ],
)
def test_the_mount_of_each_kind(kind: Kind, parents: list[Path], mount: Mount) -> None:
    assert stack(OWN, parents, kind, ("index=off",)) == [mount]


@pytest.mark.parametrize(("userxattr", "is_there"), [(True, True), (False, False)])
def test_marks_that_root_of_a_user_namespace_may_set(*, userxattr: bool, is_there: bool) -> None:
    (mount,) = Overlay(userxattr=userxattr).mounts(OWN, [P1], Kind.ACTIVE)
    assert ("userxattr" in mount.options) is is_there


def test_a_hundred_and_fifty_parents() -> None:
    parents = [R / str(number) for number in range(150)]
    (mount,) = stack(OWN, parents, Kind.ACTIVE)
    assert mount.options[2].count(":") == 149


def test_directories_and_their_modes(stores: Stores) -> None:
    overlay = stores.snapshots.named("overlayfs")
    umask = os.umask(0o077)
    try:
        overlay.prepare(NS, "active")
        overlay.view(NS, "view")
    finally:
        os.umask(umask)
    root = stores.snapshots.roots()["overlayfs"]
    modes = {str(path.relative_to(root)): path.stat().st_mode & 0o7777 for path in root.rglob("*") if path.is_dir()}
    assert modes == {"1": 0o700, "1/fs": 0o755, "1/work": 0o711, "2": 0o700, "2/fs": 0o755}


@pytest.mark.root
def test_a_snapshot_has_its_parents_owner(stores: Stores) -> None:
    overlay = stores.snapshots.named("overlayfs")
    labels = {"containerd.io/snapshot/uidmapping": "0:1000:65536", "containerd.io/snapshot/gidmapping": "0:2000:65536"}
    (mount,) = overlay.prepare(NS, "base", labels=labels)
    assert (os.stat(mount.source).st_uid, os.stat(mount.source).st_gid) == (1000, 2000)
    overlay.commit(NS, "parent", "base")
    overlay.prepare(NS, "child", "parent")
    child = stores.snapshots.roots()["overlayfs"] / "2" / "fs"
    assert (child.stat().st_uid, child.stat().st_gid) == (1000, 2000)
