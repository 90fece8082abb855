"""critest 1.36, unmodified: every spec that can run here, in turn, at once, over WebSocket, and with a dying daemon."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_wire.cri import runtime_pb2
from support import images
from support.cri_client import CriClient
from support.critest import KNOWN_REASONS, Critest, critest_images, exactly
from support.daemon_process import DaemonProcess
from support.pod_bridge import pod_bridge

pytestmark = [pytest.mark.root, pytest.mark.peer]

_IMAGE = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
# Those that need one image with a shell, and little time.
_SHORT = (
    "should support removing PodSandbox",
    "should support removing running container",
    r"should support execSync \[Conf",
    "should support recursive readonly mounts",
    "should support reopening container log",
    "mount with 'rshared'",
    "should support safe sysctls",
    "dropping ALL capabilities",
    "should output OOMKilled reason",
    "should support attach",
)


@pytest.fixture(scope="module")
def critest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Critest[DaemonProcess]]:
    """One with all images at hand."""
    with (
        critest_images(tmp_path_factory.mktemp("images")) as registry,
        pod_bridge(tmp_path_factory.mktemp("cni")) as network,
        DaemonProcess(config=registry + network, log_level="info") as daemon,
    ):
        yield Critest(daemon)


@pytest.fixture
def cri(critest: Critest[DaemonProcess]) -> Iterator[CriClient]:
    """Asserts that nothing of the pods is left."""
    with CriClient(critest.daemon) as client:
        yield client


@pytest.mark.timeout(300)  # for a machine that is very busy
def test_in_short(tmp_path: Path) -> None:
    """Without a registry: the image is there already."""
    with (
        pod_bridge(tmp_path) as network,
        DaemonProcess(config=network, log_level="info") as daemon,
        CriClient(daemon) as client,
    ):
        critest = Critest(daemon)
        client.bring(_IMAGE, images.busybox_with_applets())
        report = critest.run(focus=_SHORT)
        assert not report.failed, report.failures()
        assert not report.skipped, report.skipped
        assert len(report.passed) == len(_SHORT)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("processes", [1, 4])
def test_every_spec(critest: Critest[DaemonProcess], cri: CriClient, processes: int) -> None:
    report = critest.run(processes=processes)
    assert not report.failed, report.failures()
    assert all(reason.startswith(KNOWN_REASONS) for reason in report.skipped.values()), report.skipped
    assert len(report.passed) >= 106, report.skipped


@pytest.mark.full
@pytest.mark.timeout(600)
def test_streaming_over_websocket(critest: Critest[DaemonProcess], cri: CriClient) -> None:
    flags = ("-websocket-exec", "-websocket-attach", "-websocket-portforward")
    report = critest.run(*flags, focus=["streaming interfaces"])
    assert not report.failed, report.failures()
    assert len(report.passed) == 5


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_the_daemon_dies_between_specs(critest: Critest[DaemonProcess], cri: CriClient) -> None:
    """And a pod of somebody else sees nothing of it."""
    pod = cri.run_pod("bystander")
    container = cri.run(pod, "sh", "-c", "echo $$ >>/started; sleep 100000")
    failed = {}
    for name in critest.names():
        critest.daemon.restart()
        failed.update(critest.run(focus=[exactly(name)]).failed)
    assert not failed, failed
    assert cri.status(container).state == runtime_pb2.CONTAINER_RUNNING
    assert cri.exec(container, "cat", "/started").stdout == b"1\n"
