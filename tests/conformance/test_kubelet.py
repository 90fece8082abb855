"""A kubelet 1.36, unmodified, without an API server: its pods live, die and outlive whoever looks after them.

Everything twice: by itself it asks for lists each second and measures cgroups; told to, it hears events and has its
figures from the daemon. `tests/peers DIRECTORY kubelet` builds it, which takes a quarter of an hour and more.
"""

import asyncio
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyctr_wire.cri import runtime_pb2
from support import images
from support.cri_client import IMAGE, CriClient
from support.daemon_process import DaemonProcess, wait_until
from support.kubelet import NODE, SECONDS, Kubelet, Pod
from support.pod_bridge import pod_bridge
from support.registry_process import running_registry
from support.streaming_clients import request, streams, upgrade_to_spdy, within_deadline

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.full, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CriClient]:
    """One daemon for all tests; nothing of any pod is left in the end."""
    with (
        pod_bridge(tmp_path_factory.mktemp("cni")) as network,
        DaemonProcess(config=network, log_level="info") as daemon,
        CriClient(daemon) as client,
    ):
        yield client


@pytest.fixture(scope="module", params=[False, True], ids=["by-itself", "told-by-the-daemon"])
def told(request: pytest.FixtureRequest) -> bool:
    """Whether the daemon tells the kubelet of events and figures."""
    return bool(request.param)


@pytest.fixture(scope="module")
def kubelet(cri: CriClient, told: bool) -> Iterator[Kubelet]:
    """One for all tests, and then another one: each takes the other's pods for its own that are to end."""
    with Kubelet(cri.daemon, dict.fromkeys(("EventedPLEG", "PodAndContainerStatsFromCRI"), told)) as kubelet:
        yield kubelet
        # It removes what is left of a pod that is gone once a minute only.
        wait_until(lambda: not cri.pods(), "all pods are removed", SECONDS)
        wait_until(lambda: not kubelet.pod_cgroups(), f"no cgroups are left, but {kubelet.pod_cgroups()}", SECONDS)


@pytest.fixture
def run(kubelet: Kubelet, cri: CriClient) -> Iterator[Callable[..., Pod]]:
    """Runs pods, which are to end afterwards."""
    pods: list[Pod] = []

    def run(script: str, **container: Any) -> Pod:
        pods.append(Pod(kubelet, cri, script, **container))
        return pods[-1]

    yield run
    for pod in pods:
        kubelet.withdraw(pod.name)


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


def test_figures(kubelet: Kubelet, run: Callable[..., Pod], told: bool) -> None:
    pod = run("exec sleep 100000").started()
    name = f"{pod.name}-{NODE}"

    def figures() -> dict[str, Any]:
        pods = json.loads(kubelet.get("/stats/summary"))["pods"] or ()
        found: dict[str, Any] = next((one for one in pods if one["podRef"]["name"] == name), {})
        return found

    def container() -> dict[str, Any]:
        return dict(next((one for one in figures().get("containers", ()) if one["name"] == "main"), {}))

    wait_until(lambda: container().get("memory", {}).get("workingSetBytes", 0) > 0, "it is measured")
    assert container()["logs"]["capacityBytes"] > 0
    assert ("network" in figures()) == told

    def samples(metric: str) -> list[str]:
        lines = kubelet.get("/metrics/cadvisor").splitlines()
        return [line for line in lines if line.startswith(metric) and f'pod="{name}"' in line]

    memory = "container_memory_working_set_bytes"
    wait_until(lambda: any('container="main"' in line for line in samples(memory)), "it is told of there, too")
    assert bool(samples("container_network_receive_bytes_total")) == told
    assert (kubelet.figure("kubelet_evented_pleg_connection_success_count") > 0) == told


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


async def test_an_attached_client_talks_to_a_container(kubelet: Kubelet, run: Callable[..., Pod]) -> None:
    pod = run("while read line; do echo got $line; done", stdin=True).started()
    url = pod.url("attach", "/main", input=1, output=1)
    async with streams(url, "stdin", "stdout", context=kubelet.context) as (_, stdin, stdout):
        await stdin.write(b"this\n")
        await stdout.read_until(b"got this\n")
    wait_until(lambda: pod.logs() == "got this\n", "it is in the log, too")


def test_hooks_run_before_others_are_asked_and_before_the_end(
    kubelet: Kubelet, run: Callable[..., Pod], tmp_path: Path
) -> None:
    """What a container does at its beginning and its end, within its grace."""
    say = {what: {"exec": {"command": ["sh", "-c", f"echo {what} >>/data/order"]}} for what in ("begun", "ending")}
    pod = run(
        "trap 'sleep 1; echo ended >>/data/order; exit 0' TERM; while :; do sleep 0.1; done",
        lifecycle={"postStart": say["begun"], "preStop": say["ending"]},
        readinessProbe={"exec": {"command": ["grep", "begun", "/data/order"]}, "periodSeconds": 1},
        pod={
            "volumes": [{"name": "data", "hostPath": {"path": str(tmp_path), "type": "Directory"}}],
            "terminationGracePeriodSeconds": 60,
        },
    ).started()
    kubelet.withdraw(pod.name)
    order = tmp_path / "order"
    wait_until(lambda: "ended" in order.read_text(), f"{pod.name} has ended", SECONDS)
    assert order.read_text() == "begun\nending\nended\n"


def test_a_log_that_grows_is_rotated_and_loses_no_line(kubelet: Kubelet, run: Callable[..., Pod]) -> None:
    """The kubelet renames and compresses, the shim opens anew in the middle of writing."""
    pod = run(
        "i=0; until [ -e /data/stop ]; do"
        " for _ in $(seq 500); do echo $((i += 1)); done; sleep 0.1; done; echo end $i; exec sleep 100000"
    ).started()
    directory = next((kubelet.base / "logs").glob(f"default_{pod.name}-{NODE}_*/main"))
    wait_until(lambda: any(directory.glob("*.gz")), "it is rotated twice", SECONDS)
    pod.exec("touch", "/data/stop")

    def written() -> bytes:
        """Return all lines, once nothing more is renamed or compressed: what was renamed last is left as it is."""
        files = sorted(directory.iterdir(), key=lambda path: (path.name == "0.log", path.name))
        plain = [path for path in files if path.suffix != ".gz"]
        if len(plain) != 2 or plain[-1].name != "0.log" or plain[-1].stat().st_size > 256 << 10:
            return b""
        contents = ((path, path.read_bytes()) for path in files)
        return b"".join(gzip.decompress(data) if path.suffix == ".gz" else data for path, data in contents)

    wait_until(lambda: b" end " in written(), "there is nothing more to rotate", SECONDS)
    *numbers, last = (int(line.split()[-1]) for line in written().splitlines())
    assert numbers == list(range(numbers[0], last + 1))


def test_a_user_namespace_and_an_image_as_a_volume(kubelet: Kubelet, run: Callable[..., Pod]) -> None:
    volumes = [
        {"name": "data", "emptyDir": {}},
        {"name": "image", "image": {"reference": IMAGE, "pullPolicy": "Never"}},
    ]
    mounts = [{"name": "data", "mountPath": "/data"}, {"name": "image", "mountPath": "/image", "readOnly": True}]
    pod = run(
        "touch /data/mine; cat /proc/self/uid_map; ls -n /data/mine /image/bin/busybox; exec sleep 100000",
        volumeMounts=mounts,
        pod={"hostUsers": False, "volumes": volumes},
    ).started()
    wait_until(lambda: len(pod.logs().splitlines()) == 3, "it has written all")
    ids, *files = pod.logs().splitlines()
    inside, outside, count = map(int, ids.split())
    assert (inside, count) == (0, 65536)
    assert outside >= 65536
    assert [line.split()[2:4] for line in files] == [["0", "0"]] * 2


def test_an_image_comes_from_a_registry(cri: CriClient, run: Callable[..., Pod], tmp_path: Path) -> None:
    with running_registry(tmp_path) as address:
        image = f"{address}/test/busybox:1"
        # One of its own: once the kubelet has pulled one, it pulls it for all its other names, too.
        cri.bring(image, images.busybox(Labels={"from": address}))
        cri.daemon.ctr("images", "push", "--plain-http", image, namespace="k8s.io")
        cri.daemon.ctr("images", "rm", "--sync", image, namespace="k8s.io")
        command = ["busybox", "sleep", "100000"]
        pod = run("", image=image, imagePullPolicy="Always", command=command).started()
        assert pod.status["image"] == image
    pod = run("exec sleep 100000", image=f"{address}/test/busybox:2", imagePullPolicy="Always")
    status = pod.until(lambda status: "Pull" in str(status.get("state", "")), "there is no such image")
    assert "RegistryUnavailable" in str(status["state"]["waiting"])


def test_a_failing_probe_restarts_a_container(run: Callable[..., Pod]) -> None:
    pod = run(
        "touch /healthy; echo life >>/data/lives; exec sleep 100000",
        livenessProbe={"exec": {"command": ["cat", "/healthy"]}, "periodSeconds": 1, "failureThreshold": 1},
    ).started()
    first = pod.id
    pod.exec("rm", "/healthy")
    status = pod.until(lambda status: status.get("restartCount") == 1 and status["ready"], "it lives again")
    assert status["lastState"]["terminated"]["containerID"].endswith(first)
    assert status["lastState"]["terminated"]["exitCode"] == 137
    assert pod.exec("cat", "/data/lives") == b"life\nlife\n"


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
    wait_until(lambda: kubelet.status(pod.name).get("phase") == "Succeeded", f"{pod.name} succeeds", SECONDS)
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
