"""CheckpointContainer: what the archive has, that the container goes on, and what is refused."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from pyctr_wire.cri import runtime_pb2
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
