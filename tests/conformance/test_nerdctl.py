"""A real nerdctl 2: what it prints, what the kernel shows, and that nothing is left; also with the daemon killed.

Containers are on nerdctl's bridge network, with Debian's CNI plugins, and what they write goes through nerdctl's own
logger.
"""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from support.daemon_process import wait_until
from support.footprint import cgroup_value
from support.nerdctl import NAME, Nerdctl, addresses, page
from support.registry_process import free_port

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.timeout(300)]


def test_a_web_server(nerdctl: Nerdctl) -> None:
    """Everything that a server's life has: network, port, volume, limits, log, execs, and the daemon killed in it."""
    port = free_port()
    nerdctl("volume", "create", "site")

    id = nerdctl.sleeper(
        "web", "--publish", f"127.0.0.1:{port}:80", "--volume", "site:/www", "--memory", "64m",
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
        terminal.type("tty; echo $((6 * 7))\n")
        assert "/dev/pts/0" in terminal.expect("42")
        # nerdctl tells the size after the start
        terminal.type("while [ \"$(stty size 2>&1)\" != '31 97' ]; do sleep 0.1; done; echo si'z'ed\n")
        terminal.expect("sized\r")
        terminal.type("exit 9\n")
        assert terminal.wait() == 9


@pytest.mark.full
def test_the_life_of_a_container(nerdctl: Nerdctl, tmp_path: Path) -> None:
    """Every command about a container in turn."""
    id = nerdctl.sleeper("one")
    pid = nerdctl.pid("one")
    freezer = cgroup_value(pid, "freezer", "freezer.state", "cgroup.freeze")

    nerdctl("pause", "one")
    assert nerdctl.status("one") == "paused"
    assert cgroup_value(pid, "freezer", "freezer.state", "cgroup.freeze") in {"FROZEN", "1"}
    nerdctl.daemon.restart()
    assert "paused" in nerdctl.fails("exec", "one", "true")
    nerdctl("unpause", "one")
    assert cgroup_value(pid, "freezer", "freezer.state", "cgroup.freeze") == freezer

    nerdctl("update", "--memory", "80m", "--pids-limit", "50", "one")
    assert cgroup_value(pid, "memory", "memory.limit_in_bytes", "memory.max") == str(80 << 20)
    assert cgroup_value(pid, "pids", "pids.max", "pids.max") == "50"
    nerdctl("rename", "one", "two")
    assert [row["Names"] for row in nerdctl.rows("ps")] == ["two"]
    assert "no such container" in nerdctl.fails("exec", "one", "true").lower()

    process = ("--user", "1:2", "--env", "A=b", "--workdir", "/etc")
    assert nerdctl("exec", *process, "two", "sh", "-c", "id -u; echo $A; pwd") == "1\nb\n/etc\n"
    done = nerdctl.run("exec", "-i", "two", "sh", "-c", "wc -c; exit 5", stdin="1234")
    assert (done.stdout.strip(), "exit code 5" in done.stderr) == ("4", True)
    nerdctl("exec", "--detach", "two", "sleep", "999")
    wait_until(lambda: "sleep 999" in nerdctl("top", "two"), "the exec is among the processes")
    with nerdctl.terminal("exec", "-it", "two", "sh", "-c", "tty; exit 6") as terminal:
        terminal.expect("/dev/pts/0")
        terminal.wait()

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("from the host\n")
    nerdctl("cp", f"{tmp_path}/folder", "two:/copied")
    assert nerdctl("exec", "two", "cat", "/copied/file") == "from the host\n"
    nerdctl("exec", "two", "sh", "-c", "echo back >/copied/answer; rm /etc/hello")
    nerdctl("cp", "two:/copied/answer", f"{tmp_path}/answer")
    assert (tmp_path / "answer").read_text() == "back\n"
    changes = set(nerdctl("diff", "two").splitlines())
    assert {"A /copied", "A /copied/file", "A /copied/answer", "D /etc/hello"} <= changes

    nerdctl("commit", "--change", 'CMD ["cat", "/copied/answer"]', "two", "example.com/committed:v1")
    nerdctl("kill", "two")
    assert nerdctl("wait", "two") == "137\n"
    assert nerdctl("run", "--rm", "example.com/committed:v1") == "back\n"
    assert "No such file" in nerdctl.run("run", "--rm", "example.com/committed:v1", "cat", "/etc/hello").stderr
    nerdctl("rmi", "example.com/committed:v1")

    nerdctl("start", "two")
    assert nerdctl.pid("two") != pid
    assert nerdctl("exec", "two", "cat", "/copied/file") == "from the host\n"
    nerdctl("restart", "two")
    assert "cannot remove" in nerdctl.fails("rm", "two") or nerdctl.status("two") == "running"
    nerdctl("rm", "--force", "two")
    assert id[:12] not in nerdctl("ps", "--all", "--quiet")


@pytest.mark.full
def test_logs(nerdctl: Nerdctl) -> None:
    """nerdctl's own logger writes them; it ends with the daemon, and no line may be lost by that."""
    options = ("--log-opt", "max-size=20k", "--log-opt", "max-file=2")
    nerdctl.sleeper("talker", *options, script="echo first; until [ -e /go ]; do sleep 0.1; done; echo last")
    wait_until(lambda: nerdctl("logs", "talker") == "first\n", "the log begins")
    nerdctl.daemon.restart()
    nerdctl("exec", "talker", "touch", "/go")
    assert nerdctl("wait", "talker") == "0\n"
    wait_until(lambda: nerdctl("logs", "talker") == "first\nlast\n", "the log goes on")
    nerdctl("rm", "talker")

    nerdctl.sleeper("talker", *options, script="seq 1 2000; until [ -e /go ]; do sleep 0.1; done; echo last")
    with nerdctl.background("logs", "--follow", "--tail", "1", "talker") as (follower, output):
        nerdctl("exec", "talker", "touch", "/go")
        assert follower.wait(60) == 0
        assert output.read_text().endswith("last\n")
    folder = Path(nerdctl.inspect("talker")["LogPath"]).parent
    sizes = [path.stat().st_size for path in folder.glob("*-json.log*")]
    assert len(sizes) == 2
    assert max(sizes) <= 20 << 10
    entry = json.loads(next(folder.glob("*-json.log")).read_text().splitlines()[-1])
    assert (entry["log"], entry["stream"]) == ("last\n", "stdout")
    nerdctl("rm", "talker")


@pytest.mark.full
def test_detaching_and_attaching(nerdctl: Nerdctl) -> None:
    with nerdctl.terminal("run", "-it", "--name", "shell", NAME, "sh") as terminal:
        terminal.expect("# ")
        terminal.type("answer=$((6 * 7))\n")
        terminal.expect("# ")
        terminal.type("\x10\x11")
        terminal.wait()
    nerdctl.daemon.restart()
    with nerdctl.terminal("attach", "shell") as terminal:
        terminal.type("echo it is $answer\n")
        terminal.expect("it is 42")
        terminal.type("exit 3\n")
        terminal.wait()
    assert nerdctl("wait", "shell") == "3\n"
    nerdctl("rm", "shell")


@pytest.mark.full
def test_containers_are_started_again(nerdctl: Nerdctl) -> None:
    """As their policies say, by the daemon that there is then; what was stopped by hand stays so."""
    nerdctl.sleeper("again", "--restart", "always")
    nerdctl.sleeper("stopped", "--restart", "unless-stopped")
    nerdctl("stop", "stopped")
    pid = nerdctl.pid("again")
    nerdctl.daemon.restart()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: nerdctl.pid("again") not in {0, pid}, "it runs again")
    assert nerdctl("exec", "again", "echo", "there") == "there\n"
    nerdctl.sleeper("failing", "--restart", "on-failure:2", script="echo line; exit 3")
    wait_until(lambda: nerdctl("logs", "failing") == "line\n" * 3, "it was tried twice more")
    wait_until(lambda: nerdctl.status("failing") == "exited", "and has ended")
    assert nerdctl.inspect("failing")["State"]["ExitCode"] == 3
    assert nerdctl.status("stopped") == "exited"
    nerdctl("rm", "--force", "again", "stopped", "failing")


@pytest.mark.full
def test_health(nerdctl: Nerdctl) -> None:
    """What a check prints and how often it failed in a row is kept; the daemon may be another one meanwhile."""
    nerdctl.sleeper("ill", "--health-cmd", "cat /well", "--health-retries", "2")
    nerdctl.run("container", "healthcheck", "ill")
    nerdctl.daemon.restart()
    nerdctl.run("container", "healthcheck", "ill")
    health = nerdctl.inspect("ill")["State"]["Health"]
    assert (health["Status"], health["FailingStreak"]) == ("unhealthy", 2)
    assert "No such file" in health["Log"][0]["Output"]
    nerdctl("exec", "ill", "sh", "-c", "echo yes >/well")
    nerdctl("container", "healthcheck", "ill")
    health = nerdctl.inspect("ill")["State"]["Health"]
    assert (health["Status"], health["FailingStreak"]) == ("healthy", 0)
    nerdctl("rm", "--force", "ill")
