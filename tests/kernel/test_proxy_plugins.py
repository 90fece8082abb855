"""Snapshots and content that another program keeps: another daemon of ours, or a real containerd."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from pyctr_wire.containerd.services.content.v1 import content_pb2, content_pb2_grpc
from pyctr_wire.containerd.services.introspection.v1 import introspection_pb2, introspection_pb2_grpc
from pyctr_wire.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_pb2_grpc
from support.daemon_process import DaemonProcess, wait_until
from support.pyctr_command import Pyctr
from support.real_containerd import RealContainerd

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

PROGRAMS = ("sh", "cat", "echo")
# What others have there is none of our business.
FOREIGN = "somebody-elses"
CONFIG = """
[proxy_plugins.far]
type = "snapshot"
address = "{address}"
snapshotter = "overlayfs"
timeout = 20

[proxy_plugins.depot]
type = "content"
address = "unix://{address}"
timeout = 20
"""


class Keeper:
    """Looks at what the other program has of ours."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self.daemon = daemon

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        with self.daemon.channel() as channel:
            yield channel

    def snapshots(self) -> list[str]:
        request = snapshots_pb2.ListSnapshotsRequest(snapshotter="overlayfs")
        with self.channel() as channel:
            stub = snapshots_pb2_grpc.SnapshotsStub(channel)
            batches = stub.List(request, metadata=(("containerd-namespace", "pyctr"),), timeout=30)
            return [info.name for batch in batches for info in batch.info]

    def blobs(self) -> list[str]:
        with self.channel() as channel:
            stub = content_pb2_grpc.ContentStub(channel)
            request = content_pb2.ListContentRequest()
            batches = stub.List(request, metadata=(("containerd-namespace", "pyctr"),), timeout=30)
            return [info.digest for batch in batches for info in batch.info]


@pytest.fixture(params=["pyctrd", "containerd"], scope="module")
def keeper(request: pytest.FixtureRequest) -> Iterator[Keeper]:
    if request.param == "containerd" and shutil.which("containerd") is None:
        pytest.skip("containerd is not installed")
    with DaemonProcess() if request.param == "pyctrd" else RealContainerd() as daemon:
        yield Keeper(daemon)


@pytest.fixture(scope="module")
def pyctr(keeper: Keeper) -> Iterator[Pyctr]:
    with DaemonProcess(config=CONFIG.format(address=keeper.daemon.address)) as daemon:
        command = Pyctr(daemon)
        yield command
        for image in command("image", "ls", "-q").split():
            command("image", "rm", image)
        command("gc")
        assert keeper.snapshots() == [FOREIGN]
        assert keeper.blobs() == []
        assert not list((daemon.root / "snapshots" / "far").iterdir())


@pytest.fixture(scope="module", autouse=True)
def foreign(keeper: Keeper) -> None:
    request = snapshots_pb2.PrepareSnapshotRequest(
        snapshotter="overlayfs", key=FOREIGN, labels={"containerd.io/gc.root": "here"}
    )
    with keeper.channel() as channel:
        stub = snapshots_pb2_grpc.SnapshotsStub(channel)
        stub.Prepare(request, metadata=(("containerd-namespace", "pyctr"),), timeout=30)


@pytest.fixture(autouse=True)
def image(pyctr: Pyctr) -> Iterator[None]:
    """One image, and nothing else when a test begins."""
    pyctr("image", "from-host", "demo", *PROGRAMS)
    pyctr("gc")  # the index of what it was packed in
    yield
    for kind, remove in (("ps -aq", "rm -f"), ("image ls -q", "image rm -f")):
        for name in pyctr(*kind.split()).split():
            pyctr(*remove.split(), name)
    pyctr("gc")


def test_they_are_listed(pyctr: Pyctr) -> None:
    with pyctr.daemon.channel() as channel:
        stub = introspection_pb2_grpc.IntrospectionStub(channel)
        request = introspection_pb2.PluginsRequest(filters=["type==io.containerd.snapshotter.v1, id==far"])
        (plugin,) = stub.Plugins(request, timeout=30).plugins

    assert plugin.platforms
    assert "address" in plugin.exports


def test_containers_run_on_what_is_kept_elsewhere(pyctr: Pyctr, keeper: Keeper) -> None:
    """And what they write goes with them."""
    assert not (pyctr.daemon.root / "content" / "blobs").exists()
    assert len(keeper.blobs()) == 3  # a layer, a configuration, a manifest

    pyctr("run", "--name", "box", "--network", "none", "--snapshotter", "far", "demo", "sh", "-c", "echo x >/written")
    pyctr("start", "-a", "box")

    names = keeper.snapshots()
    assert [name.split("/")[0] for name in names if name != FOREIGN] == ["default"] * 2
    (active,) = (name for name in names if "committed" not in name and name != FOREIGN)
    pyctr("rm", "box")
    pyctr("gc")
    assert active not in keeper.snapshots()
    assert len(keeper.snapshots()) == len(names) - 1


def test_an_image_leaves_and_comes_back(pyctr: Pyctr, keeper: Keeper, tmp_path: Path) -> None:
    """Its blobs are read there, and are written there again."""
    pyctr("image", "export", "-o", str(tmp_path / "image.tar"), "demo")
    before = set(keeper.blobs())
    pyctr("image", "rm", "demo")
    pyctr("gc")
    assert keeper.blobs() == []

    pyctr("image", "import", str(tmp_path / "image.tar"))

    assert before <= set(keeper.blobs())  # and the archive's own index
    assert pyctr.box("--snapshotter", "far", "demo", "echo", "here") == "here\n"


def test_everything_is_known_again_after_a_crash(pyctr: Pyctr) -> None:
    pyctr("create", "--name", "box", "--network", "none", "--snapshotter", "far", "demo", "cat", "/etc/hostname")

    pyctr.daemon.restart()

    pyctr("start", "-a", "box")
    pyctr("rm", "box")


def test_one_that_is_gone_fails_its_own_calls_by_name(pyctr: Pyctr, keeper: Keeper) -> None:
    run = ("run", "--rm", "--network", "none", "--snapshotter", "far", "demo", "echo", "here")
    pyctr("create", "--name", "box", "--network", "none", "--snapshotter", "far", "demo", "echo", "boxed")
    pyctr("create", "--name", "gone", "--network", "none", "--snapshotter", "far", "demo", "echo", "boxed")

    keeper.daemon.kill()
    done = pyctr.run(*run)
    assert done.returncode == 125
    assert "depot" in done.stderr
    assert str(keeper.daemon.address) in done.stderr
    done = pyctr.run("start", "box")
    assert "snapshotter far: Mounts: nobody answers" in done.stderr
    pyctr("rm", "gone")
    pyctr("gc")
    pyctr("df")
    assert pyctr("ps", "-aq").split() != []
    keeper.daemon.start()

    wait_until(lambda: pyctr.run(*run).stdout == "here\n", "it works again")
    assert pyctr("start", "-a", "box") == "boxed\n"
    pyctr("rm", "box")
