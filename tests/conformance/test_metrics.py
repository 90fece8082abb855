"""/v1/metrics beside that of a real containerd: the same names, types and labels, and figures that are true."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from prometheus_client.parser import text_string_to_metric_families

from pyctr_wire.containerd.services.version.v1.version_pb2_grpc import VersionStub
from support import peers
from support.ctr_client import Ctr, program
from support.daemon_process import DEADLINE, DaemonProcess, wait_until
from support.engines import make_root
from support.footprint import remove_cgroup
from support.real_containerd import RealContainerd
from support.registry_process import free_port

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.timeout(240)]

NAMESPACE = "measured"


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("image") / "rootfs")


@contextmanager
def sleeping(daemon: DaemonProcess, rootfs: Path) -> Iterator[Ctr]:
    """A container that does nothing, with a limit."""
    ctr = Ctr(daemon, program("1.6"), NAMESPACE)
    limit = ("--memory-limit", "100000000")
    ctr("run", "--detach", "--env=PATH=/bin", *limit, "--rootfs", str(rootfs), "sleeper", "sleep", "1000")
    try:
        yield ctr
    finally:
        ctr.run("tasks", "rm", "--force", "sleeper")
        ctr.run("containers", "rm", "sleeper")
        remove_cgroup(NAMESPACE)


def fetch(port: int, path: str = "/v1/metrics") -> Any:
    return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=DEADLINE)


def answers(port: int) -> bool:
    try:
        fetch(port).close()
    except OSError:
        return False
    return True


def families(port: int) -> dict[str, Any]:
    with fetch(port) as answer:
        return {family.name: family for family in text_string_to_metric_families(answer.read().decode())}


def shape(found: dict[str, Any]) -> dict[str, tuple[str, frozenset[str]]]:
    """Return what there is of containers: the type and the labels of each name. Which disks are used is chance."""
    return {
        name: (family.type, frozenset(family.samples[0].labels))
        for name, family in found.items()
        if name.startswith("container_") and family.samples and "_blkio_" not in name
    }


@pytest.fixture(scope="module")
def measured() -> Iterator[tuple[DaemonProcess, int]]:
    port = free_port()
    with DaemonProcess(config=f'[metrics]\naddress = "127.0.0.1:{port}"\n') as daemon:
        wait_until(lambda: answers(port), "metrics are served")
        yield daemon, port


def test_containers_have_containerds_metrics(measured: tuple[DaemonProcess, int], rootfs: Path) -> None:
    daemon, port = measured
    theirs_port = free_port()
    peers.find("containerd-shim-runc-v2", "2")
    containerd = RealContainerd(str(peers.find("containerd", "2")))
    with (containerd.base / "containerd.toml").open("a") as config:
        config.write(f'[metrics]\n  address = "127.0.0.1:{theirs_port}"\n')
    with containerd, sleeping(containerd, rootfs):
        wait_until(lambda: "container_pids_current" in families(theirs_port), "it looks at the container")
        theirs = shape(families(theirs_port))
    with sleeping(daemon, rootfs):
        found = families(port)

    ours = shape(found)
    assert len(theirs) > 20
    assert {name: ours.get(name) for name in theirs} == theirs
    (limit,) = found["container_memory_usage_limit_bytes"].samples
    assert limit.labels == {"container_id": "sleeper", "namespace": NAMESPACE, "runtime": "io.containerd.runc.v2"}
    assert 99_000_000 < limit.value <= 100_000_000
    (pids,) = found["container_pids_current"].samples
    assert pids.value == 1


def test_the_daemon_counts_its_calls_and_operations(measured: tuple[DaemonProcess, int], rootfs: Path) -> None:
    daemon, port = measured

    def total(name: str, **labels: str) -> float:
        return sum(one.value for one in families(port)[name].samples if labels.items() <= one.labels.items())

    calls = total("grpc_server_handled", grpc_method="Version", grpc_code="OK")
    creations = total("pyctrd_operations", operation="create", status="ok")
    lost = total("grpc_server_handled", grpc_service="containerd.services.tasks.v1.Tasks", grpc_code="NotFound")
    with daemon.channel() as channel:
        for _ in range(3):
            VersionStub(channel).Version(Empty(), timeout=DEADLINE)
    with sleeping(daemon, rootfs) as ctr:
        assert ctr.run("tasks", "metrics", "nobody").returncode
        assert total("pyctrd_tasks", namespace=NAMESPACE, status="running") == 1

    assert total("grpc_server_handled", grpc_method="Version", grpc_code="OK") == calls + 3
    assert total("grpc_server_started", grpc_method="Version") >= calls + 3
    assert total("pyctrd_operations", operation="create", status="ok") == creations + 1
    assert total("grpc_server_handled", grpc_service="containerd.services.tasks.v1.Tasks", grpc_code="NotFound") > lost
    wait_until(lambda: total("containerd_gc_collections", status="success") > 0, "the first collection is counted")


def test_it_is_prometheus_text_at_two_paths_and_nothing_else(measured: tuple[DaemonProcess, int]) -> None:
    _, port = measured
    for path in ("/v1/metrics", "/metrics"):
        with fetch(port, path) as answer:
            assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert b"# TYPE pyctrd_build_info gauge" in answer.read()
    for path, method, status in (("/", "GET", 404), ("/metrics", "POST", 405)):
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=DEADLINE)
        assert refused.value.code == status
        refused.value.close()


def test_an_upgrade_goes_on_serving(measured: tuple[DaemonProcess, int]) -> None:
    daemon, port = measured
    daemon.upgrade()
    wait_until(lambda: answers(port), "the next daemon serves metrics")
    with grpc.insecure_channel(f"unix:{daemon.address}") as channel:
        VersionStub(channel).Version(Empty(), timeout=DEADLINE)


def test_a_look_wakes_no_shim(measured: tuple[DaemonProcess, int], rootfs: Path) -> None:
    daemon, port = measured
    with sleeping(daemon, rootfs) as ctr:
        asleep = daemon.state / "tasks" / NAMESPACE / "sleeper/asleep"
        wait_until(asleep.exists, "its shim sleeps")
        written = asleep.stat().st_mtime_ns

        (counted,) = families(port)["container_pids_current"].samples
        printed = ctr("tasks", "metrics", "sleeper")

        assert counted.value == 1
        assert "sleeper" in printed
        assert asleep.stat().st_mtime_ns == written
