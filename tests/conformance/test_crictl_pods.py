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
from typing import Any

import pytest

from support import peers
from support.cri_client import IMAGE, CriClient
from support.daemon_process import DEADLINE, DaemonProcess, wait_until
from support.pod_bridge import pod_bridge
from support.terminal_session import TerminalSession

pytestmark = [pytest.mark.root, pytest.mark.peer]


class Crictl:
    """crictl, with a daemon that has a network for pods."""

    def __init__(self, daemon: DaemonProcess, client: CriClient) -> None:
        self.client = client
        address = f"unix://{daemon.address}"
        config = daemon.base / "crictl.yaml"
        config.write_text(f"runtime-endpoint: {address}\nimage-endpoint: {address}\ntimeout: 30\n")
        self.command = (str(peers.find("crictl")), "--config", str(config))

    def run(self, *arguments: str, stdin: str = "", status: int = 0) -> str:
        """Run it and return what it prints; `status` is how it must end."""
        done = subprocess.run(
            [*self.command, *arguments], input=stdin, capture_output=True, text=True, timeout=2 * DEADLINE, check=False
        )
        assert done.returncode == status, (arguments, done.stdout, done.stderr)
        return done.stdout.strip() if status == 0 else done.stdout + done.stderr

    def json(self, *arguments: str) -> Any:
        """Run it and return the JSON that it prints."""
        return json.loads(self.run(*arguments, "-o", "json"))

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
def crictl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crictl]:
    """One daemon for all tests."""
    with (
        pod_bridge(tmp_path_factory.mktemp("cni")) as config,
        DaemonProcess(config=config) as daemon,
        CriClient(daemon) as client,
    ):
        yield Crictl(daemon, client)


@pytest.fixture
def pod(crictl: Crictl, tmp_path: Path) -> Iterator[str]:
    """The id of a pod with an address, which is removed afterwards."""
    config = {
        "metadata": {"name": "web", "uid": uuid.uuid4().hex, "namespace": "default"},
        "hostname": "web",
        "log_directory": str(crictl.client.logs),
        "linux": {"cgroup_parent": crictl.client.cgroup, "security_context": {"namespace_options": {"pid": 1}}},
    }
    (tmp_path / "pod.json").write_text(json.dumps(config))
    pod = crictl.run("runp", str(tmp_path / "pod.json"))
    yield pod
    for left in crictl.json("pods")["items"]:
        crictl.run("rmp", "-f", left["id"])
    assert crictl.json("pods")["items"] == []


@pytest.fixture
def container(crictl: Crictl, pod: str, tmp_path: Path) -> str:
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
    container = crictl.run("create", pod, str(tmp_path / "container.json"), str(tmp_path / "pod.json"))
    crictl.run("start", container)
    return container


def test_what_it_says_of_the_runtime(crictl: Crictl) -> None:
    assert "RuntimeName:  containerd" in crictl.run("version")
    conditions = json.loads(crictl.run("info"))["status"]["conditions"]
    assert {one["type"]: one["status"] for one in conditions} == {"RuntimeReady": True, "NetworkReady": True}
    assert IMAGE in [tag for image in crictl.json("images")["images"] for tag in image["repoTags"]]
    assert crictl.run("runtime-config")


def test_a_pod_from_its_beginning_to_its_end(crictl: Crictl, pod: str, container: str) -> None:
    assert [one["id"] for one in crictl.json("pods")["items"]] == [pod]
    assert [one["state"] for one in crictl.json("ps", "-a")["containers"]] == ["CONTAINER_RUNNING"]
    address = json.loads(crictl.run("inspectp", pod))["status"]["network"]["ip"]
    assert f"inet {address}/24" in crictl.run("exec", container, "ip", "addr", "show", "eth0")
    assert crictl.run("exec", "-s", container, "hostname") == "web"
    assert json.loads(crictl.run("inspect", container))["status"]["state"] == "CONTAINER_RUNNING"
    assert crictl.run("logs", container) == "started"
    crictl.run("update", "--memory", str(64 << 20), container)
    assert json.loads(crictl.run("inspect", container))["status"]["resources"]["linux"]["memoryLimitInBytes"] == str(
        64 << 20
    )
    crictl.run("stop", container)
    ended = json.loads(crictl.run("inspect", container))["status"]
    assert (ended["state"], ended["exitCode"]) == ("CONTAINER_EXITED", 137)
    crictl.run("rm", container)
    crictl.run("stopp", pod)
    assert [one["state"] for one in crictl.json("pods")["items"]] == ["SANDBOX_NOTREADY"]


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_exec_carries_streams_and_status(crictl: Crictl, container: str, transport: str) -> None:
    said = crictl.run(
        "exec", "-i", "--transport", transport, container, "sh", stdin="cat /etc/hello; echo no >&2; exit 5\n", status=1
    )
    assert "hello" in said
    assert "no\n" in said
    assert "command terminated with exit code 5" in said


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_exec_on_a_terminal(crictl: Crictl, container: str, transport: str) -> None:
    command = [*crictl.command, "exec", "-i", "-t", "--transport", transport, container, "sh"]
    with TerminalSession(command, os.environ, (33, 111)) as terminal:
        terminal.type("stty size\n")
        terminal.expect("33 111")
        terminal.type("exit\n")


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_ports_are_forwarded(crictl: Crictl, pod: str, container: str, transport: str) -> None:
    with crictl.beside("port-forward", "--transport", transport, pod, ":8080") as forward:
        assert forward.stdout is not None
        line = next(line for line in forward.stdout if "Forwarding from 127.0.0.1" in line)
        port = line.split("127.0.0.1:")[1].split()[0]
        for _ in range(3):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/hello", timeout=DEADLINE) as answer:
                assert answer.read() == b"hello\n"


def test_attaching_joins_input_and_output(crictl: Crictl, container: str) -> None:
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
    wait_until(lambda: "read it" in crictl.run("logs", container), "the log has it too")


def test_figures_and_events(crictl: Crictl, pod: str, container: str) -> None:
    assert [one["attributes"]["id"] for one in crictl.json("stats")["stats"]] == [container]
    assert [one["attributes"]["id"] for one in crictl.json("statsp")["stats"]] == [pod]
    with crictl.beside("events") as events:
        assert events.stdout is not None
        crictl.run("stop", "--timeout", "0", container)
        assert any("CONTAINER_STOPPED_EVENT" in line for line in events.stdout)


def test_the_daemon_may_be_killed_meanwhile(crictl: Crictl, pod: str, container: str) -> None:
    address = json.loads(crictl.run("inspectp", pod))["status"]["network"]["ip"]

    crictl.client.daemon.restart()

    assert json.loads(crictl.run("inspectp", pod))["status"]["network"]["ip"] == address
    assert crictl.run("exec", container, "cat", "/etc/hello") == "hello"
    crictl.run("rmp", "-f", pod)
    assert crictl.json("ps", "-a")["containers"] == []
