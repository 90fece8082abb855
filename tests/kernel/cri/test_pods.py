"""Pods over the CRI, with real containers: what they share, how they end, and what of them survives the daemon."""

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from pyctr_wire.cri import image_pb2, runtime_pb2
from support.cri_client import NODE, POD, TARGET, CriClient, refused
from support.daemon_process import DEADLINE, wait_until
from support.images import image

pytestmark = pytest.mark.root

RUNNING, EXITED = runtime_pb2.CONTAINER_RUNNING, runtime_pb2.CONTAINER_EXITED
SLEEP = ("sleep", "1000")
LOOP = ("sh", "-c", "trap 'echo bye; exit 3' TERM; while :; do sleep 0.05; done")


def test_a_container_runs_says_what_it_says_and_ends(cri: CriClient) -> None:
    pod = cri.run_pod()
    container = cri.run(pod, "sh", "-c", "echo hello; echo trouble >&2; exit 7")

    status = cri.ended(container)

    assert (status.exit_code, status.reason, status.state) == (7, "Error", EXITED)
    assert 0 < status.created_at <= status.started_at <= status.finished_at
    said = sorted(line.split(" ", 1)[1] for line in cri.log().splitlines())  # of two pipes, either may be first
    assert said == ["stderr F trouble", "stdout F hello"]


def test_the_containers_of_a_pod_share_what_a_pod_shares(cri: CriClient) -> None:
    pod = cri.run_pod(ipc=POD, network=NODE)
    one, other = cri.run(pod, *SLEEP, name="one"), cri.run(pod, *SLEEP, name="other")

    def link(container: str, kind: str) -> str:
        return cri.exec(container, "readlink", f"/proc/self/ns/{kind}").stdout.decode()

    cri.exec(one, "sh", "-c", "echo shared > /dev/shm/it")
    assert cri.exec(other, "cat", "/dev/shm/it").stdout == b"shared\n"
    assert link(one, "ipc") == link(other, "ipc") != os.readlink("/proc/self/ns/ipc") + "\n"
    assert link(one, "net") == link(other, "net") == os.readlink("/proc/self/ns/net") + "\n"
    assert link(one, "pid") != link(other, "pid")
    assert cri.exec(one, "cat", "/etc/hostname").stdout == b"host-pod\n"


def test_a_pod_may_share_its_processes(cri: CriClient) -> None:
    pod = cri.run_pod(pid=POD)
    config = cri.container_config("one", *SLEEP)
    config.linux.security_context.namespace_options.pid = POD
    other = cri.container_config("other", "sh", "-c", "sleep 2000 & sleep 1000")
    other.linux.security_context.namespace_options.pid = POD
    one, another = cri.create(pod, config), cri.create(pod, other)
    cri.start(one)
    cri.start(another)

    listed = cri.exec(one, "ps").stdout.decode()

    first = next(line for line in listed.splitlines() if line.split()[0] == "1")
    assert first.split()[1] == "65534"
    assert "pyctr-pause" in first
    assert "sleep 2000" in listed
    # It is nobody in a world of its own: there is nothing to take over.
    root = cri.exec(one, "sh", "-c", "ls /proc/1/root; cat /proc/1/environ; grep Cap /proc/1/status").stdout.decode()
    assert "etc" not in root
    assert "CapPrm:\t0000000000000000" in root
    cri.stop(another)
    wait_until(lambda: "sleep 2000" not in cri.exec(one, "ps").stdout.decode(), "the other's processes end with it")
    assert cri.status(one).state == RUNNING


def test_a_container_may_join_the_processes_of_another(cri: CriClient) -> None:
    pod = cri.run_pod()
    target = cri.run(pod, *SLEEP, name="target")
    config = cri.container_config("debugger", *SLEEP)
    options = config.linux.security_context.namespace_options
    options.pid, options.target_id = TARGET, target

    debugger = cri.create(pod, config)
    cri.start(debugger)

    assert b"sleep 1000" in cri.exec(debugger, "cat", "/proc/1/cmdline").stdout.replace(b"\0", b" ")
    elsewhere = cri.run_pod("elsewhere")
    code, text = refused(cri.create, elsewhere, config)
    assert (code, "does not belong to sandbox" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)


def test_stopping_signals_once_and_then_kills(cri: CriClient) -> None:
    pod = cri.run_pod()
    polite, deaf = cri.run(pod, *LOOP, name="polite"), cri.run(pod, "sh", "-c", "trap '' TERM; sleep 1000", name="deaf")

    cri.stop(polite, 30)
    cri.stop(deaf, 1)

    assert (cri.status(polite).exit_code, cri.status(polite).reason) == (3, "Error")
    assert cri.status(deaf).exit_code == 137
    assert "bye" in cri.log("polite")
    cri.stop(polite, 30)  # again, and of what is not there
    cri.stop("no-such-container", 1)
    cri.remove("no-such-container")
    cri.stop_pod("no-such-pod")
    cri.remove_pod("no-such-pod")


def test_what_runs_and_what_ends_while_the_daemon_is_dead_is_known_afterwards(cri: CriClient) -> None:
    pod = cri.run_pod(ipc=POD, pid=POD)
    lasting = cri.run(pod, "sh", "-c", "while :; do echo tick; sleep 0.05; done", name="lasting")
    ending = cri.run(pod, "sh", "-c", "while [ ! -e /dev/shm/go ]; do sleep 0.02; done; exit 9", name="ending")
    made = cri.create(pod, cri.container_config("made", *SLEEP))
    cri.daemon.kill()
    ticks = cri.log("lasting").count("tick")
    shm = next(cri.daemon.state.glob("pods/*/shm"))
    (shm / "go").touch()
    wait_until(lambda: cri.log("lasting").count("tick") > ticks + 3, "it goes on without a daemon")

    cri.daemon.start()

    assert cri.status(lasting).state == RUNNING
    ended = cri.ended(ending)
    assert (ended.exit_code, ended.reason) == (9, "Error")
    cri.start(made)
    assert cri.exec(made, "echo", "made before").stdout == b"made before\n"
    assert cri.exec(lasting, "cat", "/etc/hostname").stdout == b"host-pod\n"


@pytest.mark.timeout(180)
def test_how_containers_ended_is_known_wherever_the_daemon_died_meanwhile(cri: CriClient) -> None:
    """Killed when the first of their tasks is deleted, which was the only one to know."""
    pod = cri.run_pod(ipc=POD)
    script = "while [ ! -e /dev/shm/go ]; do sleep 0.02; done; exit 9"
    containers = [cri.run(pod, "sh", "-c", script, name=f"ending-{number}") for number in range(5)]
    bundles = [cri.daemon.state / "tasks" / "k8s.io" / one for one in containers]
    (cri.daemon.state / "pods" / pod.annotations["id"] / "shm" / "go").touch()
    deadline = time.monotonic() + DEADLINE
    while all(bundle.exists() for bundle in bundles):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    cri.daemon.kill()
    cri.daemon.start()
    assert [cri.ended(one).exit_code for one in containers] == [9] * len(containers)


def test_a_call_that_is_made_often_at_once_makes_one(cri: CriClient) -> None:
    """Who comes while it is being made gets it too; who comes after that is told who has the name."""

    def made(call: Callable[[], str]) -> str:
        try:
            return call()
        except grpc.RpcError as error:
            return str(error.details()).partition('is reserved for "')[2].partition('"')[0]

    with ThreadPoolExecutor(8) as callers:
        config = cri.pod_config("often")
        request = runtime_pb2.RunPodSandboxRequest(config=config)
        pods = callers.map(lambda _: made(lambda: cri.runtime.RunPodSandbox(request).pod_sandbox_id), range(8))
        assert set(pods) == {pod.id for pod in cri.pods()}
        assert len(cri.pods()) == 1
        config.annotations["id"] = cri.pods()[0].id
        container = cri.container_config("main", *SLEEP)
        containers = callers.map(lambda _: made(lambda: cri.create(config, container)), range(8))
        assert set(containers) == {one.id for one in cri.containers()}
        assert len(cri.containers()) == 1
        list(callers.map(lambda _: cri.stop_pod(config.annotations["id"]), range(4)))
        list(callers.map(lambda _: cri.remove_pod(config.annotations["id"]), range(4)))
    assert refused(cri.create, config, container)[0] is grpc.StatusCode.NOT_FOUND


def test_names_are_taken_until_they_are_free(cri: CriClient) -> None:
    pod = cri.run_pod("taken")
    config = cri.pod_config("taken")
    config.labels["and"] = "different"
    code, text = refused(cri.runtime.RunPodSandbox, runtime_pb2.RunPodSandboxRequest(config=config))
    assert (code, "is reserved for" in text) == (grpc.StatusCode.ALREADY_EXISTS, True)
    container = cri.create(pod, cri.container_config("main", *SLEEP))
    code, text = refused(cri.create, pod, cri.container_config("main", "true"))
    assert (code, container in text) == (grpc.StatusCode.ALREADY_EXISTS, True)
    cri.remove(container)
    cri.create(pod, cri.container_config("main", "true"))


def test_other_clients_find_containers_by_the_request_s_labels(cri: CriClient) -> None:
    """But not by those that would have the daemon do something."""
    pod, config = cri.run_pod(), cri.container_config("main", *SLEEP)
    config.labels.update(
        {"io.kubernetes.pod.name": "web", "containerd.io/restart.status": "running", "long": "x" * 4096}
    )
    container = cri.create(pod, config)
    found = cri.daemon.ctr("containers", "ls", "-q", 'labels."io.kubernetes.pod.name"==web', namespace="k8s.io")
    assert found.split() == [container]
    labels = json.loads(cri.daemon.ctr("containers", "info", container, namespace="k8s.io"))["Labels"]
    assert labels == {
        "container": "main", "io.kubernetes.pod.name": "web", "io.cri-containerd.kind": "container",
    }  # fmt: skip
    assert cri.status(container).labels["long"] == "x" * 4096


def test_lists_say_what_was_asked_for(cri: CriClient) -> None:
    one, other = cri.run_pod("one"), cri.run_pod("other")
    running, made = cri.run(one, *SLEEP, name="running"), cri.create(other, cri.container_config("made", *SLEEP))

    def listed(**wanted: object) -> set[str]:
        request = runtime_pb2.ListContainersRequest(filter=runtime_pb2.ContainerFilter(**wanted))  # type: ignore[arg-type]
        return {item.id for item in cri.runtime.ListContainers(request).containers}

    assert listed() == {running, made}
    assert listed(id=running[:13]) == {running}
    assert listed(pod_sandbox_id=other.annotations["id"]) == {made}
    assert listed(label_selector={"container": "made"}) == {made}
    assert listed(state=runtime_pb2.ContainerStateValue(state=RUNNING)) == {running}
    assert listed(id="nothing") == set()
    streamed = cri.runtime.StreamContainers(runtime_pb2.StreamContainersRequest())
    assert {item.id for message in streamed for item in message.containers} == {running, made}
    assert cri.status(running[:13]).id == running
    assert refused(cri.status, "")[0] is grpc.StatusCode.NOT_FOUND


def test_a_start_that_fails_is_told_by_call_and_status(cri: CriClient) -> None:
    pod = cri.run_pod()
    container = cri.create(pod, cri.container_config("main", "no-such-program"))

    code, text = refused(cri.start, container)

    assert (code, "no-such-program" in text) == (grpc.StatusCode.UNKNOWN, True)
    status = cri.status(container)
    assert (status.state, status.exit_code, status.reason) == (EXITED, 128, "StartError")
    assert "no-such-program" in status.message
    code, text = refused(cri.start, container)
    assert (code, text) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "container is in CONTAINER_EXITED state: failed precondition",
    )


def test_exec_gives_output_status_and_time_limit(cri: CriClient) -> None:
    pod = cri.run_pod()
    container = cri.run(pod, *SLEEP)

    answer = cri.exec(container, "sh", "-c", "echo out; echo err >&2; exit 4")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 4)
    code, text = refused(lambda: cri.exec(container, "sleep", "1000", seconds=1))
    assert (code, "timeout 1s exceeded" in text) == (grpc.StatusCode.DEADLINE_EXCEEDED, True)
    code, _ = refused(lambda: cri.exec(container, "sh", "-c", "sleep 1001 & sleep 1002", seconds=1))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "sleep 100" not in cri.exec(container, "ps").stdout.decode().replace("sleep 1000", ""), "all of its group"
    flood = cri.exec(container, "sh", "-c", "yes | head -c 20000000")
    assert len(flood.stdout) == (16 << 20) - 4096
    assert refused(lambda: cri.exec(container, "no-such-program"))[0] is grpc.StatusCode.UNKNOWN
    assert refused(lambda: cri.exec(container))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert "sleep 1000" not in cri.exec(container, "ps").stdout.decode().replace("sleep 1000", "", 1)
    cri.stop(container)
    code, text = refused(lambda: cri.exec(container, "true"))
    assert (code, "CONTAINER_EXITED" in text) == (grpc.StatusCode.FAILED_PRECONDITION, True)


def test_a_log_that_was_renamed_is_opened_anew(cri: CriClient) -> None:
    pod = cri.run_pod()
    container = cri.run(pod, "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done")
    wait_until(lambda: cri.log().count("\n") > 5, "it writes")
    path = cri.logs / "main.log"
    path.rename(cri.logs / "main.log.1")

    cri.runtime.ReopenContainerLog(runtime_pb2.ReopenContainerLogRequest(container_id=container))

    assert path.exists()
    wait_until(lambda: path.read_text().count("\n") > 5, "it writes to a new file")
    cri.stop(container)
    lines = ((cri.logs / "main.log.1").read_text() + cri.log()).splitlines()
    assert [int(line.split()[-1]) for line in lines] == list(range(1, len(lines) + 1))


def test_limits_hold_and_change(cri: CriClient) -> None:
    pod = cri.run_pod()
    config = cri.container_config("main", *SLEEP)
    config.linux.resources.memory_limit_in_bytes = 64 << 20
    container = cri.create(pod, config)
    cri.start(container)

    def limit() -> str:
        return cri.exec(container, "cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes").stdout.decode().strip()

    if not Path("/sys/fs/cgroup/memory").exists():
        pytest.skip("cgroup v1 is not here")
    assert limit() == str(64 << 20)
    new = image_pb2.LinuxContainerResources(memory_limit_in_bytes=32 << 20)
    cri.runtime.UpdateContainerResources(runtime_pb2.UpdateContainerResourcesRequest(container_id=container, linux=new))
    assert limit() == str(32 << 20)
    assert cri.status(container).resources.linux.memory_limit_in_bytes == 32 << 20
    eaten = cri.container_config("eaten", "sh", "-c", "tail /dev/zero")
    eaten.linux.resources.memory_limit_in_bytes = 16 << 20
    eater = cri.create(pod, eaten)
    cri.start(eater)
    ended = cri.ended(eater)
    assert (ended.exit_code, ended.reason) == (137, "OOMKilled")


def test_the_security_context_is_what_the_process_gets(cri: CriClient) -> None:
    pod = cri.run_pod()
    config = cri.container_config("main", *SLEEP)
    security = config.linux.security_context
    security.run_as_user.value, security.run_as_group.value = 1000, 2000
    security.supplemental_groups.extend([3000])
    security.no_new_privs = security.readonly_rootfs = True
    security.capabilities.drop_capabilities.append("ALL")
    security.capabilities.add_capabilities.append("NET_BIND_SERVICE")
    security.masked_paths.append("/proc/kcore")
    container = cri.create(pod, config)
    cri.start(container)

    status = cri.exec(container, "cat", "/proc/self/status").stdout.decode()
    assert "Uid:\t1000\t" in status
    assert "Gid:\t2000\t" in status
    assert "Groups:\t2000 3000" in status
    assert "CapBnd:\t0000000000000400" in status
    assert "NoNewPrivs:\t1" in status
    assert cri.exec(container, "touch", "/file").exit_code != 0
    user = cri.status(container).user.linux
    assert (user.uid, user.gid, list(user.supplemental_groups)) == (1000, 2000, [2000, 3000])
    alone = cri.container_config("alone", *SLEEP)
    alone.linux.security_context.run_as_group.value = 5
    code, text = refused(cri.create, pod, alone)
    assert (code, "specified without user" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    privileged = cri.container_config("privileged", *SLEEP)
    privileged.linux.security_context.privileged = True
    assert "no privileged container allowed" in refused(cri.create, pod, privileged)[1]


def test_mounts_are_what_was_asked_for(cri: CriClient) -> None:
    pod = cri.run_pod()
    config = cri.container_config("main", *SLEEP)
    here = cri.daemon.base / "mounted"
    config.mounts.add(container_path="/data", host_path=str(here))
    config.mounts.add(container_path="/data/ro", host_path=str(here / "ro"), readonly=True)
    container = cri.create(pod, config)
    cri.start(container)

    assert cri.exec(container, "touch", "/data/file").exit_code == 0
    assert cri.exec(container, "touch", "/data/ro/file").exit_code != 0
    assert (here / "file").exists()
    shared = cri.container_config("shared", *SLEEP)
    shared.mounts.add(container_path="/data", host_path=str(here), propagation=runtime_pb2.PROPAGATION_BIDIRECTIONAL)
    code, text = refused(cri.create, pod, shared)
    assert (code, "not a shared mount" in text) == (grpc.StatusCode.UNKNOWN, True)


def test_checkpoints_are_refused_with_what_allows_them(cri: CriClient) -> None:
    request = runtime_pb2.CheckpointContainerRequest(container_id="any", location="/tmp/any.tar")
    code, text = refused(cri.runtime.CheckpointContainer, request)
    assert (code, "enabled = true in [checkpoint]" in text) == (grpc.StatusCode.UNIMPLEMENTED, True)
    pod = cri.run_pod()
    config = cri.container_config("main", *SLEEP)
    config.image.image = "/tmp/any.tar"
    code, text = refused(cri.create, pod, config)
    assert (code, "enabled = true in [checkpoint]" in text) == (grpc.StatusCode.UNIMPLEMENTED, True)


def test_a_profile_that_is_not_there_is_told_by_name(cri: CriClient) -> None:
    pod = cri.run_pod()
    profile = cri.container_config("profile", *SLEEP)
    profile.linux.security_context.apparmor_profile = "localhost/no-such-profile"

    code, text = refused(cri.create, pod, profile)
    assert (code, "no-such-profile" in text) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    profile.linux.security_context.apparmor_profile = "no-such-kind"
    assert refused(cri.create, pod, profile)[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert cri.containers() == []


def test_volumes_of_an_image_begin_as_the_image_has_them(cri: CriClient) -> None:
    program = Path("/bin/busybox").read_bytes()
    files = {"bin/busybox": program, "bin/sh": program, "data/file": b"from the image\n"}
    built = image(files, config={"Volumes": {"/data": {}, "/empty": {}, "/mounted": {}, "/../../etc": {}}})
    cri.bring("docker.io/library/volumes:latest", built)
    pod = cri.run_pod()
    config = cri.container_config("main", "/bin/busybox", "sleep", "1000")
    config.image.image = "volumes"
    config.mounts.add(container_path="/mounted", host_path=str(cri.daemon.base / "mine"))
    container = cri.create(pod, config)
    cri.start(container)

    assert cri.exec(container, "/bin/busybox", "cat", "/data/file").stdout == b"from the image\n"
    mounts = cri.exec(container, "/bin/busybox", "cat", "/proc/self/mountinfo").stdout.decode().splitlines()
    places = {line.split()[4] for line in mounts}
    assert {"/data", "/empty", "/mounted", "/etc"} <= places
    assert cri.exec(container, "/bin/busybox", "touch", "/data/new").exit_code == 0
    assert not Path("/etc/new").exists()
    assert len(list((cri.daemon.root / "volumes/k8s.io" / container).iterdir())) == 3
    cri.remove(container)
    wait_until(lambda: not list(cri.daemon.root.glob("volumes/k8s.io/*")), "its volumes go with it")


def test_events_tell_what_happened_in_its_order(cri: CriClient) -> None:
    kinds = runtime_pb2.ContainerEventType
    stream = cri.runtime.GetContainerEvents(runtime_pb2.GetEventsRequest(), timeout=60)
    pod = cri.run_pod("told")
    container = cri.run(pod, "true")
    cri.ended(container)
    cri.remove(container)
    cri.remove_pod(pod.annotations["id"])

    heard: list[tuple[str, str]] = []
    names = {pod.annotations["id"]: "pod", container: "container"}
    for event in stream:
        if event.container_id in names:
            heard.append((names[event.container_id], kinds.Name(event.container_event_type)))
        if heard[-1:] == [("pod", "CONTAINER_DELETED_EVENT")]:
            break
    stream.cancel()
    made, started, stopped, deleted = (
        f"CONTAINER_{what}_EVENT" for what in ("CREATED", "STARTED", "STOPPED", "DELETED")
    )
    assert [kind for who, kind in heard if who == "container"] == [made, started, stopped, deleted]
    assert [kind for who, kind in heard if who == "pod"] == [made, started, stopped, deleted]


def test_a_pod_s_youngest_container_is_told_first(cri: CriClient) -> None:
    """A kubelet that hears of events takes the first of one name for its present one."""
    pod = cri.run_pod()
    stream = cri.runtime.GetContainerEvents(runtime_pb2.GetEventsRequest(), timeout=DEADLINE)
    for attempt in range(3):
        config = cri.container_config("main", "true")
        config.metadata.attempt = attempt
        youngest = cri.create(pod, config)

    status = cri.runtime.PodSandboxStatus(runtime_pb2.PodSandboxStatusRequest(pod_sandbox_id=pod.annotations["id"]))
    event = next(event for event in stream if event.container_id == youngest)

    stream.cancel()
    for statuses in (status.containers_statuses, event.containers_statuses):
        assert [one.metadata.attempt for one in statuses] == [2, 1, 0]


def test_sysctls_belong_to_the_pod_or_are_refused(cri: CriClient) -> None:
    config = cri.pod_config("sysctls", ipc=POD)
    config.linux.sysctls["kernel.shm_rmid_forced"] = "1"
    request = runtime_pb2.RunPodSandboxRequest(config=config)
    config.annotations["id"] = cri.runtime.RunPodSandbox(request).pod_sandbox_id
    container = cri.run(config, *SLEEP)
    assert cri.exec(container, "cat", "/proc/sys/kernel/shm_rmid_forced").stdout == b"1\n"
    for name in ("net.core.somaxconn", "kernel.core_pattern", "kernel.shm+x", "../../etc/passwd"):
        bad = cri.pod_config("bad", ipc=POD)
        bad.linux.sysctls[name] = "1"
        code, text = refused(cri.runtime.RunPodSandbox, runtime_pb2.RunPodSandboxRequest(config=bad))
        assert code is grpc.StatusCode.INVALID_ARGUMENT, text
        assert Path("/proc/sys/kernel/shm_rmid_forced").read_text() == "0\n"
    assert [pod.id for pod in cri.pods()] == [config.annotations["id"]]


def descriptors(pid: int) -> int:
    """Return how many a process has, but for the database's: each thread has a connection to that."""
    count = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            count += "metadata.db" not in os.readlink(f"/proc/{pid}/fd/{name}")
    return count


def test_many_pods_come_and_go_and_nothing_grows(cri: CriClient) -> None:
    def life(number: int) -> None:
        pod = cri.run_pod(f"many-{number}", ipc=POD, pid=POD)
        container = cri.run(pod, "true", name=f"main-{number}")
        cri.ended(container)
        cri.remove_pod(pod.annotations["id"])

    with ThreadPoolExecutor(4) as kubelets:
        list(kubelets.map(life, range(8)))
        before = descriptors(cri.daemon.pid)
        list(kubelets.map(life, range(8, 24)))

    wait_until(lambda: descriptors(cri.daemon.pid) <= before + 4, "descriptors are closed")
    assert cri.left() == []


def test_figures_are_those_of_the_kernel(cri: CriClient) -> None:
    pod = cri.run_pod()
    container = cri.run(pod, "sh", "-c", "echo written > /file; while :; do :; done")
    made = cri.create(pod, cri.container_config("made", *SLEEP))

    def stats() -> runtime_pb2.ContainerStats:
        request = runtime_pb2.ContainerStatsRequest(container_id=container)
        return cri.runtime.ContainerStats(request).stats

    wait_until(lambda: stats().cpu.usage_nano_cores.value > 10_000_000, "a busy loop takes processor time")
    first = stats()
    assert first.memory.working_set_bytes.value > 0
    assert first.attributes.id == container
    assert first.cpu.usage_core_nano_seconds.value > 0
    every = cri.runtime.ListContainerStats(runtime_pb2.ListContainerStatsRequest()).stats
    assert {one.attributes.id: one.HasField("cpu") for one in every} == {container: True, made: False}
    assert next(one for one in every if one.attributes.id == container).writable_layer.inodes_used.value > 1
    request = runtime_pb2.PodSandboxStatsRequest(pod_sandbox_id=pod.annotations["id"])
    of_pod = cri.runtime.PodSandboxStats(request).stats
    assert of_pod.linux.cpu.usage_core_nano_seconds.value >= first.cpu.usage_core_nano_seconds.value
    assert of_pod.linux.process.process_count.value >= 1
    assert [one.attributes.id for one in of_pod.linux.containers] == [container, made]
    cri.start(made)
    cri.stop(container)
    every = cri.runtime.ListContainerStats(runtime_pb2.ListContainerStatsRequest()).stats
    assert {one.attributes.id: one.HasField("cpu") for one in every} == {container: False, made: True}
    assert {one.id: one.state for one in cri.containers()} == {container: EXITED, made: RUNNING}
    code, _ = refused(cri.runtime.ContainerStats, runtime_pb2.ContainerStatsRequest(container_id=container))
    assert code is grpc.StatusCode.FAILED_PRECONDITION


def test_metrics_have_the_names_that_monitoring_knows(cri: CriClient) -> None:
    pod = cri.run_pod()
    container = cri.run(pod, "sh", "-c", "while :; do :; done")

    known = cri.runtime.ListMetricDescriptors(runtime_pb2.ListMetricDescriptorsRequest()).descriptors
    keys = {one.name: len(one.label_keys) for one in known}
    (of_pod,) = cri.runtime.ListPodSandboxMetrics(runtime_pb2.ListPodSandboxMetricsRequest()).pod_metrics
    (of_container,) = of_pod.container_metrics

    assert (of_pod.pod_sandbox_id, of_container.container_id) == (pod.annotations["id"], container)
    without = {one.name for one in of_container.metrics} ^ keys.keys()
    assert all("_network_" in name for name in without)  # this machine may have no interface
    assert all(len(one.label_values) == keys[one.name] for one in of_container.metrics)
    values = {one.name: one.value.value for one in of_container.metrics}
    assert values["container_processes"] == 1
    assert values["container_threads"] >= 1
    assert values["container_memory_usage_bytes"] > 0
    assert values["container_start_time_seconds"] > 1_600_000_000
    assert values["container_file_descriptors"] >= 3
