"""CheckpointContainer: what the archive has, that the container goes on, and what is made of it; what is refused."""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from pyctr_wire.cri import image_pb2, runtime_pb2
from support import images
from support.cri_client import IMAGE, CriClient
from support.criu import require_criu
from support.daemon_process import DEADLINE, DaemonProcess, wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

COUNT = ("sh", "-c", "echo mine >/mine; rm /bin/wget; i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done")


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    """One that may, with a CRIU that can."""
    with pytest.MonkeyPatch.context() as patch:
        require_criu(patch)
        with DaemonProcess(config="[checkpoint]\nenabled = true") as daemon:
            yield daemon


def save(cri: CriClient, container: str, location: Path | str, *, seconds: int = 0, deadline: float = 120) -> None:
    request = runtime_pb2.CheckpointContainerRequest(container_id=container, location=str(location), timeout=seconds)
    cri.runtime.CheckpointContainer(request, timeout=deadline)


def refused(cri: CriClient, container: str, location: Path | str, **more: float) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as failure:
        save(cri, container, location, **more)  # type: ignore[arg-type]
    return failure.value.code().name, str(failure.value.details())


def count(cri: CriClient) -> int:
    lines = cri.log().splitlines()
    return int(lines[-1].rpartition(" ")[2]) if lines else 0


def left(cri: CriClient) -> list[str]:
    """What a checkpoint needs meanwhile."""
    folders = list((cri.daemon.root / "checkpoints").glob("*"))
    leases = [line for line in cri.daemon.ctr("leases", "ls", namespace="k8s.io").splitlines() if "cri-" in line]
    return [*map(str, folders), *leases]


def goes_on(cri: CriClient) -> bool:
    before = count(cri)
    wait_until(lambda: count(cri) > before, "it counts on")
    return True


@pytest.fixture
def counter(cri: CriClient) -> str:
    container = cri.run(cri.run_pod(), *COUNT)
    wait_until(lambda: count(cri) > 2, "it counts")
    return container


def test_the_archive_has_all_of_it_and_the_container_goes_on(cri: CriClient, counter: str, tmp_path: Path) -> None:
    save(cri, counter, tmp_path / "one.tar")

    assert goes_on(cri)
    assert (tmp_path / "one.tar").stat().st_mode & 0o777 == 0o600
    with tarfile.open(tmp_path / "one.tar") as archive:
        names = set(archive.getnames())

        def read(name: str) -> bytes:
            file = archive.extractfile(name)
            assert file is not None
            return file.read()

        identity, status = json.loads(read("config.dump")), json.loads(read("status.dump"))
        assert (identity["id"], identity["name"], identity["restored"]) == (counter, "main", False)
        assert identity["rootfsImage"] == IMAGE
        assert json.loads(read("spec.dump"))["process"]["args"] == list(COUNT)
        assert (status["id"], status["state"]) == (counter, "CONTAINER_RUNNING")
        assert json.loads(read("status"))["StartedAt"] > 0
        assert b" stdout F 1\n" in read("container.log")
        (tmp_path / "rootfs.tar").write_bytes(read("rootfs-diff.tar"))
    assert {"checkpoint/inventory.img", "stats-dump", "dump.log"} <= names
    with tarfile.open(tmp_path / "rootfs.tar") as layer:
        assert {"mine", "bin/.wh.wget"} <= set(layer.getnames())
    assert left(cri) == []


def test_what_cannot_be_saved_or_written_is_refused(cri: CriClient, counter: str, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    code, text = refused(cri, counter, "relative.tar")
    assert (code, "'relative.tar' is not the full path of a file" in text) == ("INVALID_ARGUMENT", True)
    code, text = refused(cri, counter, tmp_path / "no" / "one.tar")
    assert (code, "there is no directory" in text) == ("INVALID_ARGUMENT", True)
    code, text = refused(cri, counter, tmp_path / "there")
    assert (code, "it is there already" in text) == ("FAILED_PRECONDITION", True)
    assert (tmp_path / "there").read_text() == "mine"
    assert refused(cri, "nobody", tmp_path / "one.tar")[0] == "NOT_FOUND"
    cri.stop(counter)
    code, text = refused(cri, counter, tmp_path / "one.tar")
    assert (code, "is in CONTAINER_EXITED state" in text) == ("FAILED_PRECONDITION", True)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert left(cri) == []


def test_whoever_does_not_wait_leaves_nothing_and_the_container_goes_on(
    cri: CriClient, counter: str, tmp_path: Path
) -> None:
    code, _ = refused(cri, counter, tmp_path / "one.tar", deadline=0.05)
    assert code == "DEADLINE_EXCEEDED"
    assert goes_on(cri)
    wait_until(lambda: not left(cri), "what was begun is undone")
    assert list(tmp_path.iterdir()) == []
    save(cri, counter, tmp_path / "one.tar")
    assert goes_on(cri)


def test_cve_2026_53489_a_log_that_is_a_link_is_not_read(cri: CriClient, counter: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (cri.logs / "main.log").rename(cri.logs / "main.log.1")
    (cri.logs / "main.log").symlink_to(tmp_path / "secret")
    save(cri, counter, tmp_path / "one.tar")
    with tarfile.open(tmp_path / "one.tar") as archive:
        assert "container.log" not in archive.getnames()
    assert b"secret" not in (tmp_path / "one.tar").read_bytes()


def test_pods_are_not_saved(cri: CriClient) -> None:
    """As the contract has it, whose newer calls these are."""
    channel = cri.daemon.channel()
    for name in ("CheckpointPod", "RestorePod"):
        call = channel.unary_unary(f"/runtime.v1.RuntimeService/{name}", bytes, bytes)
        with pytest.raises(grpc.RpcError) as failure:
            call(b"", timeout=DEADLINE)
        assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED
    channel.close()


def of_saved(cri: CriClient, pod: image_pb2.PodSandboxConfig, archive: Path, name: str = "back") -> str:
    """Make and start a container of an archive."""
    config = cri.container_config(name, *COUNT)
    config.image.image = str(archive)
    container = cri.create(pod, config)
    cri.start(container)
    return container


def test_a_container_goes_on_in_another_pod(cri: CriClient, counter: str, tmp_path: Path) -> None:
    """With its memory and its files, and the first one with its own; afterwards nothing of the archive is kept."""
    save(cri, counter, tmp_path / "one.tar")
    saved = count(cri)
    cri.stop(counter)
    at_end = count(cri)
    pod = cri.run_pod("other")
    made = of_saved(cri, pod, tmp_path / "one.tar")

    wait_until(lambda: cri.log("back").count("\n") > 2, "it counts")

    first = int(cri.log("back").splitlines()[0].rpartition(" ")[2])
    assert 2 < first <= saved + 1 <= at_end + 1
    assert cri.exec(made, "cat", "/mine").stdout == b"mine\n"
    assert cri.exec(made, "ls", "/bin/wget").exit_code != 0
    status = cri.status(made)
    assert (status.state, status.metadata.name) == (runtime_pb2.CONTAINER_RUNNING, "back")
    cri.daemon.restart()
    assert cri.exec(made, "true").exit_code == 0
    cri.stop(made)
    cri.remove(made)
    assert left(cri) == []


@pytest.mark.parametrize("of_user", [0, 1000])
def test_cve_2026_95837_what_it_may_do_is_its_new_pods_to_say(cri: CriClient, tmp_path: Path, of_user: int) -> None:
    """A process that has more than that, or is somebody else, does not go on."""
    mighty = cri.pod_config("mighty")
    mighty.linux.security_context.privileged = True
    request = runtime_pb2.RunPodSandboxRequest(config=mighty)
    mighty.annotations["id"] = cri.runtime.RunPodSandbox(request, timeout=DEADLINE).pod_sandbox_id
    config = cri.container_config("main", *COUNT)
    config.linux.security_context.privileged = not of_user
    first = cri.create(mighty, config)
    cri.start(first)
    wait_until(lambda: count(cri) > 2, "it counts")
    save(cri, first, tmp_path / "one.tar")
    wanted = cri.container_config("back", *COUNT)
    wanted.image.image = str(tmp_path / "one.tar")
    if of_user:
        wanted.linux.security_context.run_as_user.value = of_user
    made = cri.create(cri.run_pod("weak"), wanted)

    with pytest.raises(grpc.RpcError) as failure:
        cri.start(made)

    why = "process.user says 1000:0" if of_user else "which process.capabilities does not give"
    assert why in str(failure.value.details())
    assert (cri.status(made).state, cri.status(made).reason) == (runtime_pb2.CONTAINER_EXITED, "StartError")
    assert not (cri.logs / "back.log").exists() or cri.log("back") == ""


def rewritten(archive: Path, change: Callable[[tarfile.TarInfo, bytes], tuple[tarfile.TarInfo, bytes] | None]) -> Path:
    """Return an archive with other members in the places of some."""
    result = archive.with_name("rewritten.tar")
    with tarfile.open(archive) as old, tarfile.open(result, "w") as new:
        for member in old.getmembers():
            file = old.extractfile(member)
            assert file is not None
            changed = change(member, file.read())
            if changed is not None:
                member, data = changed
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
    return result


def test_cve_2026_53492_cve_2024_8676_settings_of_an_archive_are_not_looked_at(
    cri: CriClient, counter: str, tmp_path: Path
) -> None:
    save(cri, counter, tmp_path / "one.tar")
    cri.stop(counter)

    def change(member: tarfile.TarInfo, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
        if member.name in ("spec.dump", "config.dump"):
            document = json.loads(data)
            document["annotations"] = {"cdi.k8s.io/evil": "vendor.com/evil=all", "evil": "1"}
            document["mounts"] = [{"destination": "/evil", "type": "bind", "source": "/", "options": ["rbind"]}]
            data = json.dumps(document).encode()
        return member, data

    made = of_saved(cri, cri.run_pod("other"), rewritten(tmp_path / "one.tar", change))

    asked = runtime_pb2.ContainerStatusRequest(container_id=made, verbose=True)
    spec = json.loads(cri.runtime.ContainerStatus(asked).info["info"])["runtimeSpec"]
    assert "evil" not in json.dumps(spec)
    assert b"evil" not in cri.exec(made, "cat", "/proc/self/mountinfo").stdout


def named(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ([], "it is no checkpoint of a container"),
        ([(named("config.dump", tarfile.SYMTYPE), b"")], "'config.dump' is not a plain file"),
        ([(named("checkpoint/x", tarfile.LNKTYPE), b"")], "'checkpoint/x' is not a plain file"),
        ([(named("checkpoint/../x"), b"evil")], "is not the name of a file in checkpoint/ itself"),
        ([(named("checkpoint/x"), b"1"), (named("checkpoint/x"), b"2")], "checkpoint/x comes twice"),
        ([(named("config.dump"), b"{}")], "config.dump names no image"),
        ([(named("config.dump"), b'{"rootfsImageRef": "/etc/passwd"}')], "config.dump names no image"),
        ([(named("config.dump"), b"[" * 100_000)], "config.dump"),
        ([(named("config.dump"), bytes(2 << 20))], "config.dump has 2097152 bytes"),
    ],
)
def test_what_is_no_checkpoint_is_refused(
    cri: CriClient, tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]], text: str
) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    pod = cri.run_pod()
    config = cri.container_config("back", "true")
    config.image.image = str(tmp_path / "evil.tar")

    with pytest.raises(grpc.RpcError) as failure:
        cri.create(pod, config)

    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert text in str(failure.value.details())
    assert (cri.containers(), left(cri)) == ([], [])
    assert "ingest" not in cri.daemon.ctr("content", "active", namespace="k8s.io")


def test_a_checkpoint_that_is_not_there_or_whose_image_is_not(cri: CriClient, tmp_path: Path) -> None:
    image = {"rootfsImageRef": f"sha256:{'0' * 64}"}
    with tarfile.open(tmp_path / "one.tar", "w") as archive:
        for name, data in (("config.dump", json.dumps(image).encode()), ("checkpoint/inventory.img", b"")):
            member = named(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    (tmp_path / "link.tar").symlink_to("one.tar")
    os.mkfifo(tmp_path / "fifo")
    pod = cri.run_pod()
    for name, code, text in (
        ("one.tar", grpc.StatusCode.NOT_FOUND, "failed to resolve image"),
        ("nothing", grpc.StatusCode.NOT_FOUND, "No such file"),
        ("link.tar", grpc.StatusCode.NOT_FOUND, "symbolic links"),
        ("fifo", grpc.StatusCode.INVALID_ARGUMENT, "is not a regular file"),
    ):
        config = cri.container_config("back", "true")
        config.image.image = str(tmp_path / name)
        with pytest.raises(grpc.RpcError) as failure:
            cri.create(pod, config)
        assert (failure.value.code(), text in str(failure.value.details())) == (code, True), failure.value.details()
    assert (cri.containers(), left(cri)) == ([], [])


def test_an_image_can_be_a_checkpoint(cri: CriClient, counter: str, tmp_path: Path) -> None:
    """Its layer has the archive's files, as who builds images of them makes it, compressed and with a directory."""
    save(cri, counter, tmp_path / "one.tar")
    cri.stop(counter)
    with tarfile.open(tmp_path / "one.tar") as archive:
        files = {name: archive.extractfile(name).read() for name in archive.getnames()}  # type: ignore[union-attr]
    built = images.image(files)
    manifest = {**json.loads(built.manifest), "annotations": {"org.criu.checkpoint.container.name": "main"}}
    data = json.dumps(manifest).encode()
    blobs = {**built.blobs, images.digest(data): data}
    cri.bring("registry.test/saved:latest", replace(built, manifest=data, blobs=blobs))
    config = cri.container_config("back", *COUNT)
    config.image.image = "registry.test/saved:latest"
    made = cri.create(cri.run_pod("other"), config)
    cri.start(made)

    wait_until(lambda: cri.log("back").count("\n") > 2, "it counts")

    assert int(cri.log("back").splitlines()[0].rpartition(" ")[2]) > 2
    assert cri.exec(made, "cat", "/mine").stdout == b"mine\n"
    assert cri.status(made).image.image == IMAGE


def test_a_daemon_that_dies_meanwhile_leaves_nothing(cri: CriClient, counter: str, tmp_path: Path) -> None:
    """But a lease, which ends by itself."""
    request = runtime_pb2.CheckpointContainerRequest(container_id=counter, location=str(tmp_path / "one.tar"))
    call = cri.runtime.CheckpointContainer.future(request)
    folders = cri.daemon.root / "checkpoints"
    wait_until(lambda: any(folders.glob("*")) or call.done(), "it is under way")
    assert not call.done()
    cri.daemon.kill()
    assert isinstance(call.exception(), grpc.RpcError)
    cri.daemon.start()

    assert goes_on(cri)
    assert list(tmp_path.iterdir()) == []
    wait_until(lambda: not any(folders.glob("*")), "its files are swept")
    save(cri, counter, tmp_path / "one.tar")
    assert goes_on(cri)
    for line in cri.daemon.ctr("leases", "ls", "-q", namespace="k8s.io").splitlines():
        cri.daemon.ctr("leases", "rm", line, namespace="k8s.io")
