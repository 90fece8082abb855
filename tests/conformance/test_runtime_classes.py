"""Pods whose RuntimeClass names an OCI runtime that is a program: who makes the containers, and all else alike."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_wire.cri import runtime_pb2
from support import runtimes
from support.cri_client import POD, CriClient, refused
from support.daemon_process import DEADLINE, DaemonProcess, wait_until

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", params=["runc", "crun"])
def program(request: pytest.FixtureRequest) -> str:
    return runtimes.path_of(request.param)


@pytest.fixture(scope="module")
def daemon(program: str) -> Iterator[DaemonProcess]:
    with DaemonProcess(config=f'[runtimes.class]\npath = "{program}"\n') as daemon:
        yield daemon


@pytest.fixture
def cri(daemon: DaemonProcess) -> Iterator[CriClient]:
    with CriClient(daemon, "class") as client:
        yield client


def test_a_container_is_made_by_that_program_and_lives_as_all_do(
    cri: CriClient, daemon: DaemonProcess, program: str
) -> None:
    """Two in a pod that shares what it can; logs, commands, figures; the daemon killed; ends and their status."""
    pod = cri.run_pod("web", ipc=POD, pid=POD)
    made = []
    for name in ("one", "two"):
        config = cri.container_config(name, "sh", "-c", 'trap "exit 5" TERM; echo begun; while :; do sleep 0.1; done')
        config.linux.security_context.namespace_options.pid = POD
        made.append(cri.create(pod, config))
        cri.start(made[-1])
    record = json.loads((daemon.state / "tasks" / "k8s.io" / made[0] / "runtime.json").read_text())
    assert Path(record["program"]) == Path(program)
    wait_until(lambda: cri.log("two").endswith(" stdout F begun\n"), lambda: cri.log("two"))
    cri.exec(made[0], "touch", "/dev/shm/shared")
    assert cri.exec(made[1], "ls", "/dev/shm").stdout == b"shared\n"
    assert cri.exec(made[0], "sh", "-c", "exit 3").exit_code == 3
    request = runtime_pb2.ContainerStatsRequest(container_id=made[0])
    assert cri.runtime.ContainerStats(request, timeout=DEADLINE).stats.memory.usage_bytes.value > 0

    daemon.restart()

    assert [cri.status(id).state for id in made] == [runtime_pb2.CONTAINER_RUNNING] * 2
    cri.stop(made[0], 10)
    assert cri.status(made[0]).exit_code == 5
    cri.stop_pod(pod.annotations["id"])
    assert cri.status(made[1]).exit_code == 137


def test_there_is_a_handler_for_each_that_is_configured(cri: CriClient) -> None:
    handlers = cri.runtime.Status(runtime_pb2.StatusRequest(), timeout=DEADLINE).runtime_handlers
    assert {one.name for one in handlers} == {"", "runc", "class"}
    request = runtime_pb2.RunPodSandboxRequest(config=cri.pod_config("none"), runtime_handler="nobody's")
    _, text = refused(lambda: cri.runtime.RunPodSandbox(request, timeout=DEADLINE))
    assert 'no runtime for "nobody\'s" is configured' in text
