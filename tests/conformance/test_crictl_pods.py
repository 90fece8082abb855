"""crictl 1.36, unmodified: a pod from its network to its end, as a person at a node would look after it."""

import json
import os
import signal
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.cri_client import IMAGE, CriClient
from support.crictl import Crictl
from support.daemon_process import DEADLINE, DaemonProcess, wait_until
from support.pod_bridge import pod_bridge
from support.terminal_session import TerminalSession

pytestmark = [pytest.mark.root, pytest.mark.peer]


class PodsCrictl(Crictl):
    """crictl, with a daemon that has a network for pods."""

    def __init__(self, daemon: DaemonProcess, client: CriClient) -> None:
        super().__init__(daemon)
        self.client = client

    def ended(self, *arguments: str, stdin: str = "", status: int = 0) -> str:
        """Run it and return what it prints; `status` is how it must end."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == status, (arguments, done.stdout, done.stderr)
        return done.stdout.strip() if status == 0 else done.stdout + done.stderr

    @contextmanager
    def beside(self, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
        """Run it in the background."""
        with subprocess.Popen(
            [*self.command, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.send_signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def crictl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodsCrictl]:
    """One daemon for all tests."""
    with (
        pod_bridge(tmp_path_factory.mktemp("cni")) as config,
        DaemonProcess(config=config) as daemon,
        CriClient(daemon) as client,
    ):
        yield PodsCrictl(daemon, client)


@pytest.fixture
def pod(crictl: PodsCrictl, tmp_path: Path) -> Iterator[str]:
    """The id of a pod with an address, which is removed afterwards."""
    config = {
        "metadata": {"name": "web", "uid": uuid.uuid4().hex, "namespace": "default"},
        "hostname": "web",
        "log_directory": str(crictl.client.logs),
        "linux": {"cgroup_parent": crictl.client.cgroup, "security_context": {"namespace_options": {"pid": 1}}},
    }
    (tmp_path / "pod.json").write_text(json.dumps(config))
    pod = crictl.ended("runp", str(tmp_path / "pod.json"))
    yield pod
    for left in crictl.json("pods")["items"]:
        crictl.ended("rmp", "-f", left["id"])
    assert crictl.json("pods")["items"] == []


@pytest.fixture
def container(crictl: PodsCrictl, pod: str, tmp_path: Path) -> str:
    """The id of a running container that serves /etc at port 8080."""
    script = "echo started; httpd -p 8080 -h /etc; while read line; do echo read $line; done; sleep 1000"
    config = {
        "metadata": {"name": "main"},
        "image": {"image": IMAGE},
        "command": ["sh", "-c", script],
        "log_path": f"{uuid.uuid4().hex}.log",
        "stdin": True,
        "linux": {"security_context": {"namespace_options": {"pid": 1}}},
    }
    (tmp_path / "container.json").write_text(json.dumps(config))
    container = crictl.ended("create", pod, str(tmp_path / "container.json"), str(tmp_path / "pod.json"))
    crictl.ended("start", container)
    return container


def test_what_it_says_of_the_runtime(crictl: PodsCrictl) -> None:
    assert "RuntimeName:  containerd" in crictl.ended("version")
    conditions = json.loads(crictl.ended("info"))["status"]["conditions"]
    assert {one["type"]: one["status"] for one in conditions} == {"RuntimeReady": True, "NetworkReady": True}
    assert IMAGE in [tag for image in crictl.json("images")["images"] for tag in image["repoTags"]]
    assert crictl.ended("runtime-config")
    crictl.ended("update-runtime-config", "--pod-cidr", "10.9.0.0/16")
    assert "crictl" in crictl.ended("completion", "bash")


def test_a_pod_from_its_beginning_to_its_end(crictl: PodsCrictl, pod: str, container: str) -> None:
    assert [one["id"] for one in crictl.json("pods")["items"]] == [pod]
    assert [one["state"] for one in crictl.json("ps", "-a")["containers"]] == ["CONTAINER_RUNNING"]
    address = json.loads(crictl.ended("inspectp", pod))["status"]["network"]["ip"]
    assert f"inet {address}/24" in crictl.ended("exec", container, "ip", "addr", "show", "eth0")
    assert crictl.ended("exec", "-s", container, "hostname") == "web"
    assert json.loads(crictl.ended("inspect", container))["status"]["state"] == "CONTAINER_RUNNING"
    assert crictl.ended("logs", container) == "started"
    crictl.ended("update", "--memory", str(64 << 20), container)
    assert json.loads(crictl.ended("inspect", container))["status"]["resources"]["linux"]["memoryLimitInBytes"] == str(
        64 << 20
    )
    crictl.ended("stop", container)
    ended = json.loads(crictl.ended("inspect", container))["status"]
    assert (ended["state"], ended["exitCode"]) == ("CONTAINER_EXITED", 137)
    crictl.ended("rm", container)
    crictl.ended("stopp", pod)
    assert [one["state"] for one in crictl.json("pods")["items"]] == ["SANDBOX_NOTREADY"]


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_exec_carries_streams_and_status(crictl: PodsCrictl, container: str, transport: str) -> None:
    said = crictl.ended(
        "exec", "-i", "--transport", transport, container, "sh", stdin="cat /etc/hello; echo no >&2; exit 5\n", status=1
    )
    assert "hello" in said
    assert "no\n" in said
    assert "command terminated with exit code 5" in said


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_exec_on_a_terminal(crictl: PodsCrictl, container: str, transport: str) -> None:
    command = [*crictl.command, "exec", "-i", "-t", "--transport", transport, container, "sh"]
    with TerminalSession(command, os.environ, (33, 111)) as terminal:
        terminal.type("stty size\n")
        terminal.expect("33 111")
        terminal.type("exit\n")


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_ports_are_forwarded(crictl: PodsCrictl, pod: str, container: str, transport: str) -> None:
    with crictl.beside("port-forward", "--transport", transport, pod, ":8080") as forward:
        assert forward.stdout is not None
        line = next(line for line in forward.stdout if "Forwarding from 127.0.0.1" in line)
        port = line.split("127.0.0.1:")[1].split()[0]
        for _ in range(3):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/hello", timeout=DEADLINE) as answer:
                assert answer.read() == b"hello\n"


def test_attaching_joins_input_and_output(crictl: PodsCrictl, container: str) -> None:
    with crictl.beside("attach", "-i", container) as attached:
        assert attached.stdin is not None
        assert attached.stdout is not None
        deadline = time.monotonic() + DEADLINE
        line = ""
        while "read it" not in line and time.monotonic() < deadline:
            attached.stdin.write("it\n")
            attached.stdin.flush()
            line = next(one for one in attached.stdout if "level=warning" not in one)
        assert "read it" in line
    wait_until(lambda: "read it" in crictl.ended("logs", container), "the log has it too")


def test_figures_and_events(crictl: PodsCrictl, pod: str, container: str) -> None:
    assert [one["attributes"]["id"] for one in crictl.json("stats")["stats"]] == [container]
    assert [one["attributes"]["id"] for one in crictl.json("statsp")["stats"]] == [pod]
    with crictl.beside("events") as events:
        assert events.stdout is not None
        crictl.ended("stop", "--timeout", "0", container)
        assert any("CONTAINER_STOPPED_EVENT" in line for line in events.stdout)


def test_metrics_of_pods(crictl: PodsCrictl, pod: str, container: str) -> None:
    described = {metric["name"] for metric in crictl.json("metricdescs")["descriptors"]}
    (pod_metrics,) = crictl.json("metricsp")["podMetrics"]
    assert pod_metrics["podSandboxId"] == pod
    (container_metrics,) = pod_metrics["containerMetrics"]
    assert container_metrics["containerId"] == container
    assert {metric["name"] for metric in container_metrics["metrics"]} <= described


def test_a_pod_and_its_container_in_one_go(crictl: PodsCrictl, container: str, tmp_path: Path) -> None:
    pod = json.loads((tmp_path / "pod.json").read_text())
    pod["metadata"] |= {"name": "other", "uid": uuid.uuid4().hex}
    pod["hostname"] = "other"
    (tmp_path / "other.json").write_text(json.dumps(pod))
    other = crictl.ended("run", "--no-pull", str(tmp_path / "container.json"), str(tmp_path / "other.json"))
    assert {one["id"] for one in crictl.json("ps")["containers"]} == {container, other}
    assert crictl.ended("exec", other, "hostname") == "other"


def test_a_checkpoint_needs_to_be_allowed(crictl: PodsCrictl, container: str, tmp_path: Path) -> None:
    refusal = crictl.ended("checkpoint", "--export", str(tmp_path / "saved.tar"), container, status=1)
    assert "Unimplemented" in refusal
    assert "checkpoint" in refusal
    assert not (tmp_path / "saved.tar").exists()


def test_the_daemon_may_be_killed_meanwhile(crictl: PodsCrictl, pod: str, container: str) -> None:
    address = json.loads(crictl.ended("inspectp", pod))["status"]["network"]["ip"]

    crictl.client.daemon.restart()

    assert json.loads(crictl.ended("inspectp", pod))["status"]["network"]["ip"] == address
    assert crictl.ended("exec", container, "cat", "/etc/hello") == "hello"
    crictl.ended("rmp", "-f", pod)
    assert crictl.json("ps", "-a")["containers"] == []
