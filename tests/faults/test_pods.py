"""F14, F30, F32, F36 to F39, F47 for pods: memory, reboots, networks, callers, bursts, bad processes, many probes."""

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from pyctr_sys.mount import MNT_DETACH, umount2
from pyctr_wire.cri import runtime_pb2
from support.cri_client import CONTAINER, POD, CriClient, refused
from support.daemon_process import DEADLINE, DaemonProcess, wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(180), pytest.mark.usefixtures("leaving_nothing")]

SLEEP = ("sleep", "1000")
RUNNING, EXITED = runtime_pb2.CONTAINER_RUNNING, runtime_pb2.CONTAINER_EXITED
LIMIT = 24 << 20
EAT = "tail /dev/zero"

# A network that gives away addresses, as files, and does what is in the file named like the command, if there is one.
_PLUGIN = """#!/bin/sh
cd {directory}
cat > /dev/null
[ -e "$CNI_COMMAND" ] && . "./$CNI_COMMAND"
case $CNI_COMMAND in
    ADD) touch "leases/$CNI_CONTAINERID"
         echo '{{"cniVersion": "1.0.0", "ips": [{{"address": "192.0.2.7/24"}}]}}' ;;
    DEL) rm -f "leases/$CNI_CONTAINERID" ;;
esac
exit 0
"""


class Network:
    """What the plugin above has given away, and how it is told to fail."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "net.d").mkdir()
        (directory / "leases").mkdir()
        (directory / "net.d" / "net.conf").write_text('{"cniVersion": "1.1.0", "name": "net", "type": "failing"}')
        (directory / "failing").write_text(_PLUGIN.format(directory=directory))
        (directory / "failing").chmod(0o755)

    @property
    def config(self) -> str:
        return f'[cri.cni]\nconf_dir = "{self.directory}/net.d"\nbin_dirs = ["{self.directory}"]\ntimeout = 3\n'

    def leases(self) -> list[str]:
        return [path.name for path in (self.directory / "leases").iterdir()]

    def fail(self, command: str, script: str) -> None:
        (self.directory / command).write_text(script)

    def mend(self) -> None:
        for command in ("ADD", "DEL", "CHECK", "STATUS"):
            (self.directory / command).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def _network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return Network(tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def daemon(_network: Network) -> Iterator[DaemonProcess]:
    """One with that network."""
    with DaemonProcess(config=_network.config) as daemon:
        yield daemon


@pytest.fixture
def network(_network: Network, daemon: DaemonProcess) -> Iterator[Network]:
    """Mended afterwards, and nothing of it is left; ask for it before `cri`, which removes the pods."""
    yield _network
    _network.mend()
    assert _network.leases() == []
    assert not list((daemon.root / "network_records").glob("*"))


def asked(cri: CriClient, name: str, patience: float = DEADLINE, **request: Any) -> Any:
    """Make a call whose answer is waited for later."""
    message = getattr(runtime_pb2, f"{name}Request")(**request)
    return getattr(cri.runtime, name).future(message, timeout=patience)


def outcomes(futures: list[Any]) -> Counter[str]:
    """Count the codes with which calls ended."""
    codes = (future.exception() for future in futures)
    return Counter("OK" if error is None else error.code().name for error in codes)


def descriptors(pid: int) -> int:
    """Return how many a process has, but for the database's: each thread has a connection to that."""
    count = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            count += "metadata.db" not in os.readlink(f"/proc/{pid}/fd/{name}")
    return count


# -- F14


@pytest.mark.parametrize(
    ("script", "reason", "code"),
    [
        ("exec tail /dev/zero", "OOMKilled", 137),  # at once: its end and the kernel's news race
        ("sleep 1; exec tail /dev/zero", "OOMKilled", 137),
        ("tail /dev/zero; exit 137", "OOMKilled", 137),
        ("tail /dev/zero & wait $!; exit 3", "OOMKilled", 3),
        ("(tail /dev/zero); sleep 1; exit 1", "OOMKilled", 1),
        ("exit 137", "Error", 137),
        ("kill -KILL $$; exit 1", "Error", 1),  # the first process of a PID namespace takes no signal from itself
        ("sh -c 'kill -KILL $$'; exit 137", "Error", 137),
        ("head -c 8000000 /dev/zero | tail >/dev/null; exit 0", "Completed", 0),
    ],
)
def test_a_kill_for_memory_is_told_and_no_other_one(cri: CriClient, script: str, reason: str, code: int) -> None:
    pod = cri.run_pod()
    config = cri.container_config("main", "sh", "-c", script)
    config.linux.resources.memory_limit_in_bytes = LIMIT
    container = cri.create(pod, config)
    cri.start(container)

    ended = cri.ended(container)

    assert (ended.reason, ended.exit_code) == (reason, code)


def test_a_command_out_of_memory_and_its_neighbours(cri: CriClient) -> None:
    """The command's container has lost a process for memory, and says so at its end; the pod's other one has not."""
    pod = cri.run_pod()
    made = []
    for name in ("one", "other"):
        config = cri.container_config(name, *SLEEP)
        config.linux.resources.memory_limit_in_bytes = LIMIT
        made.append(cri.create(pod, config))
        cri.start(made[-1])
    one, other = made

    assert cri.exec(one, "sh", "-c", EAT).exit_code == 137
    assert cri.status(one).state == RUNNING
    cri.stop(one)
    cri.stop(other)

    assert (cri.status(one).reason, cri.status(other).reason) == ("OOMKilled", "Error")


# -- F30


def test_after_a_reboot_everything_is_over_and_nothing_was_right(
    network: Network, cri: CriClient, daemon: DaemonProcess
) -> None:
    """Whatever ran has an unknown end, pods are not ready, what they held is given back, and others can be made."""
    pod = cri.run_pod(network=POD, ipc=POD, pid=POD)
    running = cri.run(pod, *SLEEP)
    over = cri.run(pod, "sh", "-c", "exit 7", name="over")
    cri.ended(over)
    made = cri.create(pod, cri.container_config("made", *SLEEP))
    bundle = daemon.state / "tasks/k8s.io" / running
    (first,) = (daemon.state / "pods").rglob("init.json")  # of the pod's PID namespace
    records = bundle / "shim.json", bundle / "state.json", first
    pids = [json.loads(record.read_text())["pid"] for record in records]
    daemon.kill()
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "all have ended")
    for path in (path for path in Path("/sys/fs/cgroup").glob(f"*{cri.cgroup}/*") if path.is_dir()):
        path.rmdir()
    (daemon.state / "boot_id").write_text("00000000-0000-0000-0000-000000000000\n")
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        if f"{daemon.state}/pods/" in line:
            umount2(line.split()[4], MNT_DETACH)
    daemon.start()

    wait_until(lambda: cri.status(running).state == EXITED, "it is known to be over")
    status = cri.status(running)
    assert (status.exit_code, status.reason) == (255, "Unknown")
    assert (cri.status(over).exit_code, cri.status(over).reason) == (7, "Error")
    (found,) = cri.pods()
    assert found.state == runtime_pb2.SANDBOX_NOTREADY
    assert refused(cri.start, made)[0] is grpc.StatusCode.FAILED_PRECONDITION
    wait_until(lambda: network.leases() == [], "its address is given back")
    again = cri.pod_config("pod", network=POD)
    again.metadata.attempt = 1
    request = runtime_pb2.RunPodSandboxRequest(config=again)
    again.annotations["id"] = cri.runtime.RunPodSandbox(request, timeout=DEADLINE).pod_sandbox_id
    assert cri.exec(cri.run(again, *SLEEP), "true").exit_code == 0


# -- F32


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("touch leases/$CNI_CONTAINERID; sleep 600", "was not done after 3 s"),
        ("touch leases/$CNI_CONTAINERID; echo 'disk full' >&2; exit 3", "exit status 3: disk full"),
        ("touch leases/$CNI_CONTAINERID; echo nonsense; exit 0", "its answer is no JSON"),
        ("touch leases/$CNI_CONTAINERID; kill -SEGV $$", "ended by signal SIGSEGV"),
    ],
)
def test_a_network_that_cannot_be_had(network: Network, cri: CriClient, script: str, text: str) -> None:
    """The pod is not made, and what the plugin has given away nevertheless comes back."""
    network.fail("ADD", script)

    _, said = refused(lambda: cri.run_pod(network=POD))

    assert 'plugin type="failing" failed (add): ' in said
    assert text in said
    assert (cri.pods(), network.leases()) == ([], [])
    network.mend()
    pod = cri.run_pod(network=POD)
    assert network.leases() == [pod.annotations["id"]]


@pytest.mark.parametrize("script", ["sleep 600", """echo '{"code": 50, "msg": "no way out"}'; exit 1"""])
def test_a_network_that_is_not_ready_is_told_and_stops_nothing_else(
    network: Network, cri: CriClient, script: str
) -> None:
    network.fail("STATUS", script)

    status = cri.runtime.Status(runtime_pb2.StatusRequest(), timeout=DEADLINE).status

    conditions = {one.type: one for one in status.conditions}
    assert (conditions["RuntimeReady"].status, conditions["NetworkReady"].status) == (True, False)
    assert 'plugin type="failing" failed (status): ' in conditions["NetworkReady"].message
    assert cri.exec(cri.run(cri.run_pod(), *SLEEP), "true").exit_code == 0


def test_a_network_that_cannot_be_given_back(network: Network, cri: CriClient) -> None:
    pod = cri.run_pod(network=POD).annotations["id"]
    network.fail("DEL", "exit 4")
    for call in (cri.stop_pod, cri.remove_pod):
        code, text = refused(call, pod)
        assert (code, "exit status 4" in text) == (grpc.StatusCode.UNKNOWN, True), text
    assert [one.id for one in cri.pods()] == [pod]
    network.mend()

    cri.remove_pod(pod)

    assert cri.pods() == []


# -- F36


@pytest.mark.parametrize(
    "patience_ms", [1, 8, pytest.param(2, marks=pytest.mark.full), pytest.param(32, marks=pytest.mark.full)]
)
def test_callers_that_do_not_wait(network: Network, cri: CriClient, patience_ms: int) -> None:
    """Each call is repeated by somebody who waits: he gets what the first one made, or a clean place."""
    seconds = patience_ms / 1000
    pod = cri.pod_config("left", network=POD, ipc=POD)
    asked(cri, "RunPodSandbox", seconds, config=pod).exception()
    again = asked(cri, "RunPodSandbox", config=pod)
    if again.exception() is None:
        pod.annotations["id"] = again.result().pod_sandbox_id
    else:  # the answer was on its way when the caller gave up
        assert again.exception().code() is grpc.StatusCode.ALREADY_EXISTS
        pod.annotations["id"] = cri.pods()[0].id
    assert [one.state for one in cri.pods()] == [runtime_pb2.SANDBOX_READY]
    config = cri.container_config("main", *SLEEP)
    create: dict[str, Any] = {"pod_sandbox_id": pod.annotations["id"], "config": config, "sandbox_config": pod}
    asked(cri, "CreateContainer", seconds, **create).exception()
    error = asked(cri, "CreateContainer", **create).exception()
    assert error is None or error.code() is grpc.StatusCode.ALREADY_EXISTS
    (container,) = (one.id for one in cri.containers())
    asked(cri, "StartContainer", seconds, container_id=container).exception()
    error = asked(cri, "StartContainer", container_id=container).exception()
    assert error is None or error.code() is grpc.StatusCode.FAILED_PRECONDITION
    wait_until(lambda: cri.status(container).state == RUNNING, "it runs")
    asked(cri, "ExecSync", seconds, container_id=container, cmd=["sleep", "2000"]).exception()
    wait_until(lambda: b"sleep 2000" not in cri.exec(container, "ps").stdout, "a command without a caller ends")
    asked(cri, "StopContainer", seconds, container_id=container).exception()
    cri.stop(container)
    assert cri.status(container).exit_code == 137
    asked(cri, "RemoveContainer", seconds, container_id=container).exception()
    assert asked(cri, "RemoveContainer", container_id=container).exception() is None
    wait_until(lambda: cri.containers() == [], "it is removed")
    for name in ("StopPodSandbox", "RemovePodSandbox"):
        asked(cri, name, seconds, pod_sandbox_id=pod.annotations["id"]).exception()
        assert asked(cri, name, pod_sandbox_id=pod.annotations["id"]).exception() is None
    assert (cri.pods(), cri.left()) == ([], [])


# -- F37


def test_ten_callers_at_once_have_one_effect(network: Network, cri: CriClient) -> None:
    pod = cri.pod_config("ten", network=POD, ipc=POD)
    runs = [asked(cri, "RunPodSandbox", config=pod) for _ in range(10)]
    assert outcomes(runs).keys() <= {"OK", "ALREADY_EXISTS"}  # for those that came when it was there
    ids = {one.result().pod_sandbox_id for one in runs if one.exception() is None}
    assert {one.id for one in cri.pods()} == ids
    (pod.annotations["id"],) = ids
    config = cri.container_config("main", *SLEEP)
    create: dict[str, Any] = {"pod_sandbox_id": pod.annotations["id"], "config": config, "sandbox_config": pod}
    creations = [asked(cri, "CreateContainer", **create) for _ in range(10)]
    assert outcomes(creations).keys() <= {"OK", "ALREADY_EXISTS"}
    made = {one.result().container_id for one in creations if one.exception() is None}
    assert {one.id for one in cri.containers()} == made
    (container,) = made
    starts = outcomes([asked(cri, "StartContainer", container_id=container) for _ in range(10)])
    assert starts.keys() <= {"OK", "FAILED_PRECONDITION"}
    assert cri.exec(container, "ps").stdout.count(b"sleep 1000") == 1
    stops = [asked(cri, "StopContainer", container_id=container, timeout=0) for _ in range(5)]
    removals = [asked(cri, "RemoveContainer", container_id=container) for _ in range(10)]
    assert outcomes(stops) == {"OK": 5}
    assert outcomes(removals) == {"OK": 10}
    wait_until(lambda: cri.containers() == [], "it is removed")
    both = [
        asked(cri, name, pod_sandbox_id=pod.annotations["id"]) for name in ("StopPodSandbox", "RemovePodSandbox") * 5
    ]
    assert outcomes(both) == {"OK": 10}
    assert cri.left() == []


# -- F38


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=[pytest.mark.full, pytest.mark.timeout(600)])])
def test_all_end_at_once(cri: CriClient, count: int) -> None:
    """Each with its own status, told once, after its start and before its deletion."""
    pod = cri.run_pod(ipc=POD)
    stream = cri.runtime.GetContainerEvents(runtime_pb2.GetEventsRequest(), timeout=600)
    script = "until [ -e /dev/shm/end ]; do sleep 0.2; done; exit {}"
    with ThreadPoolExecutor(4) as pool:
        made = list(
            pool.map(
                lambda number: cri.run(pod, "sh", "-c", script.format(number % 200), name=f"c{number}"), range(count)
            )
        )
        (cri.daemon.state / "pods" / pod.annotations["id"] / "shm/end").touch()
        assert [one.exit_code for one in pool.map(cri.ended, made)] == [number % 200 for number in range(count)]
        list(pool.map(cri.remove, made))
    heard: dict[str, list[int]] = {id: [] for id in made}
    for event in stream:
        if event.container_id in heard:
            heard[event.container_id].append(event.container_event_type)
        if sum(map(len, heard.values())) == 4 * count:
            break
    stream.cancel()
    whole = [runtime_pb2.CONTAINER_CREATED_EVENT, runtime_pb2.CONTAINER_STARTED_EVENT,
             runtime_pb2.CONTAINER_STOPPED_EVENT, runtime_pb2.CONTAINER_DELETED_EVENT]  # fmt: skip
    assert all(events == whole for events in heard.values())


# -- F39


def limit_processes(cri: CriClient, config: runtime_pb2.ContainerConfig) -> None:
    """To 80: as a kubelet does it, by the pod's cgroup, or in version 2 by the container's."""
    if Path("/sys/fs/cgroup/pids").is_dir():
        parent = Path(f"/sys/fs/cgroup/pids{cri.cgroup}")
        parent.mkdir(exist_ok=True)
        (parent / "pids.max").write_text("80")
    else:
        config.linux.resources.unified["pids.max"] = "80"


@pytest.mark.parametrize(
    "script",
    [
        "trap '' TERM INT HUP; while :; do sleep 0.1; done",  # deaf
        "f() { f | f & }; f; while :; do sleep 0.1; done",  # a fork bomb: as many as the limit allows
        "while :; do (sleep 0.01 & exec sleep 1000) & sleep 0.02; done",  # children that nobody waits for
        "setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' & while :; do sleep 1; done",
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_bad_processes_are_stopped(cri: CriClient, script: str, shared: bool) -> None:
    """Whether the container has its own PID namespace or its pod's, by a stop or by the removal of the pod."""
    pod = cri.run_pod(pid=POD)
    config = cri.container_config("main", "sh", "-c", f"echo begun; {script}")
    config.linux.security_context.namespace_options.pid = POD if shared else CONTAINER
    limit_processes(cri, config)
    container = cri.create(pod, config)
    cri.start(container)
    wait_until(lambda: "begun" in cri.log(), "it begins")

    cri.stop(container, 1)

    assert cri.status(container).state == EXITED  # one may have ended by itself, for want of processes
    cgroups = list(Path("/sys/fs/cgroup").glob(f"*{cri.cgroup}/{container}/cgroup.procs"))
    wait_until(lambda: not any(path.exists() and path.read_text() for path in cgroups), "all processes have ended")
    cri.remove_pod(pod.annotations["id"])


# -- F47


def left(processes: bytes) -> bool:
    return b"sleep 3" in processes or b"[sh]" in processes or b"echo" in processes


@pytest.mark.parametrize("count", [80, pytest.param(5000, marks=[pytest.mark.full, pytest.mark.timeout(1800)])])
def test_very_many_probes_leave_nothing(cri: CriClient, count: int) -> None:
    """Some fail, some take too long, some leave a child behind that holds their output."""
    container = cri.run(cri.run_pod(), "sh", "-c", "while :; do sleep 0.2; done")  # which reaps what is left to it
    shim = int(json.loads((cri.daemon.state / "tasks/k8s.io" / container / "shim.json").read_text())["pid"])
    commands = ["true", "exit 3", "echo said", "sleep 3 & echo said"]

    def probe(number: int) -> None:
        command = commands[number % len(commands)]
        answer = cri.exec(container, "sh", "-c", command)
        assert answer.exit_code == (3 if command == "exit 3" else 0)
        assert answer.stdout == (b"said\n" if "said" in command else b"")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(probe, range(24)))
        before = [descriptors(pid) for pid in (cri.daemon.pid, shim)]
        list(pool.map(probe, range(count)))

    wait_until(
        lambda: all(descriptors(pid) <= most + 4 for pid, most in zip((cri.daemon.pid, shim), before, strict=True)),
        "descriptors are closed",
    )
    wait_until(lambda: not left(cri.exec(container, "ps").stdout), "no process is left, dead or alive")
    bundle = cri.daemon.state / "tasks/k8s.io" / container
    wait_until(lambda: not list(bundle.glob("exits/exec-*")), "no record is left")
