"""A kubelet 1.36, unmodified, without an API server: its pods live, die and outlive whoever looks after them.

    GOBIN="$PYCTR_TEST_BIN" CGO_ENABLED=0 go install k8s.io/kubernetes/cmd/kubelet

in a module that requires k8s.io/kubernetes v1.36.0, and replaces by its v0.36.0 each module that is replaced there.
"""

import asyncio
import json
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyctr_wire.cri import runtime_pb2
from support.cri_client import IMAGE, CriClient
from support.daemon_process import DaemonProcess, wait_until
from support.kubelet import NODE, Kubelet
from support.pod_bridge import pod_bridge
from support.streaming_clients import request, streams, upgrade_to_spdy, within_deadline

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.full, pytest.mark.timeout(900)]

_SECONDS = 150.0  # that a kubelet may take to notice something


@pytest.fixture(scope="module")
def cri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CriClient]:
    """One daemon for all tests; nothing of any pod is left in the end."""
    with (
        pod_bridge(tmp_path_factory.mktemp("cni")) as network,
        DaemonProcess(config=network, log_level="info") as daemon,
        CriClient(daemon) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def kubelet(cri: CriClient) -> Iterator[Kubelet]:
    """One for all tests."""
    with Kubelet(cri.daemon) as kubelet:
        yield kubelet


class Pod:
    """A pod of one container, as its kubelet and the daemon see it."""

    def __init__(self, kubelet: Kubelet, cri: CriClient, script: str, **container: Any) -> None:
        self.name = f"pod-{uuid.uuid4().hex[:8]}"
        self._kubelet = kubelet
        self._cri = cri
        spec = container.pop("pod", {})
        main = {
            "name": "main",
            "image": IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            **container,
        }
        kubelet.add(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": self.name, "namespace": "default"},
                "spec": {
                    "containers": [main],
                    "volumes": [{"name": "data", "emptyDir": {}}],
                    "terminationGracePeriodSeconds": 1,
                    **spec,
                },
            }
        )

    @property
    def status(self) -> dict[str, Any]:
        return self._kubelet.container(self.name)

    @property
    def id(self) -> str:
        return str(self.status["containerID"].removeprefix("containerd://"))

    def until(self, condition: Callable[[dict[str, Any]], object], what: str) -> dict[str, Any]:
        """Wait until the status of the container is so, and return it."""
        wait_until(lambda: bool(condition(self.status)), what, _SECONDS)
        return self.status

    def started(self) -> "Pod":
        """Wait until it is ready."""
        self.until(lambda status: status.get("ready"), f"{self.name} is ready")
        return self

    def logs(self, options: str = "") -> str:
        return self._kubelet.logs(self.name, options)

    def sandboxes(self) -> list[str]:
        return [one.id for one in self._cri.pods() if one.metadata.name == f"{self.name}-{NODE}"]

    def url(self, verb: str, path: str = "", **query: object) -> str:
        """Where the kubelet runs a command or forwards a port."""
        encoded = urllib.parse.urlencode(query, doseq=True)
        return f"{self._kubelet.address}/{verb}/default/{self.name}-{NODE}{path}?{encoded}"

    def gone(self) -> None:
        """Have it removed, and wait until nothing of it is left."""
        self._kubelet.withdraw(self.name)
        wait_until(lambda: not self.sandboxes(), f"{self.name} is removed", _SECONDS)
        wait_until(lambda: not self._kubelet.status(self.name), f"the kubelet forgets {self.name}", _SECONDS)


@pytest.fixture
def run(kubelet: Kubelet, cri: CriClient) -> Iterator[Callable[..., Pod]]:
    """Runs pods, which are removed afterwards, all together."""
    pods: list[Pod] = []

    def run(script: str, **container: Any) -> Pod:
        pods.append(Pod(kubelet, cri, script, **container))
        return pods[-1]

    yield run
    for pod in pods:
        kubelet.withdraw(pod.name)
    wait_until(lambda: not any(pod.sandboxes() for pod in pods), "the pods are removed", _SECONDS)
    wait_until(lambda: not kubelet.pod_cgroups(), f"no cgroups are left, but {kubelet.pod_cgroups()}", _SECONDS)


def test_a_pod_with_probes_logs_and_figures(kubelet: Kubelet, run: Callable[..., Pod]) -> None:
    pod = run(
        "echo begun; echo trouble >&2; touch /data/ready; echo hello >/data/hello; exec httpd -f -p 8080 -h /data",
        readinessProbe={"exec": {"command": ["cat", "/data/ready"]}, "periodSeconds": 1},
        livenessProbe={"httpGet": {"path": "/hello", "port": 8080}, "periodSeconds": 1},
    ).started()
    assert pod.status["restartCount"] == 0
    assert kubelet.status(pod.name)["podIP"].startswith("10.")
    assert sorted(pod.logs().splitlines()) == ["begun", "trouble"]
    assert pod.logs("tailLines=1&timestamps=true").count("\n") == 1
    stats = json.loads(kubelet.get("/stats/summary?only_cpu_and_memory=true"))
    figures = next(one for one in stats["pods"] if one["podRef"]["name"] == f"{pod.name}-{NODE}")
    assert figures["containers"][0]["memory"]["workingSetBytes"] > 0


async def test_commands_and_ports(kubelet: Kubelet, run: Callable[..., Pod]) -> None:
    pod = run("echo hello >/data/hello; exec httpd -f -p 8080 -h /data").started()
    command = ["sh", "-c", "cat; cat /data/hello; exit 5"]
    url = pod.url("exec", "/main", command=command, input=1, output=1)
    async with streams(url, "stdin", "stdout", context=kubelet.context) as (error, stdin, stdout):
        await stdin.write(b"said\n")
        await stdin.close()
        assert await stdout.read_all() == b"said\nhello\n"
        assert json.loads(await error.read_all())["details"]["causes"] == [{"reason": "ExitCode", "message": "5"}]
    spdy = await request(pod.url("portForward"), upgrade_to_spdy("portforward.k8s.io"), context=kubelet.context)
    assert spdy.status == 101, spdy.head
    async with asyncio.TaskGroup() as group:
        receiving = group.create_task(spdy.receive())
        _, data = [await spdy.open(kind, port="8080", requestid="0") for kind in ("error", "data")]
        await data.write(b"GET /hello HTTP/1.0\r\n\r\n")
        assert (await data.read_all()).endswith(b"\r\n\r\nhello\n")
        spdy.writer.transport.abort()
        await within_deadline(receiving)


def test_a_failing_probe_restarts_a_container(cri: CriClient, run: Callable[..., Pod]) -> None:
    pod = run(
        "touch /healthy; echo life >>/data/lives; exec sleep 100000",
        livenessProbe={"exec": {"command": ["cat", "/healthy"]}, "periodSeconds": 1, "failureThreshold": 1},
    ).started()
    first = pod.id
    cri.exec(first, "rm", "/healthy")
    status = pod.until(lambda status: status.get("restartCount") == 1 and status["ready"], "it lives again")
    assert status["lastState"]["terminated"]["containerID"].endswith(first)
    assert status["lastState"]["terminated"]["exitCode"] == 137
    assert cri.exec(pod.id, "cat", "/data/lives").stdout == b"life\nlife\n"


def test_a_container_out_of_memory_says_so(run: Callable[..., Pod]) -> None:
    pod = run(
        "[ -e /data/once ] && exec sleep 100000; touch /data/once; exec tail /dev/zero",
        resources={"limits": {"memory": "24Mi"}},
    )
    status = pod.until(lambda status: status.get("restartCount") == 1 and status["ready"], "it lives again")
    assert status["lastState"]["terminated"]["reason"] == "OOMKilled"
    assert status["lastState"]["terminated"]["exitCode"] == 137


def test_a_container_that_always_fails_has_to_wait(run: Callable[..., Pod]) -> None:
    pod = run("echo try; exit 3")
    status = pod.until(
        lambda status: status.get("restartCount", 0) >= 2 and "waiting" in status["state"],
        "it waits for another life",
    )
    assert status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert status["lastState"]["terminated"]["exitCode"] == 3
    assert status["lastState"]["terminated"]["reason"] == "Error"
    assert pod.logs("previous=true") == "try\n"


def test_a_pod_that_is_to_end_ends(kubelet: Kubelet, run: Callable[..., Pod]) -> None:
    pod = run("echo done", pod={"restartPolicy": "Never"})
    wait_until(lambda: kubelet.status(pod.name).get("phase") == "Succeeded", f"{pod.name} succeeds", _SECONDS)
    assert pod.status["state"]["terminated"]["reason"] == "Completed"
    assert pod.logs() == "done\n"


def test_first_containers_come_first(run: Callable[..., Pod]) -> None:
    """One that ends before the others begin, and one that runs beside them."""
    mounts = [{"name": "data", "mountPath": "/data"}]
    before = {
        "name": "before",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", "echo before >/data/order"],
    }
    beside = {
        "name": "beside",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "100000"],
        "restartPolicy": "Always",
    }
    pod = run(
        "cat /data/order; exec sleep 100000",
        pod={"initContainers": [{**one, "volumeMounts": mounts} for one in (before, beside)]},
    ).started()
    assert pod.logs() == "before\n"


@pytest.mark.parametrize("what", ["killed", "upgraded", "kubelet"])
def test_pods_outlive_whoever_looks_after_them(
    kubelet: Kubelet, cri: CriClient, run: Callable[..., Pod], what: str
) -> None:
    pod = run(
        'trap "exit 0" TERM; i=0; while :; do echo $((i += 1)); sleep 0.1; done',
        livenessProbe={"exec": {"command": ["true"]}, "periodSeconds": 1},
    ).started()
    before = pod.status
    if what == "killed":
        cri.daemon.restart()
    elif what == "upgraded":
        cri.daemon.upgrade()
    else:
        kubelet.stop()
        kubelet.start()
    said = len(pod.logs().split())
    wait_until(lambda: len(pod.logs().split()) > said, "it speaks on")
    numbers = pod.logs().split()
    assert numbers == [str(number + 1) for number in range(len(numbers))]
    run("exec sleep 100000").started()
    after = pod.started().status
    assert (after["containerID"], after["restartCount"], after["state"]) == (
        before["containerID"], before["restartCount"], before["state"],
    )  # fmt: skip
    assert len(pod.sandboxes()) == 1


def test_a_container_that_dies_while_nobody_looks_is_restarted(cri: CriClient, run: Callable[..., Pod]) -> None:
    """Its end, the status included, is what was: the daemon was not there."""
    pod = run("until [ -e /data/end ]; do sleep 0.1; done; rm /data/end; exit 9").started()
    first = pod.id
    asked = runtime_pb2.ContainerStatusRequest(container_id=first, verbose=True)
    inside = json.loads(cri.runtime.ContainerStatus(asked).info["info"])["pid"]
    cri.daemon.kill()
    Path(f"/proc/{inside}/root/data/end").touch()
    cri.daemon.start()
    status = pod.until(lambda status: status.get("restartCount") == 1 and status["ready"], "it lives again")
    assert status["lastState"]["terminated"]["exitCode"] == 9


def test_events_instead_of_lists(cri: CriClient) -> None:
    """A kubelet that listens for events sees an end at once."""
    with Kubelet(cri.daemon, {"EventedPLEG": True}) as kubelet:
        pod = Pod(kubelet, cri, "until [ -e /end ]; do sleep 0.1; done; exit 4").started()
        cri.exec(pod.id, "touch", "/end")
        status = pod.until(lambda status: status.get("restartCount") == 1 and status["ready"], "it lives again")
        assert status["lastState"]["terminated"]["exitCode"] == 4
        pod.gone()
        wait_until(lambda: not kubelet.pod_cgroups(), "no cgroups are left", _SECONDS)
