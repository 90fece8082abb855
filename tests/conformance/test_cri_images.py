"""The CRI's image service on a real daemon and a real registry, through stubs, as a kubelet calls it."""

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from pyctr_wire.cri import image_pb2 as pb
from pyctr_wire.cri import image_pb2_grpc
from support.daemon_process import DaemonProcess, wait_until
from support.images import BuiltImage, busybox, digest, image, write_layout
from support.registry_process import free_port, running_registry

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer,
    pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed (Debian package skopeo)"),
]

# bcrypt of "secret", for the user "me".
HTPASSWD = "me:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n"

BUSYBOX: BuiltImage = busybox(Cmd=["/bin/sh"])
# Labels that steer daemons, where an image may not set any.
ATTACK = image(
    {"etc/attack": b"x"},
    config={
        "User": "1000:50",
        "Labels": {
            "io.cri-containerd.pinned": "pinned",
            "io.cri-containerd.image": "",
            "containerd.io/gc.expire": "2001-01-01T00:00:00Z",
            "containerd.io/gc.root": "now",
        },
    },
)
NAMED_USER = image({"etc/passwd": b"web:x:33:33::/:\n"}, config={"User": "web:www"})
ARM = image({"bin/sh": b"arm"}, architecture="arm64")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("registry")
    write_layout(
        directory / "layout",
        {
            "busybox": BUSYBOX,
            "attack": ATTACK,
            "user": NAMED_USER,
            "arm": ARM,
            "multi": [(BUSYBOX, "amd64"), (ARM, "arm64")],
        },
    )
    return directory


@pytest.fixture(scope="module")
def registry(directory: Path) -> Iterator[str]:
    """A registry with test/NAME:v1 for each image, and test/busybox:v2 and v3, which are the same image."""
    with running_registry(directory) as address:
        for name in ("busybox", "attack", "user", "arm", "multi"):
            _copy(directory, name, f"{address}/test/{name}:v1")
        for tag in ("v2", "v3"):
            _copy(directory, "busybox", f"{address}/test/busybox:{tag}")
        yield address


@pytest.fixture(scope="module")
def private_registry(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry with test/busybox:v1 for the user "me" with the password "secret"."""
    private = tmp_path_factory.mktemp("private")
    (private / "htpasswd").write_text(HTPASSWD)
    with running_registry(private, private / "htpasswd") as address:
        _copy(directory, "busybox", f"{address}/test/busybox:v1", "--dest-creds=me:secret")
        yield address


@pytest.fixture(scope="module")
def running() -> Iterator[DaemonProcess]:
    with DaemonProcess() as daemon:
        yield daemon


@pytest.fixture
def daemon(running: DaemonProcess) -> Iterator[DaemonProcess]:
    """The daemon, with nothing in namespace k8s.io after each test."""
    yield running
    with running.channel() as channel:
        service = image_pb2_grpc.ImageServiceStub(channel)
        for one in service.ListImages(pb.ListImagesRequest(), timeout=30).images:
            service.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=one.id)), timeout=30)
    assert running.ctr("images", "ls", "-q", namespace="k8s.io") == ""
    # What a failed pull has fetched is collected a little later.
    wait_until(lambda: running.ctr("content", "ls", "-q", namespace="k8s.io") == "", "no content is left")
    assert running.ctr("leases", "ls", "-q", namespace="k8s.io") == ""
    assert len(running.ctr("snapshots", "ls", namespace="k8s.io").splitlines()) == 1


class Client:
    """The calls of a kubelet."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.stub: Any = image_pb2_grpc.ImageServiceStub(channel)

    def pull(self, name: str, **auth: str) -> str:
        request = pb.PullImageRequest(image=pb.ImageSpec(image=name), auth=pb.AuthConfig(**auth) if auth else None)
        return self.stub.PullImage(request, timeout=60).image_ref

    def status(self, name: str, verbose: bool = False) -> pb.ImageStatusResponse:
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=name), verbose=verbose)
        return self.stub.ImageStatus(request, timeout=30)

    def list(self, name: str = "") -> list[pb.Image]:
        wanted = pb.ImageFilter(image=pb.ImageSpec(image=name)) if name else None
        listed = list(self.stub.ListImages(pb.ListImagesRequest(filter=wanted), timeout=30).images)
        streamed = list(self.stub.StreamImages(pb.StreamImagesRequest(filter=wanted), timeout=30))
        assert [one for message in streamed for one in message.images] == listed
        assert all(message.images for message in streamed)
        return listed

    def remove(self, name: str) -> None:
        self.stub.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=name)), timeout=60)


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[Client]:
    with daemon.channel() as channel:
        yield Client(channel)


def _copy(directory: Path, tag: str, target: str, *options: str) -> None:
    command = ["skopeo", "copy", "--all", "--quiet", "--dest-tls-verify=false", *options]
    subprocess.run([*command, f"oci:{directory}/layout:{tag}", f"docker://{target}"], check=True, timeout=60)


def _id(built: BuiltImage) -> str:
    return digest(built.config)


def _size(built: BuiltImage) -> int:
    return sum(map(len, built.blobs.values()))


def test_an_image_is_pulled_listed_and_removed(daemon: DaemonProcess, client: Client, registry: str) -> None:
    name = f"{registry}/test/busybox:v1"

    image_ref = client.pull(name)

    assert image_ref == _id(BUSYBOX)
    [found] = client.list()
    expected = pb.Image(
        id=image_ref,
        repo_tags=[name],
        repo_digests=[f"{registry}/test/busybox@{BUSYBOX.digest}"],
        size=_size(BUSYBOX),
        uid=pb.Int64Value(value=0),
    )
    assert found == expected
    hexadecimal = image_ref.removeprefix("sha256:")
    repository = f"{registry}/test/busybox"
    for text in (
        *(image_ref, hexadecimal, hexadecimal[:13], image_ref[:20], name),
        *(f"{repository}@{BUSYBOX.digest}", f"{name}@{BUSYBOX.digest}"),
    ):
        assert client.status(text).image == expected, text
        assert client.list(text) == [expected], text
    records = daemon.ctr("images", "ls", namespace="k8s.io")
    assert {line.split()[0] for line in records.splitlines()[1:]} == {image_ref, name, found.repo_digests[0]}
    assert all("io.cri-containerd.image=managed" in line for line in records.splitlines()[1:])

    client.remove(hexadecimal[:13])

    assert not client.list()
    assert not client.status(name).HasField("image")
    assert daemon.ctr("content", "ls", "-q", namespace="k8s.io") == ""
    client.remove(name)  # again: a success


def test_an_image_of_which_nobody_knows_is_no_error(client: Client) -> None:
    assert not client.status("nobody/knows:this").HasField("image")
    assert client.list("nobody/knows:this") == []
    client.remove("nobody/knows:this")


def test_tags_of_one_image_are_merged_and_go_together(client: Client, registry: str) -> None:
    names = [f"{registry}/test/busybox:{tag}" for tag in ("v1", "v2", "v3")]
    assert {client.pull(name) for name in names} == {_id(BUSYBOX)}
    client.pull(f"{registry}/test/multi:v1")  # the same image, by way of an index
    client.pull(f"{registry}/test/user:v1")

    found = client.status(names[0]).image
    assert found.repo_tags == [*names, f"{registry}/test/multi:v1"]
    assert len(found.repo_digests) == 2
    assert len(client.list()) == 2

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(client.remove, [names[1]] * 8))

    assert [one.repo_tags for one in client.list()] == [[f"{registry}/test/user:v1"]]


def test_by_digest_the_image_has_no_tag(client: Client, registry: str) -> None:
    name = f"{registry}/test/busybox@{BUSYBOX.digest}"

    client.pull(name)

    [found] = client.list()
    assert not found.repo_tags
    assert list(found.repo_digests) == [name]


def test_fifty_pulls_at_once_are_one(daemon: DaemonProcess, client: Client, registry: str) -> None:
    with ThreadPoolExecutor(50) as pool:
        pulled = list(pool.map(client.pull, [f"{registry}/test/busybox:v1"] * 50))

    assert pulled == [_id(BUSYBOX)] * 50
    assert len(client.list()) == 1


def test_pulls_and_removals_at_the_same_time_all_succeed(client: Client, registry: str) -> None:
    names = [f"{registry}/test/{name}" for name in ("busybox:v1", "busybox:v2", "multi:v1", "user:v1")]
    with ThreadPoolExecutor(12) as pool:
        pulled = [pool.submit(client.pull, name) for name in names * 3]
        removed = [pool.submit(client.remove, name) for name in names * 3]
        assert {one.result() for one in pulled} == {_id(BUSYBOX), _id(NAMED_USER)}
        for one in removed:
            one.result()

    assert client.pull(names[2]) == _id(BUSYBOX)
    assert client.status(names[2]).image.size == _size(BUSYBOX)


def test_who_an_image_runs_as(client: Client, registry: str) -> None:
    client.pull(f"{registry}/test/attack:v1")
    client.pull(f"{registry}/test/user:v1")

    by_number = client.status(f"{registry}/test/attack:v1").image
    assert (by_number.uid.value, by_number.username) == (1000, "")
    by_name = client.status(f"{registry}/test/user:v1").image
    assert (by_name.HasField("uid"), by_name.username) == (False, "web")


def test_what_an_image_says_of_itself_steers_nothing(daemon: DaemonProcess, client: Client, registry: str) -> None:
    """CVE-2026-53488: its labels, one of which says that it has long expired, stay its own."""
    client.pull(f"{registry}/test/attack:v1")
    client.pull(f"{registry}/test/user:v1")
    client.remove(f"{registry}/test/user:v1")  # which collects

    [found] = client.list()
    assert not found.pinned
    assert not found.HasField("spec")
    for line in daemon.ctr("images", "ls", namespace="k8s.io").splitlines()[1:]:
        assert line.split()[-1] == "io.cri-containerd.image=managed"


def test_verbose_tells_the_configuration(client: Client, registry: str) -> None:
    client.pull(f"{registry}/test/busybox:v1")

    info = json.loads(client.status(f"{registry}/test/busybox:v1", verbose=True).info["info"])

    assert info["imageSpec"] == json.loads(BUSYBOX.config)
    assert info["chainID"].startswith("sha256:")
    assert not client.status(f"{registry}/test/busybox:v1").info


def test_an_image_for_another_machine_is_refused(client: Client, registry: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.pull(f"{registry}/test/arm:v1")

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "no match for platform" in str(caught.value.details())
    assert client.list() == []


@pytest.mark.parametrize("text", ["", "sha256:" + "0" * 64, "0" * 64, "Bad/Name", "a b", "../etc"])
def test_what_cannot_be_pulled(client: Client, text: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.pull(text)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_unknown_tag_is_not_found(client: Client, registry: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.pull(f"{registry}/test/busybox:nosuch")

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert f"{registry}/test/busybox:nosuch" in str(caught.value.details())


def test_a_registry_that_nobody_answers_at(client: Client) -> None:
    """Kubelets know this error by code and beginning."""
    with pytest.raises(grpc.RpcError) as caught:
        client.pull(f"127.0.0.1:{free_port()}/test/busybox:v1")

    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    assert str(caught.value.details()).startswith("RegistryUnavailable: failed to pull image")


@pytest.mark.parametrize(
    "auth",
    [
        {"username": "me", "password": "secret"},
        {"auth": base64.b64encode(b"me:secret").decode()},
        {"username": "me", "password": "secret", "server_address": "https://REGISTRY/v2/"},
    ],
)
def test_credentials_of_the_request_open_a_registry(
    client: Client, private_registry: str, auth: dict[str, str]
) -> None:
    auth = {key: value.replace("REGISTRY", private_registry) for key, value in auth.items()}

    assert client.pull(f"{private_registry}/test/busybox:v1", **auth) == _id(BUSYBOX)


@pytest.mark.parametrize(
    "auth",
    [
        {},
        {"username": "me", "password": "wrong"},
        {"username": "me", "password": "secret", "server_address": "other.example.com"},
    ],
)
def test_without_the_right_ones_it_stays_closed(client: Client, private_registry: str, auth: dict[str, str]) -> None:
    """Also for an image that is here already, pulled by somebody who might."""
    name = f"{private_registry}/test/busybox:v1"
    client.pull(name, username="me", password="secret")

    with pytest.raises(grpc.RpcError) as caught:
        client.pull(name, **auth)

    assert caught.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    assert "secret" not in str(caught.value.details())


def test_damaged_credentials_are_refused(client: Client, registry: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.pull(f"{registry}/test/busybox:v1", auth="%%%")

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_what_ctr_imports_is_the_kubelets_too(daemon: DaemonProcess, client: Client, directory: Path) -> None:
    archive = directory / "layout.tar"
    command = ["tar", "-C", str(directory / "layout"), "-cf", str(archive), "oci-layout", "index.json", "blobs"]
    subprocess.run(command, check=True)

    daemon.ctr("images", "import", "--base-name", "example.com/test", str(archive), namespace="k8s.io")

    assert client.status("example.com/test:busybox").image.id == _id(BUSYBOX)
    assert client.status("example.com/test:multi").image.id == _id(BUSYBOX)
    assert not client.status("example.com/test:arm").HasField("image")

    def labelled() -> bool:
        lines = daemon.ctr("images", "ls", namespace="k8s.io").splitlines()
        ours = {line.split()[0] for line in lines if "io.cri-containerd.image=managed" in line}
        return {"example.com/test:busybox", "example.com/test:attack", _id(BUSYBOX), _id(ATTACK)} <= ours

    wait_until(labelled, "what was imported is labelled")
    daemon.ctr("images", "rm", "example.com/test:arm", namespace="k8s.io")
    daemon.ctr("images", "rm", "example.com/test:attack", namespace="k8s.io")
    assert client.status(_id(ATTACK)).image.repo_tags == []


def test_images_outlive_the_daemon(daemon: DaemonProcess, client: Client, registry: str) -> None:
    client.pull(f"{registry}/test/busybox:v1")
    before = client.list()

    daemon.restart()

    with daemon.channel() as channel:
        assert Client(channel).list() == before


def test_a_container_keeps_the_snapshots_of_a_removed_image(
    daemon: DaemonProcess, client: Client, registry: str
) -> None:
    name = f"{registry}/test/busybox:v1"
    client.pull(name)
    daemon.ctr("run", "-d", name, "keeper", "/bin/busybox", "sleep", "300", namespace="k8s.io")

    client.remove(name)

    assert client.list() == []
    said = daemon.ctr(
        *("tasks", "exec", "--exec-id", "e1", "keeper", "/bin/busybox", "cat", "/etc/hello"), namespace="k8s.io"
    )
    assert said == "hello\n"
    daemon.ctr("tasks", "rm", "-f", "keeper", namespace="k8s.io")
    daemon.ctr("containers", "rm", "keeper", namespace="k8s.io")
    client.pull(f"{registry}/test/user:v1")
    client.remove(f"{registry}/test/user:v1")  # which collects


def test_how_much_room_images_take(daemon: DaemonProcess, client: Client, registry: str) -> None:
    """A layer counts as soon as it is there."""
    before = _usage(client)
    client.pull(f"{registry}/test/busybox:v1")
    after = _usage(client)

    assert after.fs_id.mountpoint == str(daemon.root / "snapshots/overlayfs")
    assert Path(after.fs_id.mountpoint).is_dir()
    assert after.timestamp > before.timestamp > 10**18
    assert after.used_bytes.value >= before.used_bytes.value + Path("/bin/busybox").stat().st_size
    assert after.inodes_used.value >= before.inodes_used.value + 3
    client.remove(f"{registry}/test/busybox:v1")
    assert _usage(client).used_bytes.value == before.used_bytes.value


def _usage(client: Client) -> pb.FilesystemUsage:
    info = client.stub.ImageFsInfo(pb.ImageFsInfoRequest(), timeout=30)
    assert list(info.image_filesystems) == list(info.container_filesystems)
    [usage] = info.image_filesystems
    return usage
