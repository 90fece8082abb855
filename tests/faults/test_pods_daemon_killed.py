"""F02, F04 for pods: the daemon is killed while something is done to a pod or its containers; what is true is told."""

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from pyctr_wire.containerd.services.containers.v1 import containers_pb2, containers_pb2_grpc
from pyctr_wire.cri import image_pb2, runtime_pb2
from support.cri_client import POD, CriClient
from support.daemon_process import DEADLINE, DaemonProcess, wait_until
from support.pod_bridge import pod_bridge
from support.tracing import KillAt, needs_strace

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("leaving_nothing")]

SLEEP = ("sleep", "1000")
CREATED, RUNNING = runtime_pb2.CONTAINER_CREATED, runtime_pb2.CONTAINER_RUNNING
_numbers = itertools.count()

# The system calls of the daemon's main thread at which it is killed, each the last before something else is true; in
# the long run every one of them, in the short one what is known to have been the worst.
_FEW = [("sendmsg", 1)]
_STEPS = [
    *_FEW,
    *(
        pytest.param(name, nth, marks=pytest.mark.full)
        for name, most in (("sendmsg", 3), ("write", 8), ("openat", 4), ("mkdir", 2), ("rename", 2), ("unlink", 3))
        for nth in range(1, most + 1)
        if (name, nth) not in _FEW
    ),
]
steps = pytest.mark.parametrize(("name", "nth"), _STEPS)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pods' network keeps its configuration, and below addresses/ which ones are given away."""
    return tmp_path_factory.mktemp("network")


@pytest.fixture(scope="module")
def daemon(network: Path) -> Iterator[DaemonProcess]:
    """One with a network for pods."""
    with pod_bridge(network) as config, DaemonProcess(config=config) as daemon:
        yield daemon


def addresses(network: Path) -> int:
    """Count those that are given away."""
    return sum(path.name[0].isdigit() for path in network.glob("addresses/*/*"))


@pytest.fixture(autouse=True)
def _none_lost(network: Path, daemon: DaemonProcess) -> Iterator[None]:
    """All addresses and what is noted of them come back; `cri`, which ends before, has removed all pods."""
    yield
    assert addresses(network) == 0
    assert not list((daemon.root / "network_records").glob("*"))


def killed_at(cri: CriClient, name: str, nth: int, call: Callable[[], object]) -> bool:
    """Make a call while the daemon is killed at a system call, start another, and return whether an answer came.

    Where the call makes fewer of them, the daemon is killed after its answer.
    """
    answered = cut_off = False
    with KillAt(cri.daemon.pid, name, nth):
        try:
            call()
            answered = True
        except grpc.RpcError as failure:
            cut_off = failure.code() is grpc.StatusCode.UNAVAILABLE
        if cut_off:
            assert cri.daemon.wait_ended() == -9
        else:
            cri.daemon.kill()
    cri.daemon.start()
    return answered


def pods_named(cri: CriClient, name: str) -> list[runtime_pb2.PodSandbox]:
    return [pod for pod in cri.pods() if pod.metadata.name == name]


@needs_strace
@steps
def test_a_pod_that_is_made(cri: CriClient, network: Path, name: str, nth: int) -> None:
    """It is there and ready, or one that is not and can be removed; another one can be made in any case."""
    pod = f"made{next(_numbers)}"
    answered = killed_at(cri, name, nth, lambda: cri.run_pod(pod, network=POD, ipc=POD, pid=POD))

    found = pods_named(cri, pod)
    assert len(found) <= 1
    ready = [one for one in found if one.state == runtime_pb2.SANDBOX_READY]
    assert ready or not answered
    if not ready:
        for one in found:
            cri.remove_pod(one.id)
        cri.run_pod(pod, network=POD, ipc=POD, pid=POD)
    (one,) = pods_named(cri, pod)
    assert one.state == runtime_pb2.SANDBOX_READY
    wait_until(lambda: addresses(network) == 1, "it has an address, and nobody else")
    config = cri.pod_config(pod, network=POD, ipc=POD, pid=POD)
    config.annotations["id"] = one.id
    container = cri.run(config, "sh", "-c", "exit 3")
    assert cri.ended(container).exit_code == 3


@needs_strace
@steps
def test_a_pod_that_is_removed(cri: CriClient, name: str, nth: int) -> None:
    pod = cri.run_pod(f"removed{next(_numbers)}", network=POD, ipc=POD)
    cri.run(pod, *SLEEP)
    killed_at(cri, name, nth, lambda: cri.remove_pod(pod.annotations["id"]))

    cri.remove_pod(pod.annotations["id"])

    assert cri.left() == []


@needs_strace
@steps
def test_a_container_that_is_made(cri: CriClient, name: str, nth: int) -> None:
    pod = cri.run_pod()
    config = cri.container_config("main", *SLEEP)
    answered = killed_at(cri, name, nth, lambda: cri.create(pod, config))

    found = cri.containers()
    assert [one.state for one in found] in ([], [CREATED])
    assert found or not answered
    container = found[0].id if found else cri.create(pod, config)
    cri.start(container)
    assert cri.exec(container, "true").exit_code == 0


@needs_strace
@steps
def test_a_container_that_is_started(cri: CriClient, name: str, nth: int) -> None:
    """The new daemon says what is true; one whose start was cut off can be started."""
    container = cri.create(cri.run_pod(), cri.container_config("main", *SLEEP))
    answered = killed_at(cri, name, nth, lambda: cri.start(container))

    wait_until(lambda: not answered or cri.status(container).state == RUNNING, "it runs")
    if cri.status(container).state == CREATED:
        with suppress(grpc.RpcError):  # it is found to run meanwhile
            cri.start(container)
    wait_until(lambda: cri.status(container).state == RUNNING, "it runs")
    assert 0 < cri.status(container).created_at <= cri.status(container).started_at
    assert cri.exec(container, "ps").stdout.count(b"sleep 1000") == 1
    cri.stop(container)
    assert cri.ended(container).exit_code == 137


@needs_strace
@steps
def test_a_container_whose_limits_change(cri: CriClient, name: str, nth: int) -> None:
    """They are the old or the new ones, and what the status tells is what holds."""
    config = cri.container_config("main", *SLEEP)
    config.linux.resources.memory_limit_in_bytes = 64 << 20
    container = cri.create(cri.run_pod(), config)
    cri.start(container)
    new = image_pb2.LinuxContainerResources(memory_limit_in_bytes=32 << 20)
    request = runtime_pb2.UpdateContainerResourcesRequest(container_id=container, linux=new)
    answered = killed_at(cri, name, nth, lambda: cri.runtime.UpdateContainerResources(request, timeout=DEADLINE))

    told = cri.status(container).resources.linux.memory_limit_in_bytes
    assert told in ({32 << 20} if answered else {32 << 20, 64 << 20})
    cri.runtime.UpdateContainerResources(request, timeout=DEADLINE)
    assert cri.status(container).resources.linux.memory_limit_in_bytes == 32 << 20


@needs_strace
@steps
def test_a_command_that_is_run(cri: CriClient, name: str, nth: int) -> None:
    """Nobody will ever have its output: it does not go on."""
    container = cri.run(cri.run_pod(), *SLEEP)
    killed_at(cri, name, nth, lambda: cri.exec(container, "sleep", "2000", seconds=5))

    wait_until(lambda: b"sleep 2000" not in cri.exec(container, "ps").stdout, "it has ended")
    assert cri.status(container).state == RUNNING


def test_a_command_that_runs_for_nobody_ends(cri: CriClient) -> None:
    container = cri.run(cri.run_pod(), *SLEEP)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(cri.exec, container, "sleep", "2000")
        wait_until(lambda: b"sleep 2000" in cri.exec(container, "ps").stdout, "it runs")
        cri.daemon.kill()
        assert isinstance(asked.exception(), grpc.RpcError)
    cri.daemon.start()

    wait_until(lambda: b"sleep 2000" not in cri.exec(container, "ps").stdout, "it has ended")
    exits = cri.daemon.state / "tasks/k8s.io" / container / "exits"
    wait_until(lambda: not exits.exists() or not list(exits.iterdir()), "nothing is kept of it")


def stopping(cri: CriClient, container: str, seconds: int) -> Any:
    """Ask for a stop and return the call, whose answer nobody waits for."""
    request = runtime_pb2.StopContainerRequest(container_id=container, timeout=seconds)
    return cri.runtime.StopContainer.future(request)


def is_noted(cri: CriClient, container: str) -> bool:
    """Whether the daemon has written down that a container is to stop."""
    request = containers_pb2.GetContainerRequest(id=container)
    metadata = (("containerd-namespace", "k8s.io"),)
    with cri.daemon.channel() as channel:
        found = containers_pb2_grpc.ContainersStub(channel).Get(request, metadata=metadata)
    return b'"stop_asked": [' in found.container.extensions["pyctr.cri.Container"].value


def test_a_stop_goes_on_with_the_rest_of_its_grace(cri: CriClient) -> None:
    """Nobody asks again: it has had its signal, once, and is killed when its time is over, not before."""
    script = "trap 'echo asked' TERM; echo ready; while :; do sleep 0.05; done"
    container = cri.run(cri.run_pod(), "sh", "-c", script)
    wait_until(lambda: "ready" in cri.log(), "it runs")
    begun = time.time_ns()
    call = stopping(cri, container, 6)
    wait_until(lambda: "asked" in cri.log() and is_noted(cri, container), "it has its signal")
    cri.daemon.restart()
    call.cancel()

    ended = cri.ended(container)

    assert ended.exit_code == 137
    assert ended.finished_at - begun >= 6e9
    assert cri.log().count("asked") == 1


def test_a_stop_that_succeeds_while_nobody_looks(cri: CriClient) -> None:
    handler = "echo asked; while [ ! -e /dev/shm/end ]; do sleep 0.05; done; exit 5"
    script = f"trap '{handler}' TERM; echo ready; while :; do sleep 0.05; done"
    pod = cri.run_pod(ipc=POD)
    container = cri.run(pod, "sh", "-c", script)
    wait_until(lambda: "ready" in cri.log(), "it runs")
    call = stopping(cri, container, 1000)
    wait_until(lambda: "asked" in cri.log(), "it has its signal")
    shm = cri.daemon.state / "pods" / pod.annotations["id"] / "shm"
    cri.daemon.kill()
    call.cancel()
    (shm / "end").touch()
    exits = cri.daemon.state / "tasks/k8s.io" / container / "exits/init.json"
    wait_until(exits.exists, "it has ended")
    cri.daemon.start()

    ended = cri.ended(container)
    assert (ended.exit_code, ended.reason) == (5, "Error")
