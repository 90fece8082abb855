"""A kubelet 1.36 that is short of disk space, as it is told: which images it removes, by what the daemon tells it.

It looks every five minutes, and in vain the first time, when it has not measured anything yet.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from pyctr_wire.cri import image_pb2
from support import images
from support.cri_client import IMAGE, CriClient
from support.daemon_process import DEADLINE, DaemonProcess, wait_until
from support.kubelet import Kubelet, Pod
from support.pod_bridge import pod_bridge

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.full, pytest.mark.timeout(1200)]

UNUSED: Final = ("example.com/unused:v1", "example.com/unused:v2")
PINNED: Final = "example.com/pinned:v1"
ENDED: Final = "example.com/ended:v1"
# More than a percent of the disk is in use, and it is to free all of that.
SHORT_OF_SPACE: Final = {
    "imageGCHighThresholdPercent": 1,
    "imageGCLowThresholdPercent": 0,
    "imageMinimumGCAge": "1s",
}
_SECONDS: Final = 900.0


@pytest.fixture
def cri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CriClient]:
    with (
        pod_bridge(tmp_path_factory.mktemp("cni")) as network,
        DaemonProcess(config=network, log_level="info") as daemon,
        CriClient(daemon) as client,
    ):
        yield client


def tags(cri: CriClient) -> set[str]:
    answer = cri.images.ListImages(image_pb2.ListImagesRequest(), timeout=DEADLINE)
    return {tag for image in answer.images for tag in image.repo_tags}


def used(cri: CriClient) -> int:
    """Return the bytes that images take, as the daemon tells the kubelet."""
    answer = cri.images.ImageFsInfo(image_pb2.ImageFsInfoRequest(), timeout=DEADLINE)
    return int(answer.image_filesystems[0].used_bytes.value)


def test_it_removes_what_nobody_uses_or_has_pinned(cri: CriClient) -> None:
    """Images of running and of ended containers stay, and pinned ones; what the others took is free."""
    for number, name in enumerate((*UNUSED, PINNED, ENDED)):
        program = Path("/bin/busybox").read_bytes()
        cri.bring(name, images.image({"bin/sh": program}, {f"ballast-{number}": os.urandom(4 << 20)}))
    cri.daemon.ctr("images", "label", PINNED, "io.cri-containerd.pinned=pinned", namespace="k8s.io")
    wait_until(lambda: tags(cri) >= {IMAGE, ENDED, PINNED, *UNUSED}, "all are seen")
    with Kubelet(cri.daemon, settings=SHORT_OF_SPACE) as kubelet:
        pods = [Pod(kubelet, cri, "exec sleep 100000").started()]
        pods.append(Pod(kubelet, cri, "exit 0", image=ENDED, pod={"restartPolicy": "Never"}))
        pods[1].until(lambda status: status.get("state", {}).get("terminated"), "it has ended")
        wait_until(lambda: used(cri) > 0, "images are measured")
        before = used(cri)
        wait_until(lambda: not tags(cri) & set(UNUSED), lambda: kubelet.log_text()[-4000:], _SECONDS)
        assert tags(cri) == {IMAGE, ENDED, PINNED}
        assert pods[0].status["restartCount"] == 0
        assert pods[0].exec("echo", "here") == b"here\n"
        wait_until(lambda: used(cri) < before - (4 << 20), lambda: f"{used(cri)} of {before} bytes are in use")
        metrics = kubelet.get("/metrics").splitlines()
        collected = [line for line in metrics if line.startswith("kubelet_image_garbage_collected_total")]
        assert sum(float(line.split()[-1]) for line in collected) == len(UNUSED), collected
        for pod in pods:
            kubelet.withdraw(pod.name)
        wait_until(lambda: not cri.pods(), "all pods are removed", 300)
