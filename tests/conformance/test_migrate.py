"""`pyctrd migrate` between real daemons: containerd to ours and back, cut half-way, and with tasks that run on."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from pyctr_wire.containerd.services.containers.v1 import containers_pb2, containers_pb2_grpc
from pyctr_wire.containerd.services.content.v1 import content_pb2, content_pb2_grpc
from pyctr_wire.containerd.services.images.v1 import images_pb2, images_pb2_grpc
from pyctr_wire.containerd.services.leases.v1 import leases_pb2, leases_pb2_grpc
from pyctr_wire.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_pb2_grpc
from support import peers
from support.ctr_client import Ctr, program
from support.daemon_process import DEADLINE, DaemonProcess, wait_until
from support.footprint import remove_cgroup
from support.images import busybox, busybox_with_applets, digest, write_archive
from support.real_containerd import RealContainerd

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.timeout(300)]

IMAGE: Final = "example.org/busybox:1"
LARGE: Final = 96 << 20  # bytes
SNAPSHOTTERS: Final = ("overlayfs", "native")  # that all daemons have
# The first time it writes, later it shows what was written.
WRITER: Final = (
    "if [ -e /kept/file ]; then cat /kept/file; [ -L /bin/echo ] || echo removed;"
    " else mkdir /kept; echo from-the-source > /kept/file; rm /bin/echo; fi"
)
# As the writer, but its exit code says it.
COPIED_WRITER: Final = "if [ -e /kept ] && [ ! -L /bin/echo ]; then exit 7; else mkdir /kept && rm /bin/echo; fi"
CHANGER: Final = (
    'if [ -e /state ]; then cat /state; else echo early > /state; trap "echo late > /state; exit" TERM;'
    " while :; do sleep 0.1; done; fi"
)


def older() -> DaemonProcess:
    if shutil.which("containerd") is None:
        pytest.skip("containerd is not installed")
    return RealContainerd()


def newer() -> DaemonProcess:
    peers.find("containerd-shim-runc-v2", "2")
    return RealContainerd(str(peers.find("containerd", "2")))


@pytest.fixture(
    params=[
        "1.6-ours",
        pytest.param("ours-1.6", marks=pytest.mark.full),
        pytest.param("2-ours", marks=pytest.mark.full),
        pytest.param("ours-2", marks=pytest.mark.full),
    ]
)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[DaemonProcess, DaemonProcess]]:
    """The daemon to copy from, and the one to copy to."""
    make = {"1.6": older, "2": newer, "ours": DaemonProcess}
    source, target = (make[name] for name in request.param.split("-"))
    with source() as one, target() as other:
        yield one, other


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"move-{uuid.uuid4().hex[:8]}"
    yield name
    remove_cgroup(name)


def migrate(source: DaemonProcess, target: DaemonProcess) -> "subprocess.CompletedProcess[str]":
    command = _command(source.address, target.address)
    return subprocess.run(command, capture_output=True, text=True, timeout=8 * DEADLINE, check=False)


def _command(source: Path, target: Path) -> list[str]:
    ends = ["--from", str(source), "--to", f"unix://{target}"]
    return [sys.executable, "-m", "pyctrd", "migrate", *ends]


class Seen:
    """What a client sees of one namespace of a daemon."""

    def __init__(self, daemon: DaemonProcess, namespace: str) -> None:
        self._daemon = daemon
        self._metadata = (("containerd-namespace", namespace),)

    def _ask(self, stub: Any, method: str, request: Any) -> Any:
        with self._daemon.channel() as channel:
            answer = getattr(stub(channel), method)(request, metadata=self._metadata, timeout=DEADLINE)
            return list(answer) if isinstance(answer, Iterator) else answer

    def content(self) -> dict[str, tuple[int, dict[str, str]]]:
        batches = self._ask(content_pb2_grpc.ContentStub, "List", content_pb2.ListContentRequest())
        return {info.digest: (info.size, dict(info.labels)) for batch in batches for info in batch.info}

    def arrived(self) -> list[int]:
        request = content_pb2.ListStatusesRequest()
        return [one.offset for one in self._ask(content_pb2_grpc.ContentStub, "ListStatuses", request).statuses]

    def images(self) -> dict[str, str]:
        found = self._ask(images_pb2_grpc.ImagesStub, "List", images_pb2.ListImagesRequest()).images
        return {image.name: image.target.digest for image in found}

    def snapshots(self, snapshotter: str) -> dict[str, tuple[str, int]]:
        request = snapshots_pb2.ListSnapshotsRequest(snapshotter=snapshotter)
        batches = self._ask(snapshots_pb2_grpc.SnapshotsStub, "List", request)
        return {info.name: (info.parent, info.kind) for batch in batches for info in batch.info}

    def containers(self) -> dict[str, tuple[bytes, str, str]]:
        request = containers_pb2.ListContainersRequest()
        found = self._ask(containers_pb2_grpc.ContainersStub, "List", request).containers
        return {one.id: (one.spec.value, one.image, one.snapshot_key) for one in found}

    def leases(self) -> list[str]:
        return [one.id for one in self._ask(leases_pb2_grpc.LeasesStub, "List", leases_pb2.ListRequest()).leases]

    def everything(self) -> tuple[Any, ...]:
        snapshots = [self.snapshots(name) for name in SNAPSHOTTERS]
        return self.content(), self.images(), snapshots, self.containers(), self.leases()


def test_all_of_a_namespace_arrives_though_the_first_run_is_cut(
    pair: tuple[DaemonProcess, DaemonProcess], namespace: str
) -> None:
    source, target = pair
    there, here = Ctr(source, program("1.6"), namespace), Ctr(target, program("1.6"), namespace)
    archive = write_archive(source.base / "image.tar", {IMAGE: busybox_with_applets()})
    there("images", "import", str(archive))
    there("namespaces", "label", namespace, "colour=green")
    assert there("run", IMAGE, "writer", "sh", "-c", WRITER) == ""
    there("run", "--snapshotter", "native", IMAGE, "copied", "sh", "-c", COPIED_WRITER)
    layer = next(name for name, (parent, _) in Seen(source, namespace).snapshots("overlayfs").items() if not parent)
    there("snapshots", "prepare", "making", layer)
    there("snapshots", "commit", "made", "making")
    there("run", "--detach", IMAGE, "changer", "sh", "-c", CHANGER)
    there("run", "--detach", "--label", "containerd.io/restart.status=running", IMAGE, "stays", "sleep", "1000")
    large = source.base / "large"
    with large.open("wb") as file:
        file.truncate(LARGE)
    with large.open("rb") as file:
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        file.seek(0)
        assert there.run("content", "ingest", "--expected-digest", digest, "large", stdin=file).returncode == 0
    there("content", "label", digest, "containerd.io/gc.root=kept")
    large.unlink()
    try:
        _check(source, target, there, here)
    finally:
        there.run("containers", "label", "stays", "containerd.io/restart.status=")
        for ctr in (there, here):
            for id in ctr.run("containers", "ls", "-q").stdout.split():
                ctr.run("tasks", "rm", "--force", id)
                ctr.run("containers", "rm", id)


def _check(source: DaemonProcess, target: DaemonProcess, there: Ctr, here: Ctr) -> None:
    original, copy = Seen(source, there.namespace), Seen(target, here.namespace)
    _cut_half_way(source, target, copy)

    done = migrate(source, target)

    assert done.returncode == 0, f"{done.stdout}{done.stderr}{target.log_text()}"
    assert copy.everything() == original.everything(), "what only the run needed is gone on both sides, too"
    assert all("copied" in seen.snapshots("native") for seen in (original, copy))
    assert "colour=green" in here("namespaces", "ls")
    report = done.stdout
    assert "container changer: its task is not moved, it runs on in the source" in report
    assert "container stays: its task is not moved" in report
    assert "writer: its task" not in report
    # The target is not to start what the source runs.
    assert "containerd.io/restart.status" not in json.loads(here("containers", "info", "stays"))["Labels"]
    assert here("tasks", "start", "writer") == "from-the-source\nremoved\n"
    assert here.run("tasks", "start", "copied").returncode == 7
    # What ran meanwhile is copied once more when it has ended.
    there("tasks", "kill", "changer")
    wait_until(lambda: "RUNNING" not in there("tasks", "ls").partition("changer")[2].partition("\n")[0], "it ends")
    assert migrate(source, target).returncode == 0
    assert here("tasks", "start", "changer") == "late\n"
    again = migrate(source, target)
    assert "content:     0 copied" in again.stdout
    assert "snapshots:   1 copied" in again.stdout, "that of what runs, and no other"


def _cut_half_way(source: DaemonProcess, target: DaemonProcess, copy: Seen) -> None:
    """Kill a run while the large blob is on its way; or the target, if that is not ours, which the run waits for."""
    command = _command(source.address, target.address)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        try:
            wait_until(lambda: run.poll() is not None or _on_its_way(copy), "the large blob is on its way")
            assert run.poll() is None, "it ended by itself"
            if isinstance(target, RealContainerd):
                target.restart()
                output, _ = run.communicate(timeout=4 * DEADLINE)
                assert run.returncode == 0, output
                return
        finally:
            with suppress(ProcessLookupError):
                os.kill(run.pid, signal.SIGKILL)
    assert _on_its_way(copy), "the next one goes on here"


def _on_its_way(copy: Seen) -> bool:
    """Say whether a part of the large blob has arrived, which is larger than all others."""
    try:
        return any(1 << 22 < offset < LARGE for offset in copy.arrived())
    except grpc.RpcError:  # there is no such namespace yet
        return False


def test_what_cannot_be_copied_is_named_and_all_else_is(namespace: str) -> None:
    with DaemonProcess() as source, DaemonProcess() as target:
        there, here = Ctr(source, program("1.6"), namespace), Ctr(target, program("1.6"), namespace)
        image = busybox_with_applets()
        archive = write_archive(source.base / "image.tar", {IMAGE: image, "example.org/other:1": image})
        there("images", "import", str(archive))
        config = digest(image.config)
        wanted = (source.root / "content" / "blobs" / "sha256" / config.removeprefix("sha256:")).resolve()
        wanted.chmod(0o600)
        wanted.write_bytes(wanted.read_bytes().replace(b"linux", b"xunil"))
        other = write_archive(target.base / "image.tar", {IMAGE: busybox()})
        here("images", "import", str(other))

        done = migrate(source, target)

        assert done.returncode == 3, done.stdout + done.stderr
        assert f"skipped      content {config}: " in done.stdout
        assert f"skipped      image {IMAGE}: the target has {busybox().digest} by this name, which stays" in done.stdout
        assert Seen(target, namespace).images() == {IMAGE: busybox().digest, "example.org/other:1": image.digest}
        assert config not in Seen(target, namespace).content()


def test_snapshots_of_a_snapshotter_that_the_target_has_not_are_counted(namespace: str) -> None:
    """If there are any; all else is copied."""
    table = "[snapshotters.blockfile]\n"
    with (
        DaemonProcess(config=f"{table}scratch_size = {64 << 20}\n") as source,
        DaemonProcess(config=f'{table}fs_type = "of-nobody"\n') as target,
    ):
        there = Ctr(source, program("1.6"), namespace)
        there("snapshots", "--snapshotter", "native", "prepare", "first")
        without = migrate(source, target)
        for key in ("one", "two"):
            there("snapshots", "--snapshotter", "blockfile", "prepare", key)
        there("snapshots", "--snapshotter", "native", "prepare", "last")

        done = migrate(source, target)

        assert (without.returncode, "blockfile" in without.stdout) == (0, False), without.stdout + without.stderr
        assert done.returncode == 3, done.stdout + done.stderr
        assert (
            "  skipped      2 snapshots of blockfile: the target has no snapshotter of that name;"
            " what images need is unpacked when it is used\nwhat is skipped is not in the target\n"
        ) in done.stdout
        assert set(Seen(target, namespace).snapshots("native")) == {"first", "last"}


def test_a_daemon_that_is_not_there_is_named(tmp_path: Path) -> None:
    nowhere = tmp_path / "sock"
    same, gone = (
        subprocess.run(_command(nowhere, to), capture_output=True, text=True, timeout=DEADLINE, check=False)
        for to in (nowhere, tmp_path / "other")
    )

    assert same.returncode == 1
    assert f"--from and --to are both {nowhere}" in same.stderr
    assert gone.returncode == 1
    assert f"source: List: nobody answers at {nowhere}" in gone.stderr
    # Nothing is known of what the source has, let alone that all of it is here.
    assert (same.stdout, gone.stdout) == ("", "")
