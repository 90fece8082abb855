"""Images that are volumes of a pod's containers."""

from pathlib import Path

import grpc
import pytest

from pyctr_wire.cri import image_pb2, runtime_pb2
from support.cri_client import POD, CriClient, refused
from support.images import image

pytestmark = pytest.mark.root

NAME = "docker.io/library/data:latest"
FIRST = 500_000
SLEEP = ("sleep", "1000")


@pytest.fixture(scope="module", autouse=True)
def _images(cri_client: CriClient) -> None:
    lower = {"top": b"lower\n", "folder/file": b"from the lower layer\n", "folder/deep/one": b"1\n"}
    upper: dict[str, bytes | str] = {
        "top": b"upper\n",
        "folder/other": b"from the upper layer\n",
        "out": "../..",
        "up": "/etc",
    }
    cri_client.bring(NAME, image(lower, upper))
    cri_client.bring("docker.io/library/flat:latest", image({"file": b"alone\n"}))


def volume(
    cri: CriClient, name: str = "main", sub_path: str = "", reference: str = "data"
) -> runtime_pb2.ContainerConfig:
    config = cri.container_config(name, *SLEEP)
    mount = config.mounts.add(container_path="/image", readonly=True, image_sub_path=sub_path)
    mount.image.image = reference
    return config


def mounted(cri: CriClient) -> list[str]:
    state = str(cri.daemon.base / "state" / "pods")
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if state in line and "/images/" in line]


def test_it_is_there_read_only_and_goes_with_the_container(cri: CriClient) -> None:
    pod = cri.run_pod()
    config = volume(cri)
    config.mounts.add(container_path="/flat", readonly=True).image.image = "flat"
    made = cri.create(pod, config)
    cri.start(made)

    assert cri.exec(made, "cat", "/image/top", "/image/folder/file", "/image/folder/other", "/flat/file").stdout == (
        b"upper\nfrom the lower layer\nfrom the upper layer\nalone\n"
    )
    for place in ("/image/new", "/flat/new"):
        assert b"Read-only file system" in cri.exec(made, "touch", place).stderr
    assert len(mounted(cri)) == 2
    told = cri.status(made).mounts[0].image
    request = image_pb2.ImageStatusRequest(image=image_pb2.ImageSpec(image=NAME))
    assert told.image_ref == cri.images.ImageStatus(request).image.id
    cri.remove(made)
    assert mounted(cri) == []


def test_its_layers_stay_as_long_as_it_is_mounted(cri: CriClient) -> None:
    cri.bring("docker.io/library/leaves:latest", image({"file": b"still here\n"}, {"other": b"layer\n"}))
    pod = cri.run_pod()
    made = cri.create(pod, volume(cri, reference="leaves"))
    request = image_pb2.RemoveImageRequest(image=image_pb2.ImageSpec(image="leaves"))
    cri.images.RemoveImage(request)
    cri.daemon.restart()

    cri.start(made)

    assert cri.exec(made, "cat", "/image/file").stdout == b"still here\n"
    cri.remove(made)
    left = cri.daemon.ctr("snapshots", "ls", namespace="k8s.io")
    assert made not in left


def test_a_part_of_it(cri: CriClient) -> None:
    pod = cri.run_pod()
    folder = cri.create(pod, volume(cri, "folder", "folder/deep"))
    file = cri.create(pod, volume(cri, "file", "folder/file"))
    for one in (folder, file):
        cri.start(one)

    assert cri.exec(folder, "cat", "/image/one").stdout == b"1\n"
    assert cri.exec(file, "cat", "/image").stdout == b"from the lower layer\n"


@pytest.mark.parametrize("path", ["..", "folder/../../..", "out/etc", "up", "/etc", "not/there"])
def test_a_path_that_leaves_it_is_refused(cri: CriClient, path: str) -> None:
    pod = cri.run_pod()

    code, text = refused(cri.create, pod, volume(cri, sub_path=path))

    assert (code, "ImageVolumeMountFailed" in text, path in text) == (grpc.StatusCode.INVALID_ARGUMENT, True, True)
    assert mounted(cri) == []


def test_what_cannot_be_is_told(cri: CriClient) -> None:
    pod = cri.run_pod()
    writable, twofold = volume(cri), volume(cri)
    writable.mounts[0].readonly = False
    twofold.mounts[0].host_path = "/tmp"

    for config, text in ((writable, "must be read-only"), (twofold, "has a host_path too")):
        code, said = refused(cri.create, pod, config)
        assert (code, text in said) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, said = refused(cri.create, pod, volume(cri, reference="no-such-image"))
    assert (code, "ImageVolumeMountFailed" in said) == (grpc.StatusCode.NOT_FOUND, True)


def test_in_a_user_namespace_it_is_the_pods(cri: CriClient) -> None:
    mappings = [image_pb2.IDMapping(container_id=0, host_id=FIRST, length=65536)]
    mapped = image_pb2.UserNamespace(mode=POD, uids=mappings, gids=mappings)
    pod = cri.run_pod(userns_options=mapped)
    config = volume(cri)
    config.mounts.add(container_path="/flat", readonly=True).image.image = "flat"
    config.linux.security_context.namespace_options.userns_options.CopyFrom(mapped)
    made = cri.create(pod, config)
    cri.start(made)

    owners = cri.exec(made, "stat", "-c", "%u:%g", "/image/top", "/image/folder/file", "/flat/file").stdout
    assert owners.split() == [b"0:0"] * 3
