"""What every snapshotter does, whatever is below it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from pyctr_wire.errors import AlreadyExists, ApiError, DataLoss, FailedPrecondition, InvalidArgument, NotFound
from pyctrd.config import checks
from pyctrd.core.events import SnapshotCommit, SnapshotPrepare, SnapshotRemove
from pyctrd.core.leases import Lease, Resource
from pyctrd.core.mounts import FUSE_OVERLAY, Mount
from pyctrd.core.snapshots import Kind, SnapshotInfo, Usage
from pyctrd.core.snapshotter_settings import Snapshotters
from pyctrd.snapshots.driver import Driver
from pyctrd.snapshots.drivers import built_in
from pyctrd.snapshots.manager import SnapshotManager
from pyctrd.snapshots.snapshotter import Snapshotter
from support.dying_snapshots import MAKERS, STEPS
from support.snapshot_drivers import NAMES, Places, shown, unmount_below
from support.stores import NS, Stores, infos, names, open_stores


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    with ExitStack() as opened:
        yield Places(tmp_path_factory.mktemp("places"), opened)


@pytest.fixture(autouse=True)
def tidied(places: Places) -> Iterator[None]:
    yield
    places.tidy()


@pytest.fixture(params=NAMES)
def driver(places: Places, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Driver]:
    yield places.driver(request.param, tmp_path)
    unmount_below(tmp_path)


@pytest.fixture
def stores(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stores]:
    with open_stores(tmp_path, None, *_others(request)) as opened:
        yield opened


def _others(request: pytest.FixtureRequest) -> list[Driver]:
    """Return the driver that a test wants, unless there always is one of its name."""
    driver = request.getfixturevalue("driver") if "driver" in request.fixturenames else None
    return [] if driver is None or driver.name in ("overlayfs", "native") else [driver]


@pytest.fixture
def snapshotter(stores: Stores, driver: Driver) -> Snapshotter:
    return stores.snapshots.named(driver.name)


def refused(error: type[ApiError], text: str) -> AbstractContextManager[object]:
    return pytest.raises(error, match=f"^{re.escape(text)}$")


def commit(snapshotter: Snapshotter, name: str, parent: str = "", content: str = "") -> None:
    """Commit a snapshot that adds one file of its own name."""
    with shown(snapshotter.prepare(NS, f"making {name}", parent)) as tree:
        (tree / name).write_text(content)
    snapshotter.commit(NS, name, f"making {name}")


def test_the_life_of_a_snapshot(stores: Stores, snapshotter: Snapshotter) -> None:
    mounts = snapshotter.prepare(NS, "key", labels={"gone": "1"})
    assert snapshotter.mounts(NS, "key") == mounts
    now = stores.clock.now
    assert snapshotter.stat(NS, "key") == SnapshotInfo("key", "", Kind.ACTIVE, now, now, {"gone": "1"})
    stores.clock.advance(seconds=1)
    snapshotter.commit(NS, "name", "key", {"new": "1", "empty": ""})
    now = stores.clock.now
    assert infos(snapshotter) == [SnapshotInfo("name", "", Kind.COMMITTED, now, now, {"new": "1"})]
    snapshotter.prepare(NS, "key", "name")
    snapshotter.remove(NS, "key")
    snapshotter.remove(NS, "name")
    assert names(snapshotter) == []
    assert [event for _, event in stores.events] == [
        SnapshotPrepare("key", "", snapshotter.name),
        SnapshotCommit("key", "name", snapshotter.name),
        SnapshotPrepare("key", "name", snapshotter.name),
        SnapshotRemove("key", snapshotter.name),
        SnapshotRemove("name", snapshotter.name),
    ]


def test_a_view_is_read_only_and_silent(stores: Stores, snapshotter: Snapshotter) -> None:
    commit(snapshotter, "base")
    before = len(stores.events)
    mounts = snapshotter.view(NS, "view", "base")
    assert snapshotter.mounts(NS, "view") == mounts
    assert "ro" in mounts[0].options
    assert snapshotter.stat(NS, "view").kind is Kind.VIEW
    assert len(stores.events) == before
    assert snapshotter.usage(NS, "view") == Usage()
    with refused(FailedPrecondition, 'snapshot "view" is not active: failed precondition'):
        snapshotter.commit(NS, "name", "view")


def test_what_does_not_exist(snapshotter: Snapshotter) -> None:
    text = "snapshot nobody does not exist: not found"
    for call in (snapshotter.mounts, snapshotter.remove, snapshotter.stat, snapshotter.usage):
        with refused(NotFound, text):
            call(NS, "nobody")
    with refused(NotFound, text):
        snapshotter.commit(NS, "name", "nobody")
    with refused(NotFound, "parent snapshot nobody does not exist: not found"):
        snapshotter.prepare(NS, "key", "nobody")
    commit(snapshotter, "base")
    with refused(NotFound, "snapshot base does not exist: not found"):
        snapshotter.stat("other", "base")


def test_a_parent_must_be_committed(snapshotter: Snapshotter) -> None:
    snapshotter.prepare(NS, "active")
    with refused(InvalidArgument, 'parent "active" is not committed snapshot: invalid argument'):
        snapshotter.prepare(NS, "key", "active")


def test_mounts_of_a_committed_one_are_refused(snapshotter: Snapshotter) -> None:
    commit(snapshotter, "base")
    with refused(FailedPrecondition, "requested snapshot base not active or view: failed precondition"):
        snapshotter.mounts(NS, "base")


def test_keys_and_names_are_one_space_and_what_is_taken_is_leased(stores: Stores, snapshotter: Snapshotter) -> None:
    stores.leases.create(NS, Lease("l"))
    commit(snapshotter, "base")
    snapshotter.prepare(NS, "key")
    resources = []
    for taken in ("base", "key"):
        with refused(AlreadyExists, f'snapshot "{taken}": already exists'):
            snapshotter.prepare(NS, taken, lease="l")
        resources.append(Resource(taken, f"snapshots/{snapshotter.name}"))
        assert stores.leases.list_resources(NS, "l") == resources
    for key in ("key", "making base"):  # what it was made of: a client asks again whose answer was lost
        with refused(AlreadyExists, 'snapshot "base": already exists'):
            snapshotter.commit(NS, "base", key)
    assert snapshotter.stat(NS, "key").kind is Kind.ACTIVE
    assert snapshotter.cleanup() == []


def test_a_promised_snapshot_that_is_there_saves_the_unpacking(stores: Stores, snapshotter: Snapshotter) -> None:
    stores.leases.create(NS, Lease("l"))
    promise = {"containerd.io/snapshot.ref": "chain"}
    snapshotter.prepare(NS, "first", labels=promise)
    snapshotter.commit(NS, "chain", "first")
    with refused(AlreadyExists, 'target snapshot "chain": already exists'):
        snapshotter.prepare(NS, "second", labels=promise, lease="l")
    assert names(snapshotter) == ["chain"]
    assert stores.leases.list_resources(NS, "l") == [Resource("chain", f"snapshots/{snapshotter.name}")]


def test_a_lease_follows_from_key_to_name(stores: Stores, snapshotter: Snapshotter) -> None:
    stores.leases.create(NS, Lease("l"))
    snapshotter.prepare(NS, "key", lease="l")
    snapshotter.commit(NS, "name", "key", lease="l")
    assert stores.leases.list_resources(NS, "l") == [Resource("name", f"snapshots/{snapshotter.name}")]
    snapshotter.remove(NS, "name", lease="l")
    assert stores.leases.list_resources(NS, "l") == []
    snapshotter.cleanup()
    with refused(NotFound, "lease does not exist: not found"):
        snapshotter.prepare(NS, "other", lease="nobody")
    assert names(snapshotter) == []
    assert snapshotter.cleanup() == []


def test_a_parent_goes_right_after_its_child(snapshotter: Snapshotter) -> None:
    commit(snapshotter, "base")
    snapshotter.prepare(NS, "key", "base")
    with refused(FailedPrecondition, "cannot remove snapshot with child: failed precondition"):
        snapshotter.remove(NS, "base")
    snapshotter.remove(NS, "key")
    snapshotter.remove(NS, "base")
    assert len(snapshotter.cleanup()) == 2
    assert snapshotter.cleanup() == []


def test_usage_is_live_and_then_frozen(snapshotter: Snapshotter, driver: Driver, tmp_path: Path) -> None:
    mounts = snapshotter.prepare(NS, "key")
    before = snapshotter.usage(NS, "key")
    with shown(mounts) as tree:
        (tree / "file").write_bytes(b"x" * 20000)
        os.sync()
    during = snapshotter.usage(NS, "key")
    assert during.size - before.size >= 20000
    assert during.inodes == before.inodes + (driver.kept(tmp_path, Kind.ACTIVE).name == "fs")
    snapshotter.commit(NS, "name", "key")
    if driver.name == "devmapper":
        assert not Path(mounts[0].source).exists()  # only what is on top of it needs a device
    elif driver.name != "erofs":  # of which nobody can change what is committed
        with shown(mounts) as tree:
            (tree / "late").write_bytes(b"x" * 20000)
    assert snapshotter.usage(NS, "name") == during


def test_labels(stores: Stores, snapshotter: Snapshotter) -> None:
    snapshotter.prepare(NS, "key", labels={"a": "1", "b": "2"})
    info = snapshotter.stat(NS, "key")
    stores.clock.advance(seconds=1)
    wanted = SnapshotInfo("key", "", Kind.ACTIVE, info.created_at, info.updated_at, {"a": "", "c": "3"})
    updated = snapshotter.update(NS, wanted, ("labels.a", "labels.c"))
    assert updated.labels == {"b": "2", "c": "3"}
    assert updated.updated_at == stores.clock.now
    assert snapshotter.stat(NS, "key") == updated
    assert snapshotter.update(NS, wanted).labels == {"c": "3"}
    with refused(InvalidArgument, 'cannot update "kind" field on snapshot "key": invalid argument'):
        snapshotter.update(NS, wanted, ("kind",))
    with pytest.raises(InvalidArgument):
        snapshotter.update(NS, SnapshotInfo("", "", Kind.ACTIVE, info.created_at, info.updated_at))
    with pytest.raises(InvalidArgument, match=r"^info\.Labels: "):
        snapshotter.prepare(NS, "other", labels={"k": "v" * 4096})


def test_lists_are_filtered(snapshotter: Snapshotter) -> None:
    commit(snapshotter, "base")
    snapshotter.prepare(NS, "active", "base", {"x": "1"})
    snapshotter.view(NS, "view", "base")

    def found(*filters: str) -> list[str]:
        return [info.name for batch in snapshotter.list(NS, filters) for info in batch]

    assert found() == ["active", "base", "view"]
    assert found("kind==committed") == ["base"]
    assert found("parent==base,kind!=view") == ["active"]
    assert found("labels.x", "name==view") == ["active", "view"]
    assert found('parent==""') == ["base"]


LABELS = {"containerd.io/snapshot/uidmapping": "0:1000:10", "containerd.io/snapshot/gidmapping": "0:2000:10"}


def test_a_mapping_that_is_none_is_refused(snapshotter: Snapshotter) -> None:
    with pytest.raises(InvalidArgument, match="uidmapping"):
        snapshotter.prepare(NS, "key", labels={"containerd.io/snapshot/uidmapping": "nonsense"})
    assert names(snapshotter) == []


@pytest.mark.root
@pytest.mark.parametrize("parent", ["", "base"])
def test_a_mapped_snapshots_own_files_belong_to_the_mapped_users(
    snapshotter: Snapshotter, driver: Driver, parent: str
) -> None:
    """Those below are for whoever mounts them to show so, or have been copied and given away."""
    commit(snapshotter, "base")
    if parent and snapshotter.name == "fuse-overlayfs":
        with pytest.raises(InvalidArgument, match="native can"):
            snapshotter.prepare(NS, "key", parent, LABELS)
        assert names(snapshotter) == ["base"]
        return
    mounts = snapshotter.prepare(NS, "key", parent, LABELS)
    with shown(mounts) as own:
        assert (own.stat().st_uid, own.stat().st_gid) == (1000, 2000)
    asked = ("uidmap=0:1000:10", "gidmap=0:2000:10")
    assert mounts[0].options[:2] == asked if parent and driver.maps_ids else asked[0] not in mounts[0].options
    assert snapshotter.mounts(NS, "key") == mounts


@pytest.mark.root
def test_a_copy_is_given_to_the_mapped_users_with_all_that_it_is(stores: Stores) -> None:
    """Hard links once, modes and file capabilities as before; who is not mapped owns nothing of it."""
    native = stores.snapshots.named("native")
    base = Path(native.prepare(NS, "making", "")[0].source)
    (base / "d").mkdir()
    for name, uid in (("d/file", 3), ("other", 500), ("program", 0)):
        (base / name).write_text("")
        os.chown(base / name, uid, uid)
    (base / "d/link").hardlink_to(base / "d/file")
    (base / "symlink").symlink_to("/etc/passwd")
    os.lchown(base / "symlink", 5, 5)
    (base / "program").chmod(0o6755)
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(base / "other", "security.capability", capability)
    native.commit(NS, "base", "making")

    copy = Path(native.prepare(NS, "key", "base", LABELS)[0].source)

    owners = {path.name: (path.lstat().st_uid, path.lstat().st_gid) for path in copy.rglob("*")}
    assert owners == {
        "d": (1000, 2000), "file": (1003, 2003), "link": (1003, 2003), "other": (65534, 65534),
        "program": (1000, 2000), "symlink": (1005, 2005),
    }  # fmt: skip
    assert (copy / "program").stat().st_mode & 0o7777 == 0o6755
    assert os.getxattr(copy / "other", "security.capability") == capability
    assert (base / "d/file").stat().st_uid == 3
    assert os.stat("/etc/passwd").st_uid == 0


def test_files_that_are_gone_are_named(stores: Stores, snapshotter: Snapshotter, driver: Driver) -> None:
    commit(snapshotter, "base")
    snapshotter.prepare(NS, "key", "base")
    root = stores.snapshots.roots()[driver.name]
    kept = driver.kept(max(root.glob("[0-9]*"), key=lambda path: int(path.name)), Kind.ACTIVE)
    kept.rename(kept.with_name("aside"))
    with pytest.raises(DataLoss, match=rf"snapshot key: {kept} is gone"):
        snapshotter.mounts(NS, "key")


def test_rebase(snapshotter: Snapshotter, driver: Driver) -> None:
    commit(snapshotter, "base")
    snapshotter.prepare(NS, "loose")
    snapshotter.prepare(NS, "bound", "base")
    with refused(InvalidArgument, "cannot change parent of active snapshot: invalid argument"):
        snapshotter.commit(NS, "name", "bound", parent="base")
    if not driver.can_rebase:
        with pytest.raises(InvalidArgument):
            snapshotter.commit(NS, "name", "loose", parent="base")
        return
    with refused(NotFound, "parent snapshot nobody does not exist: not found"):
        snapshotter.commit(NS, "name", "loose", parent="nobody")
    snapshotter.commit(NS, "name", "loose", parent="base")
    assert snapshotter.stat(NS, "name").parent == "base"


def test_a_lost_database_is_rebuilt_from_the_notes(
    tmp_path: Path, driver: Driver, request: pytest.FixtureRequest
) -> None:
    with open_stores(tmp_path, None, *_others(request)) as stores:
        snapshotter = stores.snapshots.named(driver.name)
        commit(snapshotter, "base")
        commit(snapshotter, "top", "base")
        mounts = snapshotter.prepare(NS, "key", "top", {"a": "1"})
        view = snapshotter.view("other ns", "view")
        snapshotter.update(NS, snapshotter.stat(NS, "key"), ())
        before, usage = infos(snapshotter), snapshotter.usage(NS, "base")
    for file in tmp_path.glob("metadata.db*"):
        file.unlink()
    with open_stores(tmp_path, None, *_others(request)) as stores:
        snapshotter = stores.snapshots.named(driver.name)
        after = infos(snapshotter)
        assert [(info.name, info.parent, info.kind, info.labels) for info in after] == [
            (info.name, info.parent, info.kind, info.labels) for info in before
        ]
        assert snapshotter.mounts(NS, "key") == mounts
        assert snapshotter.mounts("other ns", "view") == view
        assert snapshotter.usage(NS, "base") == usage
        stores.collector.collect()
        assert infos(snapshotter) == after
        snapshotter.prepare(NS, "new")
        stores.clock.advance(hours=25)
        stores.collector.collect()
        assert infos(snapshotter) == []


def test_a_copy_that_is_old_is_corrected_by_the_notes(tmp_path: Path) -> None:
    with open_stores(tmp_path) as stores:
        overlay = stores.snapshots.named("overlayfs")
        overlay.prepare(NS, "committed later")
        overlay.prepare(NS, "removed later")
    with open_stores(tmp_path) as stores:
        overlay = stores.snapshots.named("overlayfs")
        overlay.commit(NS, "name", "committed later")
        overlay.remove(NS, "removed later")
        overlay.cleanup()
    (tmp_path / "metadata.db.copy.older").replace(tmp_path / "metadata.db.copy")
    (tmp_path / "metadata.db").write_bytes(b"")
    with open_stores(tmp_path) as stores:
        assert names(stores.snapshots.named("overlayfs")) == ["name"]


def test_directories_that_a_power_cut_took_are_made_again(tmp_path: Path) -> None:
    with open_stores(tmp_path) as stores:
        overlay = stores.snapshots.named("overlayfs")
        commit(overlay, "base")
        mounts = overlay.prepare(NS, "key", "base")
        with shown(mounts) as tree:
            top = tree.parent
    subprocess.run(["rm", "-r", str(top)], check=True)
    with open_stores(tmp_path) as stores:
        assert stores.snapshots.named("overlayfs").mounts(NS, "key") == mounts
        assert tree.is_dir()


@pytest.mark.root
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", MAKERS)
def test_a_daemon_killed_in_the_middle_leaves_nothing(places: Places, tmp_path: Path, name: str, step: str) -> None:
    """Rows and files tell the same afterwards, and what was not done can be done."""
    driver = places.driver(name, tmp_path)
    place = driver.root or tmp_path / "snapshots" / name
    with open_stores(tmp_path, None, driver) as stores:
        commit(stores.snapshots.named(name), "base", content="below")
    command = [sys.executable, "-m", "support.dying_snapshots", str(tmp_path), name, str(place), step]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYCTR_TEST_POOL": places.pool}
    died = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr

    driver = places.driver(name, tmp_path)
    with open_stores(tmp_path, None, driver) as stores:
        snapshotter = stores.snapshots.named(name)
        strays = snapshotter.cleanup()
        found = names(snapshotter)
        assert (strays, found) == {
            "files made": ([2], ["base"]),
            "row stored": ([], ["base", "key"]),
            "files frozen": ([], ["base", "key"]),
            "row frozen": ([], ["above", "base"]),
        }[step]
        if found == ["base"]:
            snapshotter.prepare(NS, "key", "base")
        if "above" not in found:
            with shown(snapshotter.mounts(NS, "key")) as tree:
                (tree / "written").write_text("x")
            snapshotter.commit(NS, "above", "key")
        with shown(snapshotter.prepare(NS, "last", "above")) as tree:
            if driver.kept(place, Kind.ACTIVE).name != "fs" or name == "btrfs":  # else it shows what it adds
                assert (tree / "base").read_text() == "below"
        for one in ("last", "above", "base"):
            snapshotter.remove(NS, one)
        snapshotter.cleanup()
        assert not [path for path in place.iterdir() if path.name.isdecimal()]
    unmount_below(tmp_path)


def test_an_unknown_snapshotter(stores: Stores) -> None:
    with refused(InvalidArgument, "snapshotter argument missing: invalid argument"):
        stores.snapshots.named("")
    with refused(InvalidArgument, "snapshotter not loaded: zfs: invalid argument"):
        stores.snapshots.named("zfs")


def test_what_this_machine_cannot_have_says_why(tmp_path: Path, stores: Stores) -> None:
    """The root of the tests is on no btrfs here, and aufs is nowhere."""
    _, refused_ones = built_in(tmp_path / "own", Snapshotters())
    manager = SnapshotManager(tmp_path / "own", stores.database, refused=refused_ones)
    with pytest.raises(InvalidArgument, match=r"^snapshotter not loaded: aufs: .*use overlayfs"):
        manager.named("aufs")
    if "btrfs" in refused_ones:
        with pytest.raises(InvalidArgument, match=r"^snapshotter not loaded: btrfs: .* is not on a btrfs file system"):
            manager.named("btrfs")


def test_every_snapshotter_is_built_in_and_no_other_program_can_have_its_name(tmp_path: Path) -> None:
    """The configuration is read before the drivers are loaded."""
    usable, refused_ones = built_in(tmp_path, Snapshotters())
    assert {driver.name for driver in usable} | set(refused_ones) == checks.BUILT_IN
    assert checks.BUILT_IN - {"aufs"} == set(NAMES)


@pytest.mark.root
def test_what_is_mounted_is_what_was_committed(snapshotter: Snapshotter, tmp_path: Path) -> None:
    """Three layers, a file changed in each, seen through the kernel."""
    parent = ""
    for number in (1, 2, 3):
        mounts = snapshotter.prepare(NS, "key", parent)
        mounted(mounts, tmp_path / "mnt", f"echo {number} > own{number} && echo {number} > shared")
        parent = f"layer {number}"
        snapshotter.commit(NS, parent, "key")
    for call, writes in ((snapshotter.prepare, True), (snapshotter.view, False)):
        mounts = call(NS, f"final {writes}", parent)
        assert mounted(mounts, tmp_path / "mnt", "cat own1 own2 own3 shared") == "1\n2\n3\n3\n"
        assert mounted(mounts, tmp_path / "mnt", "rm own1 2>/dev/null && echo yes || echo no").strip() == (
            "yes" if writes else "no"
        )
    assert mounted(snapshotter.view(NS, "still", parent), tmp_path / "mnt", "cat own1") == "1\n"


def mounted(mounts: Sequence[Mount], target: Path, script: str) -> str:
    """Run `script` inside the mounts, in a mount namespace that ends with it; return what it printed."""
    target.mkdir(exist_ok=True)
    (mount,) = mounts
    make = f'mount -t "{mount.type}" -o "{",".join(mount.options)}" "{mount.source}" "{target}"'
    if mount.type == FUSE_OVERLAY:
        make = f'fuse-overlayfs -o "{",".join(mount.options)}" "{target}"'
    if mount.type == "bind":  # mount(8) applies the options of a bind in a second step
        make = f'mount --bind "{mount.source}" "{target}" && mount -o remount,bind,{mount.options[0]} "{target}"'
    command = ["unshare", "--mount", "sh", "-ec", f'{make}\n(cd "{target}"; {script})\numount "{target}"']
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
