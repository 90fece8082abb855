"""Real ctr programs, Debian's 1.6 and one of containerd 2: what they do with images, blobs, snapshots and sandboxes."""

import hashlib
import io
import json
import os
import re
import stat
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc
from support import peers
from support.ctr_client import DEBIANS, Ctr, leaving_nothing, namespace_with, program
from support.daemon_process import DaemonProcess, wait_until
from support.engines import make_root
from support.footprint import remove_cgroup
from support.images import BuiltImage, busybox_with_applets
from support.real_containerd import RealContainerd
from support.registry_process import running_registry

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer,
    pytest.mark.timeout(180),
    pytest.mark.skipif(DEBIANS is None, reason="ctr is not installed (Debian: containerd)"),
]

IMAGE: Final[BuiltImage] = busybox_with_applets()
NAME: Final = "example.com/busybox:v1"
LAYER: Final = next(digest for digest, data in IMAGE.blobs.items() if data[:2] == b"\x1f\x8b")


@pytest.fixture(scope="module")
def namespace(daemon: DaemonProcess) -> Iterator[str]:
    """A namespace with the image in it."""
    with namespace_with(daemon, NAME, IMAGE, "overlayfs", "native") as namespace:
        yield namespace


@pytest.fixture(params=["1.6", "2"])
def ctr(request: pytest.FixtureRequest, daemon: DaemonProcess, namespace: str) -> Iterator[Ctr]:
    """A ctr program that finds nothing but the image, and leaves nothing else."""
    with leaving_nothing(Ctr(daemon, program(request.param), namespace)) as ctr:
        yield ctr


@pytest.fixture
def newer(daemon: DaemonProcess, namespace: str) -> Iterator[Ctr]:
    """One of containerd 2, for what 1.6 does not have."""
    with leaving_nothing(Ctr(daemon, program("2"), namespace)) as ctr:
        yield ctr


@pytest.fixture(params=["1.6", "2"])
def apart(request: pytest.FixtureRequest, daemon: DaemonProcess) -> Iterator[Ctr]:
    """A ctr program in a namespace of its own, for what takes the image apart."""
    with (
        namespace_with(daemon, NAME, IMAGE) as namespace,
        leaving_nothing(Ctr(daemon, program(request.param), namespace)) as ctr,
    ):
        yield ctr


def is_mounted(path: Path) -> bool:
    return any(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def test_images_are_checked_and_labelled(ctr: Ctr) -> None:
    (row,) = ctr.rows("images", "check")
    assert row[:1] + row[2:5] == [NAME, IMAGE.digest, "complete", "(2/2)"]
    assert row[-1] == "true"
    assert ctr("images", "check", "--snapshotter", "native", "-q").split() == [NAME]

    ctr("images", "label", NAME, "color=green")
    assert ctr("images", "ls", "-q", "labels.color==green").split() == [NAME]
    ctr("images", "label", "--replace-all", NAME, "size=big")
    assert ctr("images", "ls", "-q", "labels.color").split() == []
    ctr("images", "label", NAME, "size=")


def test_an_image_is_mounted(ctr: Ctr, tmp_path: Path) -> None:
    """Under a lease of its own; what is written to it goes with it."""
    target = tmp_path / "target"
    target.mkdir()

    ctr("images", "mount", NAME, str(target))
    assert (target / "etc" / "hello").read_text() == "hello\n"
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").touch()
    assert [str(target), "View"] in [[row[0], row[-1]] for row in ctr.rows("snapshots", "ls")]
    assert str(target) in ctr("leases", "ls", "-q").split()
    ctr("images", "unmount", "--rm", str(target))
    assert not is_mounted(target)

    ctr("images", "mount", "--rw", NAME, str(target))
    (target / "new").touch()
    ctr("images", "unmount", "--rm", str(target))
    assert [row[0] for row in ctr.rows("snapshots", "ls") if row[0] == str(target)] == []
    for lease in ctr("leases", "ls", "-q").split():
        ctr("leases", "rm", lease)


def test_an_image_is_converted(ctr: Ctr) -> None:
    """Its layer is written out uncompressed, and runs."""
    converted = "example.com/converted:v1"
    ctr("images", "convert", "--uncompress", "--oci", NAME, converted)

    target = next(row[2] for row in ctr.rows("images", "ls") if row[0] == converted)
    (layer,) = json.loads(ctr("content", "get", target))["layers"]
    assert layer["mediaType"].endswith(".tar")
    assert layer["digest"] == IMAGE.diff_ids[0]
    assert ctr("run", "--rm", converted, "c", "cat", "/etc/hello") == "hello\n"
    ctr("images", "rm", "--sync", converted)


def test_an_image_is_exported_and_imported_by_ctr_itself(ctr: Ctr, tmp_path: Path) -> None:
    """Without the Transfer service, which ctr 1.6 does not know either."""
    local = ["--local"] if "--local" in ctr("images", "export", "--help") else []
    archive = tmp_path / "archive.tar"
    ctr("images", "export", *local, str(archive), NAME)
    with tarfile.open(archive) as file:
        assert f"blobs/sha256/{IMAGE.digest.partition(':')[2]}" in file.getnames()

    ctr("images", "import", *local, "--base-name", "example.com/other", "--digests", "--no-unpack", str(archive))

    names = set(ctr("images", "ls", "-q").split()) - {NAME}
    assert f"example.com/other@{IMAGE.digest}" in names
    ctr("images", "rm", "--sync", *names)


@pytest.mark.full
def test_an_archive_is_exported_whole_to_whoever_is_slow_to_read_it(newer: Ctr) -> None:
    """ctr ends with its transfer, and what it has not taken by then is in no archive."""
    most = (
        sum(map(len, IMAGE.blobs.values())) - 130_000
    )  # the rest is more than pipes hold, less than ctr has asked for
    with subprocess.Popen(newer.command("images", "export", "-", NAME), stdout=subprocess.PIPE) as export:
        assert export.stdout is not None
        archive = export.stdout.read(most)
        with pytest.raises(subprocess.TimeoutExpired):
            export.wait(7)
        archive += export.stdout.read()

    assert export.returncode == 0
    with tarfile.open(fileobj=io.BytesIO(archive)) as file:
        assert file.getnames()[-1] == "oci-layout"


def test_a_blob_is_edited(ctr: Ctr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = tmp_path / "editor"
    # It writes into the file: ctr has it open.
    editor.write_text('#!/bin/sh\nsed s/amd64/arm64/ "$1" >"$1.new"; cat "$1.new" >"$1"; rm "$1.new"\n')
    editor.chmod(editor.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("EDITOR", str(editor))
    config = json.loads(ctr("content", "get", IMAGE.digest))["config"]["digest"]
    before = ctr("content", "get", config)
    after = before.replace("amd64", "arm64")
    edited = f"sha256:{hashlib.sha256(after.encode()).hexdigest()}"

    def is_kept() -> bool:
        """Edit, and keep what comes of it: nothing does yet, so a collection may come between the two."""
        assert ctr("content", "edit", "--editor", str(editor), config) == f"{edited}\n"
        return "not found" not in ctr.run("content", "label", edited, "containerd.io/gc.root=now").stderr

    wait_until(is_kept, "the edited blob is kept")

    assert ctr("content", "get", edited) == after != before
    assert ctr("content", "get", config) == before
    ctr("content", "rm", edited)


def test_blobs_go_to_a_registry_and_come_back_one_by_one(ctr: Ctr, tmp_path: Path) -> None:
    with running_registry(tmp_path) as address:
        name = f"{address}/test/busybox:v1"
        kind = "application/vnd.oci.image.layer.v1.tar+gzip"
        ctr("content", "push-object", "--plain-http", name, LAYER, kind)
        ctr("images", "push", "--plain-http", name, NAME)

        manifest = ctr("content", "fetch-object", "--plain-http", name, IMAGE.digest)
        assert "layers" in json.loads(manifest)
        if "fetch-blob" in ctr("content", "--help"):
            config = json.loads(manifest)["config"]["digest"]
            assert "rootfs" in json.loads(ctr("content", "fetch-blob", "--plain-http", name, config))
        ctr("content", "fetch", "--plain-http", name)
        assert name in ctr("images", "ls", "-q").split()
        ctr("images", "rm", "--sync", name)


def labels(ctr: Ctr) -> dict[str, set[str]]:
    """Return the labels of each blob."""
    return {row[0]: set(row[-1].split(",")) for row in ctr.rows("content", "ls")}


def test_references_of_blobs_are_pruned(apart: Ctr) -> None:
    """Layers are not needed once they are unpacked; the image still runs."""
    ctr = apart
    reference = "containerd.io/gc.ref.content.l.0"
    assert ctr.rows("content", "active") == []
    ctr("leases", "create", "--id", "any")
    ctr("leases", "rm", "--sync", "any")  # a collection: nobody keeps the index of the archive that the image came in
    before = labels(ctr)
    assert f"{reference}={LAYER}" in before[IMAGE.digest]

    dry = ctr.run("content", "prune", "references", "--dry")
    assert f'msg="Removing label" digest="{IMAGE.digest}" label={reference}' in dry.stderr
    assert labels(ctr) == before

    assert ctr("content", "prune", "references") == ""
    del before[LAYER]
    before[IMAGE.digest].remove(f"{reference}={LAYER}")
    assert labels(ctr) == before
    assert ctr.rows("images", "check")[0][3:5] == ["incomplete", "(1/2)"]
    assert ctr("run", "--rm", NAME, "c", "cat", "/etc/hello") == "hello\n"


def occupied(*paths: Path) -> int:
    """Return the bytes that files and directories themselves take on disk."""
    return sum(path.lstat().st_blocks * 512 for path in paths)


def test_snapshots_are_compared_and_unpacked(ctr: Ctr, tmp_path: Path) -> None:
    (base,) = (row[0] for row in ctr.rows("snapshots", "ls") if row[-1] == "Committed" and len(row) == 2)
    assert base in ctr("snapshots", "tree")
    ctr("leases", "create", "--id", "kept")
    ctr("snapshots", "prepare", "upper", base)
    ctr("snapshots", "label", "upper", "containerd.io/gc.root=now")
    mount = ctr("snapshots", "mounts", str(tmp_path), "upper").split()
    assert mount[:4] == ["mount", "-t", "overlay", "overlay"]
    subprocess.run(mount, check=True)
    try:
        (tmp_path / "new").write_text("more\n" * 2000)
        (tmp_path / "etc" / "hello").unlink()
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    blobs = set(ctr("content", "ls", "-q").split())

    archive = ctr("snapshots", "diff", "--media-type", "application/vnd.oci.image.layer.v1.tar", "upper").encode()
    with tarfile.open(fileobj=io.BytesIO(archive)) as file:
        assert sorted(file.getnames()) == ["etc", "etc/.wh.hello", "new"]
        new = file.extractfile("new")
        assert new is not None
        assert new.read() == b"more\n" * 2000
    wait_until(lambda: set(ctr("content", "ls", "-q").split()) <= blobs, "what was made for it is collected")
    files = Path(mount[-1].partition("upperdir=")[2].partition(",")[0])
    size = occupied(files, files / "new", files / "etc", files / "etc" / "hello")
    assert ctr.rows("snapshots", "usage", "upper") == [["upper", f"{size / 1024:.1f}", "KiB", "4"]]
    ctr("snapshots", "commit", "made", "upper")
    assert json.loads(ctr("snapshots", "info", "made"))["Kind"] == "Committed"
    # Nothing keeps a view of ctr 1.6's: a collection may come before we do.
    ctr("snapshots", "view", "look", "made")
    ctr.run("snapshots", "rm", "look")
    ctr("snapshots", "rm", "made")

    assert ctr("snapshots", "unpack", IMAGE.digest).strip().endswith("done")
    ctr("leases", "rm", "--sync", "kept")


def test_programs_are_installed_from_an_image(ctr: Ctr, tmp_path: Path) -> None:
    ctr("install", "--path", str(tmp_path), NAME)

    assert (tmp_path / "bin" / "busybox").read_bytes() == Path("/bin/busybox").read_bytes()


def test_a_specification_is_printed(ctr: Ctr) -> None:
    assert json.loads(ctr("oci", "spec"))["process"]["cwd"] == "/"


def test_namespaces_are_labelled(ctr: Ctr) -> None:
    ctr("namespaces", "label", ctr.namespace, "a=b")
    assert [ctr.namespace, "a=b"] in ctr.rows("namespaces", "ls")
    ctr("namespaces", "label", ctr.namespace, "a=")


def test_what_the_daemon_says_of_itself(newer: Ctr) -> None:
    server = json.loads(newer("info"))["server"]
    assert server["pid"] == newer.daemon.pid
    assert server["pidns"] == os.stat("/proc/self/ns/pid").st_ino
    runtime = json.loads(newer("plugins", "inspect-runtime", "--runtime", "io.containerd.runc.v2"))
    assert runtime["Features"]["linux"]["namespaces"]
    assert newer("deprecations", "list") == ""  # unless a runtime is known to be unsafe: test_runtimes.py
    plugins = {(row[0], row[1]): row[-1] for row in newer.rows("plugins", "ls")}
    for wanted in (
        ("io.containerd.monitor.container.v1", "restart"),
        ("io.containerd.sandbox.controller.v1", "shim"),
        ("io.containerd.service.v1", "images-service"),
        ("io.containerd.mount-manager.v1", "bolt"),
        ("io.containerd.grpc.v1", "sandbox-controllers"),
        ("io.containerd.grpc.v1", "cri"),
    ):
        assert plugins[wanted] == "ok"
    assert "restart" in newer("plugins", "ls", "-d", "id==restart")


def test_what_takes_space_is_told_and_given_back(newer: Ctr) -> None:
    assert len(newer.rows("images", "usage", NAME)) == 1
    assert LAYER in newer("images", "inspect", NAME)
    assert "No images pruned" in newer.run("images", "prune").stderr
    assert newer("images", "ls", "-q").split() == [NAME]


@pytest.mark.parametrize("apart", ["2"], indirect=True)  # 1.6 has no such command
def test_images_without_a_container_are_pruned(apart: Ctr) -> None:
    ctr, unused = apart, "example.com/unused:v1"
    ctr("images", "tag", NAME, unused)
    ctr("run", "-d", "--null-io", NAME, "c", "sleep", "1000")

    assert "No images pruned" in ctr.run("images", "prune").stderr
    assert set(ctr("images", "ls", "-q").split()) == {NAME, unused}

    told = ctr.run("images", "prune", "--all").stderr
    assert [line.partition("deleted image: ")[2] for line in told.splitlines()] == [f'{unused}\\n"']
    assert ctr("images", "ls", "-q").split() == [NAME]
    assert LAYER in ctr("content", "ls", "-q").split()

    ctr.run("tasks", "rm", "--force", "c")
    ctr("containers", "rm", "c")
    assert f"deleted image: {NAME}" in ctr.run("images", "prune", "--all").stderr
    for what in ("images", "content", "snapshots"):
        assert ctr.rows(what, "ls") == [], what


@contextmanager
def shim_of(ctr: Ctr, id: str) -> Iterator[list[str]]:
    """Yield the words that have ctr ask a container's shim: 1.6 takes no address, so a link is where it looks."""
    bundle = ctr.daemon.state / "tasks" / ctr.namespace / id
    address = json.loads((bundle / "shim.json").read_text())["address"]
    if "--shim-address" in ctr("shim", "--help"):
        yield ["shim", "--shim-address", address, "--id", id]
        return
    name = hashlib.sha256(f"{ctr.daemon.address}/{ctr.namespace}/{id}".encode()).hexdigest()
    link = Path("/run/containerd/s", name)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(address.removeprefix("unix://"))
    try:
        yield ["shim", "--id", id]
    finally:
        link.unlink()


def test_a_shim_is_asked_itself(ctr: Ctr, tmp_path: Path) -> None:
    """The daemon, which is not asked, hears from the shim what comes of it."""
    ctr("containers", "create", "--rootfs", str(make_root(tmp_path / "rootfs")), "c", "/bin/sleep", "1000")
    with ctr.daemon.channel() as channel:  # ctr itself starts what it has created
        tasks_pb2_grpc.TasksStub(channel).Create(
            tasks_pb2.CreateTaskRequest(container_id="c"), metadata=(("containerd-namespace", ctr.namespace),)
        )

    with shim_of(ctr, "c") as shim:
        ctr(*shim, "start", "c")
        wait_until(lambda: ctr.rows("tasks", "ls")[0][2] == "RUNNING", "the daemon has heard of the start")
        state = json.loads(ctr(*shim, "state"))
        assert (state["id"], state["status"]) == ("c", 2)
        if "shutdown" in ctr("shim", "--help"):
            ctr(*shim, "shutdown")  # not while it has a container
            assert json.loads(ctr(*shim, "state", "--api-version", "2")) == state
        ctr("tasks", "kill", "--signal", "SIGKILL", "c")
        wait_until(lambda: "STOPPED" in ctr("tasks", "ls"), "the task has ended")
        assert "exit status 137" in ctr(*shim, "delete", "c")
    ctr.run("tasks", "rm", "c")
    ctr("containers", "rm", "c")


def test_nobody_serves_profiles_of_go(ctr: Ctr) -> None:
    """Neither the daemon at its socket nor a shim where ctr looks for one; ctr 1.6 does not look."""
    ctr("run", "-d", "--null-io", NAME, "c", "sleep", "1000")

    done = ctr.run("pprof", "--debug-socket", str(ctr.daemon.address), "heap")
    assert (done.returncode, done.stdout) == (1, "")
    # What the daemon says as a server of HTTP/2 comes before the question or after it.
    assert re.search(r'Get "http://./debug/pprof/heap.*": .*(malformed HTTP response|readLoopPeekFail)', done.stderr)
    with shim_of(ctr, "c") as shim:
        done = ctr.run(*shim, "pprof", "goroutines")
    assert done.returncode != 0
    if "pprof" in ctr("shim", "--help"):
        nowhere = r": dial unix /run/containerd/s/[0-9a-f]{64}: connect: no such file or directory\n"
        assert re.search(nowhere, done.stderr)
    else:
        assert "No help topic for 'pprof'" in done.stderr
    ctr.run("tasks", "rm", "--force", "c")
    ctr("containers", "rm", "c")


def crashes_over_an_exec(ctr: Ctr, shim: list[str], directory: Path) -> bool:
    """Have ctr ask a shim for an exec, with all that it takes, and return whether it crashes before it has."""
    specification = directory / "process.json"
    specification.write_text('{"args": ["/bin/sleep", "1000"], "cwd": "/"}')
    streams = (word for name in ("stdin", "stdout", "stderr") for word in (f"--{name}", str(directory / name)))
    done = ctr.run(*shim, "exec", "--spec", str(specification), *streams, "e")
    return (done.returncode, done.stderr.splitlines()[0]) == (2, "panic: v is not a pointer to a type")


def test_ctr_crashes_before_it_asks_a_shim_for_an_exec(ctr: Ctr, tmp_path: Path) -> None:
    ctr("run", "-d", "--null-io", NAME, "c", "sleep", "1000")

    with shim_of(ctr, "c") as shim:
        assert crashes_over_an_exec(ctr, shim, tmp_path)

    assert len(ctr.rows("tasks", "ps", "c")) == 1
    ctr.run("tasks", "rm", "--force", "c")
    ctr("containers", "rm", "c")


@pytest.mark.full
@pytest.mark.parametrize("version", ["1.6", "2"])
def test_ctr_crashes_with_a_shim_of_containerds_too(version: str, tmp_path: Path) -> None:
    with RealContainerd("containerd" if version == "1.6" else str(peers.find("containerd", version))) as containerd:
        ctr = Ctr(containerd, program(version), f"test-{uuid.uuid4().hex[:8]}")
        ctr("run", "-d", "--null-io", "--rootfs", str(make_root(tmp_path / "rootfs")), "c", "/bin/sleep", "1000")
        shim = ["shim", "--id", "c"]
        if "--shim-address" in ctr("shim", "--help"):
            bundle = containerd.base / "state/io.containerd.runtime.v2.task" / ctr.namespace / "c"
            shim += ["--shim-address", json.loads((bundle / "bootstrap.json").read_text())["address"]]

        assert json.loads(ctr(*shim, "state"))["status"] == 2
        assert crashes_over_an_exec(ctr, shim, tmp_path)

        ctr.run("tasks", "rm", "--force", "c")
        ctr("containers", "rm", "c")
        remove_cgroup(ctr.namespace)


def test_a_sandbox_has_a_life_and_ends_what_runs_in_it(newer: Ctr, tmp_path: Path) -> None:
    (tmp_path / "pod.json").write_text('{"ociVersion": "1.0.2"}')

    assert newer("sandboxes", "run", str(tmp_path / "pod.json"), "pod").strip() == "pod"
    assert [row[0] for row in newer.rows("sandboxes", "ls")] == ["pod"]
    assert json.loads(newer("sandboxes", "info", "pod"))["Sandboxer"] == "shim"
    newer("run", "-d", "--null-io", "--sandbox", "pod", NAME, "c", "sleep", "1000")
    assert json.loads(newer("containers", "info", "c"))["SandboxID"] == "pod"
    pid = int(newer.rows("tasks", "ls")[0][1])
    newer.daemon.restart()
    assert "already exists" in newer.run("sandboxes", "run", str(tmp_path / "pod.json"), "pod").stderr

    newer("sandboxes", "rm", "pod")

    assert not Path(f"/proc/{pid}/root").exists()
    assert newer.rows("sandboxes", "ls") == []
    assert list((newer.daemon.state / "sandboxes").glob("*/*.json")) == []
    newer.run("tasks", "rm", "c")
    newer("containers", "rm", "c")
