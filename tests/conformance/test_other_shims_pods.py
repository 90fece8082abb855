"""Pods whose RuntimeClass names containerd's own shims for runc, 1.6's and 2.3's, as a kubelet calls for them."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import grpc
import pytest

from pyctr_wire.cri import image_pb2, runtime_pb2
from support import peers
from support.cri_client import CONTAINER, NODE, POD, CriClient, refused
from support.critest import KNOWN_REASONS, Critest, critest_images
from support.daemon_process import DEADLINE, DaemonProcess, command_lines, wait_until
from support.pod_bridge import pod_bridge
from support.streaming_clients import ECHO, must_echo, streams

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.timeout(300)]

SHIM: Final = "containerd-shim-runc-v2"
DEBIANS: Final = Path("/usr/bin", SHIM)
HANDLER: Final = "other"
_NOT_SAID: Final = ("no runtime handler found which supports", "runtime does not implement recursive readonly mounts")
UNTIL_TERM: Final = 'trap "exit 5" TERM; while :; do sleep 0.1; done'


@pytest.fixture(scope="module", params=[pytest.param("1.6", marks=pytest.mark.full), "2.3"])
def program(request: pytest.FixtureRequest) -> Path:
    """The shim's program: Debian's, or the newer one."""
    if request.param != "1.6":
        return peers.find(SHIM, request.param)
    if not DEBIANS.exists():
        pytest.skip(f"{SHIM} is not installed (Debian: containerd)")
    return DEBIANS


@pytest.fixture(scope="module")
def daemon(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    handlers = f'[runtimes.{HANDLER}]\nshim = "{program}"\n[runtimes.gone]\nshim = "/nowhere/containerd-shim-gone-v1"\n'
    saving = "[checkpoint]\nenabled = true\n"
    with (
        pod_bridge(tmp_path_factory.mktemp("cni")) as network,
        DaemonProcess(config=f"{network}\n{handlers}{saving}") as daemon,
    ):
        yield daemon


@pytest.fixture
def cri(daemon: DaemonProcess) -> Iterator[CriClient]:
    """Asserts that nothing of the pods is left, no bundle either."""
    with CriClient(daemon, HANDLER) as client:
        yield client
    folder = daemon.state / "tasks" / "k8s.io"
    wait_until(lambda: not list(folder.glob("*")), lambda: f"bundles go, but {list(folder.glob('*'))}")
    assert others(daemon) == []


def others(daemon: DaemonProcess) -> list[str]:
    """Return the command lines of other shims of pods, and of the processes beside them."""
    return [
        " ".join(words)
        for words in command_lines()
        if str(daemon.base) in " ".join(words) and (words[1:3] == ["-namespace", "k8s.io"] or "streams" in words)
    ]


def pid_of(cri: CriClient, container: str) -> int:
    request = runtime_pb2.ContainerStatusRequest(container_id=container, verbose=True)
    return int(json.loads(cri.runtime.ContainerStatus(request, timeout=DEADLINE).info["info"])["pid"])


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def state_of(cri: CriClient, pod: str) -> int:
    request = runtime_pb2.PodSandboxStatusRequest(pod_sandbox_id=pod)
    return cri.runtime.PodSandboxStatus(request, timeout=DEADLINE).status.state


def texts(log: str) -> list[str]:
    """Return what the lines of a log say."""
    return [line.split(" ", 3)[3] for line in log.splitlines()]


@pytest.mark.parametrize("pid", [CONTAINER, POD, NODE])
def test_a_pod_s_life(cri: CriClient, program: Path, pid: "image_pb2.NamespaceMode") -> None:
    """All of its containers have one shim, which is that program; logs, commands, figures; nothing is left."""
    pod = cri.run_pod("web", pid=pid)
    ids = []
    for name in ("one", "two"):
        config = cri.container_config(name, "sh", "-c", f"echo I am {name}; echo trouble >&2; {UNTIL_TERM}")
        config.linux.security_context.namespace_options.pid = pid
        ids.append(cri.create(pod, config))
        cri.start(ids[-1])
    shims = {parent_of(pid_of(cri, id)) for id in ids}
    assert len(shims) == 1
    assert os.path.samefile(f"/proc/{shims.pop()}/exe", program)
    wait_until(lambda: sorted(texts(cri.log("two"))) == ["I am two", "trouble"], lambda: cri.log("two"))
    assert {line.split()[1:3] == ["stderr", "F"] for line in cri.log("two").splitlines()} == {True, False}

    done = cri.exec(ids[0], "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.stdout, done.stderr, done.exit_code) == (b"out\n", b"err\n", 3)
    request = runtime_pb2.ContainerStatsRequest(container_id=ids[0])
    stats = cri.runtime.ContainerStats(request, timeout=DEADLINE).stats
    assert stats.memory.usage_bytes.value > 0
    assert stats.cpu.usage_core_nano_seconds.value > 0
    assert {
        one.attributes.id for one in cri.runtime.ListContainerStats(runtime_pb2.ListContainerStatsRequest()).stats
    } == set(ids)

    cri.stop(ids[0], 10)
    assert cri.status(ids[0]).exit_code == 5
    cri.remove(ids[0])
    assert cri.status(ids[1]).state == runtime_pb2.CONTAINER_RUNNING
    cri.stop_pod(pod.annotations["id"])
    assert cri.status(ids[1]).exit_code == 137
    assert state_of(cri, pod.annotations["id"]) == runtime_pb2.SANDBOX_NOTREADY


def test_a_pod_with_a_network_of_its_own(cri: CriClient) -> None:
    """Its name, its address and its settings are those of the pod, in whatever container."""
    config = cri.pod_config("net", network=POD, ipc=POD)
    config.linux.sysctls["net.ipv4.ip_forward"] = "0"
    request = runtime_pb2.RunPodSandboxRequest(config=config, runtime_handler=HANDLER)
    config.annotations["id"] = cri.runtime.RunPodSandbox(request, timeout=DEADLINE).pod_sandbox_id
    ids = [cri.run(config, "sleep", "1000", name=name) for name in ("one", "two")]
    status = runtime_pb2.PodSandboxStatusRequest(pod_sandbox_id=config.annotations["id"])
    address = cri.runtime.PodSandboxStatus(status, timeout=DEADLINE).status.network.ip
    assert address.startswith("10.")
    for id in ids:
        assert cri.exec(id, "hostname").stdout == b"host-net\n"
        assert f"inet addr:{address} " in cri.exec(id, "ifconfig", "eth0").stdout.decode()
        assert cri.exec(id, "cat", "/proc/sys/net/ipv4/ip_forward").stdout == b"0\n"
    cri.exec(ids[0], "touch", "/dev/shm/shared")
    assert cri.exec(ids[1], "ls", "/dev/shm").stdout == b"shared\n"


def test_who_has_the_streams_is_there_again_with_the_daemon(cri: CriClient, daemon: DaemonProcess) -> None:
    """What is written while nobody has them waits, and is in the log then."""
    container = cri.run(
        cri.run_pod(), "sh", "-c", "echo before; while [ ! -e /go ]; do sleep 0.1; done; echo after; sleep 1000"
    )
    wait_until(lambda: texts(cri.log()) == ["before"], lambda: cri.log())
    bundle = daemon.state / "tasks" / "k8s.io" / container
    keeper = json.loads((bundle / "streams.json").read_text())["pid"]
    daemon.kill()
    os.kill(keeper, signal.SIGKILL)
    Path(f"/proc/{json.loads((bundle / 'bootstrap.json').read_text())['init']}/root/go").touch()
    daemon.start()
    wait_until(lambda: texts(cri.log()) == ["before", "after"], lambda: cri.log())
    assert cri.exec(container, "echo", "here").stdout == b"here\n"


def test_a_command_whose_daemon_is_gone_is_killed(cri: CriClient, daemon: DaemonProcess) -> None:
    """Nobody will ever have its output."""
    container = cri.run(cri.run_pod(), "sleep", "1000")
    request = runtime_pb2.ExecSyncRequest(container_id=container, cmd=["sleep", "998"])
    call = cri.runtime.ExecSync.future(request)
    wait_until(lambda: b"sleep 998" in cri.exec(container, "ps", "-o", "args").stdout, "it runs")
    daemon.kill()
    assert call.exception() is not None
    daemon.start()
    wait_until(lambda: b"sleep 998" not in cri.exec(container, "ps", "-o", "args").stdout, "it is killed")


def test_it_is_not_saved(cri: CriClient, tmp_path: Path) -> None:
    container = cri.run(cri.run_pod(), "sleep", "1000")
    request = runtime_pb2.CheckpointContainerRequest(container_id=container, location=str(tmp_path / "saved.tar"))
    code, text = refused(lambda: cri.runtime.CheckpointContainer(request, timeout=DEADLINE))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert f'its runtime handler "{HANDLER}" is a shim of another make' in text


def test_it_outlives_the_daemon_and_its_log_needs_none(cri: CriClient, daemon: DaemonProcess) -> None:
    """More than a pipe has room for is written while there is no daemon; one that ends then has its own status."""
    pod = cri.run_pod()
    stays = cri.run(pod, "sh", "-c", UNTIL_TERM, name="stays")
    script = "while [ ! -e /go ]; do sleep 0.1; done; seq 1 60000; exit 6"
    talks = cri.run(pod, "sh", "-c", script, name="talks")
    pid = pid_of(cri, talks)
    daemon.kill()
    Path(f"/proc/{pid}/root/go").touch()
    wait_until(lambda: not is_alive(pid), "it has said everything while there was no daemon")
    daemon.start()
    assert cri.ended(talks).exit_code == 6
    assert texts(cri.log("talks")) == [str(number) for number in range(1, 60001)]
    assert cri.status(stays).state == runtime_pb2.CONTAINER_RUNNING
    assert state_of(cri, pod.annotations["id"]) == runtime_pb2.SANDBOX_READY
    assert cri.exec(stays, "echo", "again").stdout == b"again\n"
    cri.stop(stays, 10)
    assert cri.status(stays).exit_code == 5


def test_a_log_that_is_renamed_loses_no_line(cri: CriClient) -> None:
    pod = cri.run_pod()
    container = cri.run(
        pod, "sh", "-c", "i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done; echo end; sleep 1000"
    )
    (cri.logs / "main.log").rename(cri.logs / "old.log")
    cri.runtime.ReopenContainerLog(runtime_pb2.ReopenContainerLogRequest(container_id=container), timeout=DEADLINE)
    wait_until(lambda: "end" in (cri.logs / "old.log").read_text() + cri.log(), "all is said")
    assert texts((cri.logs / "old.log").read_text() + cri.log()) == [*map(str, range(2000)), "end"]


async def test_a_command_s_streams_and_a_terminal(cri: CriClient) -> None:
    container = cri.run(cri.run_pod(), "sleep", "1000")
    wanted = runtime_pb2.ExecRequest(container_id=container, cmd=ECHO, stdin=True, stdout=True, stderr=True)
    await must_echo(cri.runtime.Exec(wanted).url)
    wanted = runtime_pb2.ExecRequest(container_id=container, cmd=["sh"], stdin=True, stdout=True, tty=True)
    async with streams(cri.runtime.Exec(wanted).url, "stdin", "stdout", "resize") as (_, stdin, stdout, resize):
        await resize.write(b'{"Width":123,"Height":45}')
        await stdin.write(b"while [ \"$(stty size)\" != '45 123' ]; do sleep 0.1; done; echo si'z'ed\n")
        await stdout.read_until(b"sized")


async def test_attached_clients_send_and_hear(cri: CriClient) -> None:
    pod = cri.run_pod()
    config = cri.container_config("main", "sh", "-c", "while read line; do echo heard $line; done; exit 9")
    config.stdin = config.stdin_once = True
    container = cri.create(pod, config)
    cri.start(container)
    wanted = runtime_pb2.AttachRequest(container_id=container, stdin=True, stdout=True)
    async with streams(cri.runtime.Attach(wanted).url, "stdin", "stdout") as (_, stdin, stdout):
        await stdin.write(b"this\n")
        await stdout.read_until(b"heard this\n")
        await stdin.close()
        await stdout.read_all()
    assert cri.ended(container).exit_code == 9
    assert texts(cri.log()) == ["heard this"]


def test_a_command_that_takes_too_long_is_killed(cri: CriClient) -> None:
    container = cri.run(cri.run_pod(), "sleep", "1000")
    request = runtime_pb2.ExecSyncRequest(container_id=container, cmd=["sleep", "999"], timeout=1)
    code, text = refused(lambda: cri.runtime.ExecSync(request, timeout=DEADLINE))
    assert (code, "timeout 1s exceeded" in text) == (grpc.StatusCode.DEADLINE_EXCEEDED, True)
    assert b"sleep 999" not in cri.exec(container, "ps", "-o", "args").stdout


def test_what_has_eaten_all_memory_was_oom_killed(cri: CriClient) -> None:
    config = cri.container_config("main", "sh", "-c", "x=a; while :; do x=$x$x; done")
    config.linux.resources.memory_limit_in_bytes = config.linux.resources.memory_swap_limit_in_bytes = 16 << 20
    container = cri.create(cri.run_pod(), config)
    cri.start(container)
    ended = cri.ended(container)
    assert (ended.reason, ended.exit_code) == ("OOMKilled", 137)


def test_a_pod_ends_with_its_shim(cri: CriClient) -> None:
    """Its containers have ended, nobody knows how; the pod is not ready, so that a kubelet makes another."""
    pod = cri.run_pod()
    container = cri.run(pod, "sleep", "1000")
    pid = pid_of(cri, container)
    os.kill(parent_of(pid), signal.SIGKILL)
    ended = cri.ended(container)
    assert (ended.exit_code, ended.reason) == (255, "Unknown")
    wait_until(lambda: not is_alive(pid), "it ends")
    wait_until(lambda: state_of(cri, pod.annotations["id"]) == runtime_pb2.SANDBOX_NOTREADY, "the pod is not ready")


def test_a_pod_whose_shim_ends_without_a_daemon_is_not_ready(cri: CriClient, daemon: DaemonProcess) -> None:
    pod = cri.run_pod()
    container = cri.run(pod, "sleep", "1000")
    shim = parent_of(pid_of(cri, container))
    daemon.kill()
    os.kill(shim, signal.SIGKILL)
    daemon.start()
    wait_until(lambda: state_of(cri, pod.annotations["id"]) == runtime_pb2.SANDBOX_NOTREADY, "the pod is not ready")
    assert cri.ended(container).exit_code == 255


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_every_spec_of_critest(program: Path, tmp_path: Path) -> None:
    """Debian's shim is too old to say what it can, so critest asks it for less.

    The root of a pod with a user namespace, who is nobody here, has to reach its bundles.
    """
    for name in ("images", "cni"):
        (tmp_path / name).mkdir()
    with (
        critest_images(tmp_path / "images") as registry,
        pod_bridge(tmp_path / "cni") as network,
        DaemonProcess(config=f'{registry}{network}\n[runtimes.{HANDLER}]\nshim = "{program}"\n') as daemon,
    ):
        daemon.base.chmod(0o711)
        if program != DEBIANS:
            daemon.stop()
            daemon.environment["PATH"] = f"{peers.find('runc', '1.5').parent}:{os.environ['PATH']}"
            daemon.start()
        report = Critest(daemon).run("-runtime-handler", HANDLER)
    assert not report.failed, report.failures()
    reasons = (*KNOWN_REASONS, *(_NOT_SAID if program == DEBIANS else ()))
    assert all(reason.startswith(reasons) for reason in report.skipped.values()), report.skipped
    assert len(report.passed) >= (94 if program == DEBIANS else 106), report.skipped


def test_what_it_can_do_is_asked_of_it(cri: CriClient, program: Path) -> None:
    """Shims since containerd 2.0 say it; an older one cannot be asked, and promises nothing."""
    status = cri.runtime.Status(runtime_pb2.StatusRequest(), timeout=DEADLINE)
    found = {one.name: one.features for one in status.runtime_handlers}
    assert set(found) == {"", "runc", HANDLER, "gone"}
    says = program != DEBIANS
    assert found[HANDLER].recursive_read_only_mounts is says
    assert not found["gone"].recursive_read_only_mounts


def test_a_program_that_is_not_there_is_named(cri: CriClient) -> None:
    request = runtime_pb2.RunPodSandboxRequest(config=cri.pod_config("none"), runtime_handler="gone")
    code, text = refused(lambda: cri.runtime.RunPodSandbox(request, timeout=DEADLINE))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert 'runtime "gone": /nowhere/containerd-shim-gone-v1 is no program that could be executed' in text


def test_what_cannot_be_executed_is_told(cri: CriClient) -> None:
    pod = cri.run_pod()
    container = cri.create(pod, cri.container_config("main", "/nowhere"))
    code, text = refused(lambda: cri.start(container))
    assert code is grpc.StatusCode.UNKNOWN or code is grpc.StatusCode.NOT_FOUND
    assert "/nowhere" in text
    assert cri.status(container).reason == "StartError"


def test_limits_change_while_it_runs(cri: CriClient) -> None:
    container = cri.run(cri.run_pod(), "sleep", "1000")
    limits = image_pb2.LinuxContainerResources(memory_limit_in_bytes=64 << 20, cpu_shares=512)
    request = runtime_pb2.UpdateContainerResourcesRequest(container_id=container, linux=limits)
    cri.runtime.UpdateContainerResources(request, timeout=DEADLINE)
    request_stats = runtime_pb2.ContainerStatsRequest(container_id=container)
    stats = cri.runtime.ContainerStats(request_stats, timeout=DEADLINE).stats
    assert 0 < stats.memory.available_bytes.value <= 64 << 20
