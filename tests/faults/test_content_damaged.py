"""F20: blobs and ingests are damaged; their digests tell, they are fetched again, and nothing of them is used."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from pyctr_wire.containerd.services.content.v1 import content_pb2, content_pb2_grpc
from support.daemon_process import DEADLINE, DaemonProcess
from support.footprint import unchanged
from support.images import BuiltImage, busybox_with_applets, digest, write_archive
from support.registry_process import running_registry
from support.transfer_client import TransferClient

pytestmark = pytest.mark.root

IMAGE: Final[BuiltImage] = busybox_with_applets()
LAYER: Final = digest(IMAGE.layers[0])
CONFIG: Final = digest(IMAGE.config)
_HEADERS: Final = (("containerd-namespace", "default"),)


@pytest.fixture(scope="module")
def running() -> Iterator[DaemonProcess]:
    with DaemonProcess() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("image") / "archive.tar", {"example.com/busybox:v1": IMAGE})


@pytest.fixture(scope="module")
def name(running: DaemonProcess, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image's name in a registry."""
    with running_registry(tmp_path_factory.mktemp("registry")) as address:
        name = f"{address}/test/busybox:v1"
        running.ctr("images", "import", "--no-unpack", str(archive))
        running.ctr("images", "push", "--plain-http", name, "example.com/busybox:v1")
        running.ctr("images", "rm", "--sync", "example.com/busybox:v1")
        yield name


@pytest.fixture
def daemon(running: DaemonProcess) -> Iterator[DaemonProcess]:
    """The daemon, with nothing in it before and after."""
    with unchanged(running):
        assert running.ctr("content", "ls", "-q") == ""
        yield running
        for name in running.ctr("images", "ls", "-q").split():
            running.ctr("images", "rm", "--sync", name)


def truncated(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flipped(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def missing(path: Path) -> None:
    path.unlink()


Damage = Callable[[Path], None]


def damages(*chosen: Damage) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("damage", chosen, ids=lambda damage: damage.__name__)


def blob(daemon: DaemonProcess, name: str) -> Path:
    return daemon.root / "content/blobs" / name.replace(":", "/")


def say_hello(daemon: DaemonProcess, name: str) -> str:
    return daemon.ctr("run", "--rm", name, "test", "cat", "/etc/hello")


def check_sound(daemon: DaemonProcess) -> None:
    """All blobs are there, and are what their names say; an import's index, which nobody keeps, may just be going."""
    names = daemon.ctr("content", "ls", "-q").split()
    assert set(IMAGE.blobs) <= set(names)
    for name in names:
        try:
            assert digest(blob(daemon, name).read_bytes()) == name
        except FileNotFoundError:
            assert name not in daemon.ctr("content", "ls", "-q").split()


@contextmanager
def client(daemon: DaemonProcess) -> Iterator[TransferClient]:
    with daemon.channel() as channel:
        yield TransferClient(channel)


@damages(flipped, missing)
@pytest.mark.parametrize("what", [LAYER, CONFIG, IMAGE.digest], ids=["layer", "config", "manifest"])
def test_pulled_again(daemon: DaemonProcess, name: str, what: str, damage: Damage) -> None:
    """The daemon's own pull replaces what it finds damaged, and unpacks the good one."""
    with client(daemon) as transfers:
        transfers.pull(name, unpacks=[])
        damage(blob(daemon, what))

        transfers.pull(name)

    check_sound(daemon)
    assert say_hello(daemon, name) == "hello\n"


@damages(truncated, flipped, longer, missing)
def test_a_client_that_unpacks_by_itself(daemon: DaemonProcess, name: str, damage: Damage) -> None:
    """It is told that the blob is damaged, once; then the blob is gone, and is fetched again."""
    with client(daemon) as transfers:
        transfers.pull(name, unpacks=[])
    damage(blob(daemon, LAYER))

    if damage is flipped:
        told = daemon.ctr("images", "pull", "--plain-http", name, check=False)
        assert f"content {LAYER} is damaged" in told
        assert daemon.ctr("snapshots", "ls").splitlines()[1:] == []
    daemon.ctr("images", "pull", "--plain-http", name)

    check_sound(daemon)
    assert say_hello(daemon, name) == "hello\n"


@damages(flipped, truncated)
def test_no_container_of_a_damaged_layer(daemon: DaemonProcess, archive: Path, damage: Damage) -> None:
    """Where it cannot be had again: the error names the blob, and nothing has been unpacked or made."""
    name = "example.com/busybox:v1"
    daemon.ctr("images", "import", "--no-unpack", str(archive))
    damage(blob(daemon, LAYER))

    told = daemon.ctr("run", "--rm", name, "test", "cat", "/etc/hello", check=False)

    assert "hello" not in told.replace("/etc/hello", "")
    assert LAYER in told
    assert daemon.ctr("containers", "ls", "-q") == daemon.ctr("tasks", "ls", "-q") == ""
    daemon.ctr("leases", "create", "--id", "collect")
    daemon.ctr("leases", "rm", "--sync", "collect")
    assert daemon.ctr("snapshots", "ls").splitlines()[1:] == []
    daemon.ctr("images", "import", str(archive))
    check_sound(daemon)
    assert say_hello(daemon, name) == "hello\n"


@damages(missing)
def test_what_is_unpacked_does_not_need_its_blob(daemon: DaemonProcess, archive: Path, damage: Damage) -> None:
    name = "example.com/busybox:v1"
    daemon.ctr("images", "import", str(archive))
    daemon.ctr("run", "--detach", "--null-io", name, "web", "sleep", "1000")
    damage(blob(daemon, LAYER))
    daemon.restart()

    assert daemon.ctr("tasks", "exec", "--exec-id", "e", "web", "cat", "/etc/hello") == "hello\n"
    assert say_hello(daemon, name) == "hello\n"
    daemon.ctr("tasks", "rm", "--force", "web", check=False)
    daemon.ctr("containers", "rm", "web")


@damages(truncated, missing)
def test_a_blob_of_another_size_is_not_read(daemon: DaemonProcess, archive: Path, damage: Damage) -> None:
    """A reader gets an error, not the bytes that are left."""
    daemon.ctr("images", "import", "--no-unpack", str(archive))
    damage(blob(daemon, LAYER))

    command = ["ctr", "--address", str(daemon.address), "content", "get", LAYER]
    done = subprocess.run(command, capture_output=True, timeout=2 * DEADLINE, check=False)

    assert done.returncode != 0
    assert done.stdout == b""
    assert LAYER.encode() in done.stderr


def begin_ingest(daemon: DaemonProcess, data: bytes) -> Path:
    """Write part of the layer under the reference that pulls use, and return its file."""

    def requests() -> Iterator[content_pb2.WriteContentRequest]:
        known: dict[str, Any] = {"ref": f"layer-{LAYER}", "total": len(IMAGE.layers[0]), "expected": LAYER}
        yield content_pb2.WriteContentRequest(action=content_pb2.WriteAction.STAT, **known)
        yield content_pb2.WriteContentRequest(action=content_pb2.WriteAction.WRITE, offset=0, data=data, **known)

    with daemon.channel() as channel:
        answers = content_pb2_grpc.ContentStub(channel).Write(requests(), metadata=_HEADERS, timeout=DEADLINE)
        assert [answer.offset for answer in answers][-1] == len(data)
    (path,) = (daemon.root / "content/ingest").glob("*/data")
    return path


@damages(truncated, flipped, longer)
def test_an_ingest_that_a_crash_damaged(daemon: DaemonProcess, name: str, damage: Damage) -> None:
    """The next pull goes on with what is good, and begins anew with what is not."""
    path = begin_ingest(daemon, IMAGE.layers[0][: len(IMAGE.layers[0]) // 2])
    daemon.kill()
    damage(path)
    daemon.start()

    with client(daemon) as transfers:
        transfers.pull(name)

    check_sound(daemon)
    assert daemon.ctr("content", "active").splitlines()[1:] == []
    assert say_hello(daemon, name) == "hello\n"


def test_an_ingest_of_wrong_bytes_never_becomes_a_blob(daemon: DaemonProcess) -> None:
    """However long it is, and whatever its writer says."""
    wrong = bytes(len(IMAGE.layers[0]))
    begin_ingest(daemon, wrong)
    request = content_pb2.WriteContentRequest(
        action=content_pb2.WriteAction.COMMIT, ref=f"layer-{LAYER}", total=len(wrong), expected=LAYER, offset=len(wrong)
    )

    with daemon.channel() as channel, pytest.raises(grpc.RpcError, match="unexpected commit digest"):
        list(content_pb2_grpc.ContentStub(channel).Write(iter([request]), metadata=_HEADERS, timeout=DEADLINE))

    assert not blob(daemon, LAYER).exists()
    assert daemon.ctr("content", "ls", "-q") == ""
    with daemon.channel() as channel:
        content_pb2_grpc.ContentStub(channel).Abort(
            content_pb2.AbortRequest(ref=f"layer-{LAYER}"), metadata=_HEADERS, timeout=DEADLINE
        )
