"""Real ctr programs, Debian's 1.6 and one of containerd 2, drive what needs no container: namespaces to events."""

import hashlib
import itertools
import json
import re
import secrets
import subprocess
import tempfile
from pathlib import Path

import pytest

from pyctr_wire.containerd.services.images.v1 import images_pb2, images_pb2_grpc
from pyctr_wire.containerd.types import descriptor_pb2
from support.background import background
from support.ctr_client import DEBIANS, Ctr, program
from support.daemon_process import DaemonProcess, wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer,
    pytest.mark.skipif(DEBIANS is None, reason="ctr is not installed (Debian: containerd)"),
]

_numbers = itertools.count()


class Stores(Ctr):
    """ctr in a namespace of the test's own."""

    def __init__(self, daemon: DaemonProcess, version: str) -> None:
        super().__init__(daemon, program(version), f"test-{next(_numbers)}")

    def fails(self, *arguments: str) -> str:
        """Run a command that does not succeed, and return what it says."""
        done = self.run(*arguments)
        assert done.returncode != 0, f"{arguments}: {done.stdout}"
        return done.stderr

    def ingest(self, data: bytes, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Let ctr write a blob, whatever comes of it."""
        with tempfile.TemporaryFile() as file:  # a file: ctr seeks in it when it resumes
            file.write(data)
            file.seek(0)
            return self.run("content", "ingest", *arguments, stdin=file)

    def keep(self, data: bytes) -> str:
        """Store a blob, keep it from collection and return its digest."""
        digest = _digest(data)

        def is_kept() -> bool:
            # A collection may come between the two, as in containerd.
            done = self.ingest(data, "--expected-size", str(len(data)), "--expected-digest", digest, f"ref-{digest}")
            assert done.returncode == 0, done.stderr
            return "not found" not in self.run("content", "label", digest, "containerd.io/gc.root=now").stderr

        wait_until(is_kept, f"{digest} is kept")
        return digest


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture(params=["1.6", "2"])
def ctr(request: pytest.FixtureRequest, daemon: DaemonProcess) -> Stores:
    return Stores(daemon, request.param)


def test_version_and_who_we_are(ctr: Stores) -> None:
    text = ctr("version")

    server = text[text.index("Server:") :]
    assert "Version:  v2.3.4" in server
    assert "Revision: pyctr-" in server
    assert (ctr.daemon.root / "uuid").read_text() in server


def test_plugins(ctr: Stores) -> None:
    plugins = {(kind, name): rest for kind, name, *rest in ctr.rows("plugins", "ls")}

    assert plugins["io.containerd.snapshotter.v1", "overlayfs"] == ["linux/amd64", "ok"]
    assert plugins["io.containerd.snapshotter.v1", "native"] == ["linux/amd64", "ok"]
    assert plugins["io.containerd.runtime.v2", "task"] == ["linux/amd64", "ok"]
    for service in ("containers", "content", "images", "introspection", "leases", "snapshots", "tasks", "transfer"):
        assert plugins["io.containerd.grpc.v1", service][-1] == "ok"


def test_namespaces(ctr: Stores) -> None:
    name = f"{ctr.namespace}-made"

    ctr("namespaces", "create", name, "color=green")
    assert [name, "color=green"] in ctr.rows("namespaces", "ls")
    ctr("namespaces", "label", name, "color=", "size=big")
    assert [name, "size=big"] in ctr.rows("namespaces", "ls")
    assert "already exists" in ctr.fails("namespaces", "create", name)
    ctr("namespaces", "rm", name)
    assert name not in ctr("namespaces", "ls", "-q").split()
    assert "a--b" in ctr.fails("namespaces", "create", "a--b")


def test_a_namespace_with_something_in_it_stays(ctr: Stores) -> None:
    ctr("snapshots", "prepare", "key")

    assert 'must be empty, but it still has snapshots on "overlayfs" snapshotter' in ctr.fails(
        "namespaces", "rm", ctr.namespace
    )


def test_content(ctr: Stores) -> None:
    data = bytes(range(256)) * 9000
    digest = ctr.keep(data)
    ctr("content", "label", digest, "a=b")

    assert ctr("content", "ls", "-q").split() == [digest]
    assert ctr("content", "ls", "-q", "labels.a==c").split() == []
    assert (
        subprocess.run(ctr.command("content", "get", digest), capture_output=True, check=True, timeout=60).stdout
        == data
    )
    ctr("content", "label", digest, "a=")
    assert ctr("content", "ls", "-q", "labels.a").split() == []
    ctr("content", "rm", digest)
    assert "not found" in ctr.fails("content", "get", digest)


def test_an_ingest_stays_until_it_is_finished(ctr: Stores) -> None:
    """ctr is killed in the middle; another one goes on. What another version of it has stored is there already."""
    data = secrets.token_bytes(16) * 187_500
    expected = ("--expected-size", str(len(data)), "--expected-digest", _digest(data), "the-ref")
    with subprocess.Popen(ctr.command("content", "ingest", *expected), stdin=subprocess.PIPE) as first:
        assert first.stdin is not None
        first.stdin.write(data[:2_500_000])
        first.stdin.flush()
        wait_until(lambda: "the-ref" in ctr("content", "active"), "the ingest shows")
        first.kill()
    assert "the-ref" in ctr("content", "active")

    def is_finished() -> bool:
        """The daemon may hear of the kill a moment later; ctr itself waits while the ingest is locked."""
        done = ctr.ingest(data, *expected)
        assert done.returncode == 0, done.stderr
        return "the-ref" not in ctr("content", "active")

    wait_until(is_finished, "the ingest is finished")


def test_a_damaged_ingest_is_refused(ctr: Stores) -> None:
    done = ctr.ingest(b"data", "--expected-digest", f"sha256:{'0' * 64}", "ref")

    assert done.returncode != 0
    assert "unexpected commit digest" in done.stderr


def test_content_goes_once_nothing_keeps_it(ctr: Stores) -> None:
    digest = ctr.keep(b"soon gone")
    path = ctr.daemon.root / "content" / "blobs" / "sha256" / digest.removeprefix("sha256:")
    ctr("leases", "create", "--id", "l")
    ctr("leases", "rm", "--sync", "l")
    assert path.exists()

    ctr("content", "label", digest, "containerd.io/gc.root=")
    ctr("leases", "create", "--id", "l")
    ctr("leases", "rm", "--sync", "l")

    assert not path.exists()
    assert ctr("content", "ls", "-q") == ""


def test_snapshots(ctr: Stores, tmp_path: Path) -> None:
    mounts = ctr("snapshots", "prepare", "--target", str(tmp_path), "key")
    assert mounts.startswith("mount -t bind")
    ctr("snapshots", "commit", "base", "key")
    overlay = ctr("snapshots", "prepare", "--target", str(tmp_path), "upper", "base")
    assert overlay.startswith("mount -t overlay overlay")
    assert ctr("snapshots", "mounts", str(tmp_path), "upper") == overlay
    _mounted(overlay, f"touch {tmp_path}/new")
    wait_until(lambda: _is_viewed(ctr, "look", "base"), "the view is kept")

    assert sorted(ctr.rows("snapshots", "ls")) == [
        ["base", "Committed"],
        ["look", "base", "View"],
        ["upper", "base", "Active"],
    ]
    assert "upper" in ctr("snapshots", "tree")
    assert json.loads(ctr("snapshots", "info", "upper"))["Parent"] == "base"
    usage = {name: inodes for name, *_, inodes in ctr.rows("snapshots", "usage")}
    assert usage["upper"] == "2"
    ctr("snapshots", "label", "upper", "a=b")
    assert json.loads(ctr("snapshots", "info", "upper"))["Labels"]["a"] == "b"
    assert "cannot remove snapshot with child" in ctr.fails("snapshots", "rm", "base")
    for name in ("look", "upper", "base"):
        ctr("snapshots", "rm", name)
    assert ctr.rows("snapshots", "ls") == []
    assert "does not exist" in ctr.fails("snapshots", "info", "base")
    assert "snapshotter not loaded: zfs" in ctr.fails("snapshots", "--snapshotter", "zfs", "ls")


def test_native_snapshots_are_copies(ctr: Stores, tmp_path: Path) -> None:
    native = ("snapshots", "--snapshotter", "native")
    target = ("--target", str(tmp_path))
    _mounted(ctr(*native, "prepare", *target, "key"), f"echo below >{tmp_path}/file")
    ctr(*native, "commit", "base", "key")

    above = ctr(*native, "prepare", *target, "above", "base")
    assert _mounted(above, f"cat {tmp_path}/file; echo above >{tmp_path}/file") == "below\n"
    again = ctr(*native, "prepare", *target, "again", "base")
    assert _mounted(again, f"cat {tmp_path}/file") == "below\n"
    for name in ("again", "above", "base"):
        ctr(*native, "rm", name)


def _is_viewed(ctr: Stores, key: str, parent: str) -> bool:
    """Make a view that stays: ctr does not label it, so a collection may come before we do."""
    ctr.run("snapshots", "view", key, parent)
    return "not found" not in ctr.run("snapshots", "label", key, "containerd.io/gc.root=now").stderr


def _mounted(mount: str, script: str) -> str:
    """Run a script with a mount that ctr printed, seen by nobody else; return what it prints."""
    command = ["unshare", "--mount", "sh", "-ec", f"{mount.strip()}\n{script}"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_leases(ctr: Stores) -> None:
    lease = ctr("leases", "create", "--id", "mine", "--expires", "1h", "a=b").strip()
    other = ctr("leases", "create").strip()

    assert lease == "mine"
    (labels,) = [labels for name, _, labels in ctr.rows("leases", "ls") if name == "mine"]
    assert "a=b" in labels.split(",")
    assert other in ctr("leases", "ls", "-q").split()
    assert "already exists" in ctr.fails("leases", "create", "--id", "mine")
    ctr("leases", "rm", "mine", other)
    assert ctr("leases", "ls", "-q") == ""


def test_containers(ctr: Stores, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"ociVersion": "1.0.2",   "process": {"args": ["true"]}}')
    ctr("containers", "create", "--config", str(tmp_path / "config.json"), "--label", "a=b", "c1")

    assert ctr("containers", "ls", "-q").split() == ["c1"]
    assert ctr("containers", "ls", "-q", "labels.a==x").split() == []
    assert ctr("containers", "ls", "-q", "labels.a==b").split() == ["c1"]
    info = json.loads(ctr("containers", "info", "c1"))
    assert info["Runtime"]["Name"] == "io.containerd.runc.v2"
    assert info["Spec"]["process"]["args"] == ["true"]
    ctr("containers", "label", "c1", "a=", "c=d")
    assert json.loads(ctr("containers", "info", "c1"))["Labels"] == {"c": "d"}
    assert "already exists" in ctr.fails("containers", "create", "--config", str(tmp_path / "config.json"), "c1")
    ctr("containers", "rm", "c1")
    assert 'container "c1" in namespace' in ctr.fails("containers", "info", "c1")


def test_images(ctr: Stores) -> None:
    """An image made by hand: ctr reads its manifest and configuration to show its size and platform."""
    layer = ctr.keep(b"no real layer")
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}).encode()
    config_digest = ctr.keep(config)
    kind = "application/vnd.oci.image"
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": {"mediaType": f"{kind}.config.v1+json", "digest": config_digest, "size": len(config)},
            "layers": [{"mediaType": f"{kind}.layer.v1.tar", "digest": layer, "size": 13}],
        }
    ).encode()
    manifest_digest = ctr.keep(manifest)
    _create_image(ctr, "example.test/i:1", manifest_digest, len(manifest))

    (row,) = ctr.rows("images", "ls")
    assert row[:3] == ["example.test/i:1", f"{kind}.manifest.v1+json", manifest_digest]
    assert "linux/amd64" in row
    ctr("images", "tag", "example.test/i:1", "example.test/i:2")
    ctr("images", "label", "example.test/i:2", "a=b")
    assert ctr("images", "ls", "-q").split() == ["example.test/i:1", "example.test/i:2"]
    assert ctr("images", "ls", "-q", "labels.a==b").split() == ["example.test/i:2"]
    ctr("images", "rm", "--sync", "example.test/i:1", "example.test/i:2")
    assert ctr("images", "ls", "-q") == ""


def _create_image(ctr: Stores, name: str, digest: str, size: int) -> None:
    """Name a manifest: ctr itself has no command that only does that."""
    target = descriptor_pb2.Descriptor(
        media_type="application/vnd.oci.image.manifest.v1+json", digest=digest, size=size
    )
    image = images_pb2.Image(name=name, target=target)
    with ctr.daemon.channel() as channel:
        images_pb2_grpc.ImagesStub(channel).Create(
            images_pb2.CreateImageRequest(image=image), metadata=(("containerd-namespace", ctr.namespace),), timeout=30
        )


def test_events(ctr: Stores, tmp_path: Path) -> None:
    """ctr decodes what it knows: a wrong type would show as bytes."""
    output = tmp_path / "events"
    with output.open("wb") as file, background(ctr.command("events"), stdout=file):

        def is_shown() -> bool:
            # ctr does not say when it has subscribed: so something happens until it shows.
            ctr("snapshots", "prepare", f"k{next(_numbers)}")
            return f"{ctr.namespace} /snapshot/prepare" in output.read_text()

        wait_until(is_shown, "ctr shows an event")
    lines = [line for line in output.read_text().splitlines() if f"{ctr.namespace} /snapshot/prepare" in line]
    assert re.search(r'"key":"k\d+"', lines[0]), lines


def test_everything_is_still_there_after_a_crash(tmp_path: Path) -> None:
    with DaemonProcess() as daemon:
        ctr = Stores(daemon, "1.6")
        ctr.keep(b"kept")
        ctr("snapshots", "prepare", "key")
        ctr("leases", "create", "--id", "l")
        (tmp_path / "config.json").write_text("{}")
        ctr("containers", "create", "--config", str(tmp_path / "config.json"), "c1")
        before = [ctr(*words) for words in _LISTS]

        daemon.restart()

        assert [ctr(*words) for words in _LISTS] == before


_LISTS = (
    ("version",),
    ("content", "ls", "-q"),
    ("snapshots", "ls"),
    ("leases", "ls"),
    ("containers", "ls"),
    ("namespaces", "ls"),
)
