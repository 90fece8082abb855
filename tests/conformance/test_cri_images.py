"""The CRI's image service on a real daemon and a real registry, through stubs, as a kubelet calls it."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from pyctr_wire.cri import image_pb2 as pb
from pyctr_wire.cri import image_pb2_grpc
from support.daemon_process import DaemonProcess
from support.images import BuiltImage, busybox, digest, image, write_layout
from support.registry_process import running_registry

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
    assert running.ctr("content", "ls", "-q", namespace="k8s.io") == ""
    assert running.ctr("leases", "ls", "-q", namespace="k8s.io") == ""
    assert len(running.ctr("snapshots", "ls", namespace="k8s.io").splitlines()) == 1


class Client:
    """The calls of a kubelet."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.stub: Any = image_pb2_grpc.ImageServiceStub(channel)

    def pull(self, name: str, timeout: float = 60, **auth: str) -> str:
        request = pb.PullImageRequest(image=pb.ImageSpec(image=name), auth=pb.AuthConfig(**auth) if auth else None)
        return self.stub.PullImage(request, timeout=timeout).image_ref

    def status(self, name: str, verbose: bool = False) -> pb.ImageStatusResponse:
        return self.stub.ImageStatus(pb.ImageStatusRequest(image=pb.ImageSpec(image=name), verbose=verbose), timeout=30)

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


def _copy(directory: Path, tag: str, target: str) -> None:
    command = ["skopeo", "copy", "--all", "--quiet", "--dest-tls-verify=false"]
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
