"""A real nerdctl 2: what it prints, what the kernel shows, and that nothing is left; also with the daemon killed.

Containers are on nerdctl's bridge network, with Debian's CNI plugins, and what they write goes through nerdctl's own
logger.
"""

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemon_process import wait_until
from support.footprint import cgroup_value
from support.nerdctl import NAME, Nerdctl, leaving_nothing, nerdctl_with_image
from support.pod_networks import command
from support.registry_process import free_port

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def loaded() -> Iterator[Nerdctl]:
    with nerdctl_with_image() as nerdctl:
        yield nerdctl


@pytest.fixture
def nerdctl(loaded: Nerdctl) -> Iterator[Nerdctl]:
    """nerdctl, with one image; a test leaves nothing else."""
    with leaving_nothing(loaded):
        yield loaded


def page(address: str) -> str | None:
    """Return what a web server says, None if nobody answers."""
    try:
        with urllib.request.urlopen(f"http://{address}/", timeout=10) as answer:
            return str(answer.read(), "utf-8")
    except OSError:
        return None


def addresses(pid: int) -> dict[str, list[str]]:
    """Return the IPv4 addresses of each link in a process's network."""
    shown = json.loads(command("ip", "-json", "-4", "address", netns=Path(f"/proc/{pid}/ns/net")))
    return {link["ifname"]: [one["local"] for one in link["addr_info"]] for link in shown}


def sleeper(nerdctl: Nerdctl, name: str, *options: str, script: str = "exec sleep 1000") -> str:
    """Run a container that sleeps and return its id."""
    return nerdctl("run", "-d", "--name", name, "--stop-signal", "KILL", *options, NAME, "sh", "-c", script).strip()


def test_a_web_server(nerdctl: Nerdctl) -> None:
    """Everything that a server's life has: network, port, volume, limits, log, execs, and the daemon killed in it."""
    port = free_port()
    nerdctl("volume", "create", "site")

    id = sleeper(
        nerdctl, "web", "--publish", f"127.0.0.1:{port}:80", "--volume", "site:/www", "--memory", "64m",
        "--health-cmd", "wget -q -O- http://127.0.0.1/",
        script="echo hello >/www/index.html; echo up; echo warning >&2; exec httpd -f -p 80 -h /www",
    )  # fmt: skip

    wait_until(lambda: page(f"127.0.0.1:{port}") == "hello\n", "the server answers")
    shown = nerdctl.inspect("web")
    pid, address = shown["State"]["Pid"], shown["NetworkSettings"]["IPAddress"]
    assert (shown["Id"], shown["State"]["Status"], shown["State"]["FinishedAt"]) == (id, "running", "")
    assert addresses(pid)["eth0"] == [address]
    assert page(address) == "hello\n"
    assert cgroup_value(pid, "memory", "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    [volume] = json.loads(nerdctl("volume", "inspect", "site"))
    assert Path(volume["Mountpoint"], "index.html").read_text() == "hello\n"
    assert " /www " in Path(f"/proc/{pid}/mountinfo").read_text()

    nerdctl.daemon.restart()

    assert page(f"127.0.0.1:{port}") == "hello\n"
    [row] = nerdctl.rows("ps")
    assert (row["ID"], row["Names"], row["Ports"]) == (id[:12], "web", f"127.0.0.1:{port}->80/tcp")
    assert row["Status"].startswith("Up")
    assert nerdctl("exec", "web", "cat", "/www/index.html") == "hello\n"
    logs = nerdctl.run("logs", "web")
    assert (logs.stdout, logs.stderr) == ("up\n", "warning\n")
    nerdctl("container", "healthcheck", "web")
    assert nerdctl.inspect("web")["State"]["Health"]["Status"] == "healthy"
    [figures] = nerdctl.rows("stats", "--no-stream", "web")
    assert figures["MemUsage"].endswith("/ 64MiB")
    assert re.search(rf"\b{pid}\b.*httpd -f -p 80", nerdctl("top", "web"))

    nerdctl("stop", "web")
    assert page(f"127.0.0.1:{port}") is None
    assert not Path(f"/proc/{pid}").exists()
    assert nerdctl.rows("ps", "--all")[0]["Status"].startswith("Exited (137)")
    nerdctl("rm", "web")
    nerdctl("volume", "rm", "site")
    assert not Path(volume["Mountpoint"]).exists()


def test_a_program_and_its_streams(nerdctl: Nerdctl) -> None:
    done = nerdctl.run(
        "run", "--rm", "-i", "--network", "none", NAME, "sh", "-c", "cat; echo err >&2; exit 7", stdin="in\n"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("in\n", "err\n", 7)
    with nerdctl.terminal("run", "--rm", "-it", NAME, "sh") as terminal:
        terminal.expect("# ")
        terminal.type("tty; stty size; echo $((6 * 7))\n")
        assert "/dev/pts/0" in (shown := terminal.expect("42"))
        assert "31 97" in shown
        terminal.type("exit 9\n")
        assert terminal.wait() == 9
