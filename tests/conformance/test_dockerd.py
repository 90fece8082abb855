"""Debian's dockerd with `--containerd=` our socket: what it prints, what the kernel shows, and what outlives whom.

docker asks for the program `runc` by name, so that is what makes its containers, driven by our shim; a configuration
may put our own runtime in its place. The short session takes our own.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Final

import pytest

from support import runtimes
from support.buildkit import write_context
from support.daemon_process import DEADLINE, DaemonProcess, wait_until
from support.dockerd import IMAGE, Dockerd, in_netns_of, moby, private_dockerd, touch, two_stages
from support.footprint import cgroup_value
from support.pod_networks import own_host
from support.terminal_session import TerminalSession

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.timeout(300)]

MEBIBYTE: Final = 1 << 20
OURS: Final = '[runtimes.runc]\npath = "embedded"\n'
UNTIL_STOPPED: Final = "until [ -e /stop ]; do sleep 0.1; done; exit 5"
COUNTING: Final = "i=0; until [ -e /stop ]; do i=$((i + 1)); echo $i; sleep 0.02; done; exit 5"


@pytest.fixture(
    scope="module", params=["embedded", *(pytest.param(name, marks=pytest.mark.full) for name in ("runc", "moby"))]
)
def kind(request: pytest.FixtureRequest) -> str:
    """The runtime that the request of Debian's dockerd for runc leads to, or "moby": the current one, and our own."""
    return str(request.param)


@pytest.fixture(scope="module")
def pyctrd(kind: str) -> Iterator[DaemonProcess]:
    """The daemon below dockerd."""
    if kind == "runc":
        runtimes.path_of("runc")
    config = "" if kind == "runc" else OURS
    with own_host(), DaemonProcess(config=config, environment={"PATH": runtimes.search_path()}) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def docker(kind: str, pyctrd: DaemonProcess) -> Iterator[Dockerd]:
    with moby(pyctrd.address) if kind == "moby" else private_dockerd(pyctrd.address) as docker:
        yield docker


@pytest.fixture
def name(docker: Dockerd) -> Iterator[str]:
    """The name of a container, which is removed after the test."""
    yield "c1"
    docker.run("rm", "--force", "c1")


def test_which_runtime_runs(docker: Dockerd, pyctrd: DaemonProcess, name: str, kind: str) -> None:
    """docker's options name runc. The shim is ours in any case; what it executes is as configured."""
    pid = docker.started(name, "--network", "none", IMAGE, "sleep", "1000")

    bundle = pyctrd.state / "tasks" / "moby" / docker.inspect(name)["Id"]
    record = bundle / "runtime.json"
    program = json.loads(record.read_text())["program"] if record.exists() else "embedded"
    assert program == (runtimes.path_of("runc") if kind == "runc" else "embedded")
    shim = json.loads((bundle / "shim.json").read_text())["pid"]
    assert parent_of(pid) == shim


def test_run_prints_and_exits_as_the_program_does(docker: Dockerd) -> None:
    script = "echo out; echo err >&2; id -u; exit 7"

    done = docker.run("run", "--rm", "--user", "1000:1000", IMAGE, "sh", "-c", script)

    assert (done.stdout, done.stderr, done.returncode) == ("out\n1000\n", "err\n", 7)


@pytest.mark.parametrize(
    ("program", "status", "reason"),
    [
        ("nowhere", 127, "executable file not found"),
        pytest.param("/dev/null", 126, "permission denied", marks=pytest.mark.full),
        pytest.param("/not/there", 127, "no such file or directory", marks=pytest.mark.full),
    ],
)
def test_a_program_that_cannot_be_run(docker: Dockerd, program: str, status: int, reason: str) -> None:
    """docker derives its own exit status from the words of ours."""
    done = docker.run("run", "--rm", IMAGE, program)

    assert (done.returncode, done.stdout) == (status, "")
    assert reason in done.stderr


def test_a_container_lives(docker: Dockerd, name: str) -> None:
    """Limits, exec, stats, top, pause, update, restart, kill, wait, events, logs."""
    script = "echo started; " + UNTIL_STOPPED
    pid = docker.started(name, "--memory", "64m", "--pids-limit", "50", IMAGE, "sh", "-c", script)
    id = docker.inspect(name)["Id"]
    assert memory_limit(pid) == 64 * MEBIBYTE
    assert cgroup_value(pid, "pids", "pids.max", "pids.max") == "50"
    address = docker.inspect(name)["NetworkSettings"]["IPAddress"]
    assert f"inet {address}/" in in_netns_of(pid, "ip", "address", "show", "eth0")

    done = docker.run("exec", "--env", "A=b", name, "sh", "-c", "echo $A; exit 9")
    assert (done.stdout, done.returncode) == ("b\n", 9)
    done = subprocess.run(
        [*docker.words, "exec", "--interactive", name, "cat"],
        input="in\n", capture_output=True, text=True, timeout=2 * DEADLINE, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("in\n", 0)
    stats = json.loads(docker("stats", "--no-stream", "--format", "{{json .}}", name))
    assert stats["Name"] == name
    assert stats["MemUsage"].endswith("/ 64MiB")
    assert int(stats["PIDs"]) >= 1
    assert str(pid) in docker("top", name, "-o", "pid,args").split()

    docker("pause", name)
    assert docker.status(name) == "paused"
    assert cgroup_value(pid, "freezer", "freezer.state", "cgroup.freeze") in ("FROZEN", "1")
    docker("unpause", name)
    assert cgroup_value(pid, "freezer", "freezer.state", "cgroup.freeze") in ("THAWED", "0")
    docker("update", "--memory", "128m", "--memory-swap", "128m", name)
    assert memory_limit(pid) == 128 * MEBIBYTE

    docker("restart", "--time", "0", name)
    assert docker.pid(name) != pid
    touch(docker.pid(name), "/stop")
    assert docker("wait", name) == "5\n"
    docker("start", name)  # /stop is there still
    assert docker("wait", name) == "5\n"
    assert docker("logs", name) == "started\n" * 3
    assert docker.status(name) == "exited 5"
    docker("rm", name)

    wait_until(lambda: "destroy" in events_of(docker, id), "its removal is told")
    told = events_of(docker, id)
    assert told[:4] == ["create", "start", "exec_create", "exec_start"]
    once = ("create", "pause", "unpause", "update", "stop", "restart", "destroy")
    assert [told.count(action) for action in once] == [1] * len(once), told
    assert (told.count("start"), told.count("die"), told.count("exec_die")) == (3, 3, 2), told


def test_our_daemon_is_killed_under_running_containers(docker: Dockerd, pyctrd: DaemonProcess) -> None:
    """They run on and docker finds the next daemon; whatever has ended meanwhile, and how, docker learns.

    Also what ends when that daemon serves already and docker is still on its way back.
    """
    names = ["gone", "gap", "later", "stays"]
    pids = {name: docker.started(name, "--network", "none", IMAGE, "sh", "-c", UNTIL_STOPPED) for name in names}
    script = "touch /begun; until [ -e /end ]; do sleep 0.1; done; exit 4"
    with subprocess.Popen([*docker.words, "exec", "stays", "sh", "-c", script]) as exec_session:
        wait_until(lambda: exists(pids["stays"], "/begun"), "the exec runs")
        wait_until(lambda: all(docker.exec_pids("stays")), "docker knows that it does")
        pyctrd.kill()
        touch(pids["gone"], "/stop")
        wait_until(lambda: not is_alive(pids["gone"]), "one container ends while there is no daemon")
        pyctrd.start()
        touch(pids["gap"], "/stop")
        touch(pids["stays"], "/end")
        assert exec_session.wait(DEADLINE) == 4
    for name in ("gone", "gap"):
        assert docker("wait", name) == "5\n"
    assert [docker.status(name) for name in ("later", "stays")] == ["running", "running"]
    assert {name: docker.pid(name) for name in ("later", "stays")} == {name: pids[name] for name in ("later", "stays")}

    touch(pids["later"], "/stop")
    assert docker("wait", "later") == "5\n"
    done = docker.run("exec", "stays", "sh", "-c", "echo still; exit 3")
    assert (done.stdout, done.returncode) == ("still\n", 3)
    docker("kill", "stays")
    assert docker("wait", "stays") == "137\n"
    docker("rm", *names)


@pytest.mark.full
def test_live_restore(docker: Dockerd, pyctrd: DaemonProcess) -> None:
    """dockerd killed, both daemons killed, dockerd stopped: containers run on, and no line of a log is lost."""
    pids = {name: docker.started(name, IMAGE, "sh", "-c", COUNTING) for name in ("gone", "both", "stays")}
    docker.kill()
    touch(pids["gone"], "/stop")
    wait_until(lambda: not is_alive(pids["gone"]), "one container ends without dockerd")
    docker.start()
    assert [docker.status(name) for name in pids] == ["exited 5", "running", "running"]
    assert docker("exec", "stays", "echo", "again") == "again\n"

    docker.kill()
    pyctrd.kill()
    touch(pids["both"], "/stop")
    wait_until(lambda: not is_alive(pids["both"]), "one container ends without any daemon")
    pyctrd.start()
    docker.start()
    assert [docker.status(name) for name in pids] == ["exited 5", "exited 5", "running"]

    docker.stop()
    docker.start()
    assert docker.pid("stays") == pids["stays"]
    touch(pids["stays"], "/stop")
    assert docker("wait", "stays") == "5\n"
    for name in pids:
        lines = docker("logs", name).splitlines()
        assert lines == [str(number + 1) for number in range(len(lines))]
        assert len(lines) > 1
    docker("rm", *pids)


@pytest.mark.full
def test_restart_policies_see_ends_that_nobody_saw(docker: Dockerd, pyctrd: DaemonProcess, name: str) -> None:
    script = "until [ -e /stop ]; do sleep 0.1; done; rm /stop; exit 5"
    pid = docker.started(name, "--restart", "on-failure:3", IMAGE, "sh", "-c", script)
    pyctrd.kill()
    touch(pid, "/stop")
    wait_until(lambda: not is_alive(pid), "it ends while there is no daemon")
    pyctrd.start()

    wait_until(lambda: docker.status(name) == "running" and docker.pid(name) != pid, "docker starts it again")

    assert docker.inspect(name)["RestartCount"] == 1


@pytest.mark.full
def test_attach_and_terminals(docker: Dockerd, name: str) -> None:
    docker.started(name, "--interactive", IMAGE, "sh", "-c", "read line; echo got $line; read line; exit 6")
    with TerminalSession([*docker.words, "attach", "--sig-proxy=false", name], docker.environment) as terminal:
        terminal.type("one\n")
        terminal.expect("got one")
        terminal.type("two\n")
        assert terminal.wait() == 6
    assert docker("logs", name) == "got one\n"
    docker("rm", name)

    docker.started(name, "--interactive", "--tty", IMAGE, "sh")
    with TerminalSession([*docker.words, "attach", name], docker.environment, (31, 97)) as terminal:
        terminal.type("tty; stty size\n")
        terminal.expect("/dev/pts/0\r\n31 97\r\n")
        terminal.type("\x10\x11")
        terminal.expect("read escape sequence")  # so it says that it detaches
    assert docker.status(name) == "running"
    with TerminalSession([*docker.words, "exec", "-it", name, "sh"], docker.environment, (31, 97)) as terminal:
        terminal.expect("# ")
        terminal.type("while [ \"$(stty size 2>&1)\" != '17 40' ]; do sleep 0.1; done; echo si'z'ed\r")
        terminal.resize_until((17, 40), "sized\r")
        terminal.type("exit 8\r")
        assert terminal.wait() == 8


@pytest.mark.full
def test_networks(docker: Dockerd, name: str) -> None:
    """A network of its own, names in it, a published port; nothing of it on this machine itself."""
    docker("network", "create", "--subnet", "10.213.0.0/24", "n1")
    script = "mkdir -p /www; echo page >/www/index.html; exec httpd -f -p 80 -h /www"
    pid = docker.started(name, "--network", "n1", "--publish", "8080:80", IMAGE, "sh", "-c", script)
    assert "inet 10.213.0.2/24" in in_netns_of(pid, "ip", "address", "show", "eth0")

    assert docker("run", "--rm", "--network", "n1", IMAGE, "wget", "-qO-", f"http://{name}/") == "page\n"
    on_host = docker("run", "--rm", "--network", "host", IMAGE, "wget", "-qO-", "http://10.213.0.1:8080/")
    assert on_host == "page\n"
    docker("network", "connect", "bridge", name)
    assert "eth1" in in_netns_of(pid, "ip", "link")
    docker("network", "disconnect", "n1", name)
    assert "eth0" not in in_netns_of(pid, "ip", "link")

    docker("rm", "--force", name)
    docker("network", "rm", "n1")
    assert "n1" not in docker("network", "ls", "--format", "{{.Name}}").split()


@pytest.mark.full
def test_volumes(docker: Dockerd, name: str) -> None:
    docker("volume", "create", "v1")
    docker("run", "--rm", "--volume", "v1:/data", IMAGE, "sh", "-c", "echo hello >/data/f")
    pid = docker.started(name, "--volume", "v1:/data:ro", "--tmpfs", "/scratch:size=1m", IMAGE, "sleep", "1000")

    assert docker("exec", name, "cat", "/data/f") == "hello\n"
    assert docker.run("exec", name, "touch", "/data/g").returncode == 1
    mounts = {line.split()[4]: line for line in proc(pid, "mountinfo").splitlines()}
    assert f"{docker.ground.base}/data/volumes/v1/_data".removeprefix("/") in mounts["/data"]
    assert mounts["/data"].split()[5].startswith("ro,")
    assert "size=1024k" in mounts["/scratch"]

    assert docker.run("volume", "rm", "v1").returncode == 1  # it has one
    docker("rm", "--force", name)
    docker("volume", "rm", "v1")
    assert not (docker.ground.base / "data/volumes/v1").exists()


@pytest.mark.full
def test_build(docker: Dockerd) -> None:
    """Its classic builder runs a container for each step and makes images of what they leave."""
    context = write_context(docker.ground.base / "context", two_stages(), {"sent": "sent\n"})

    output = docker("build", "--tag", "built:1", str(context))

    assert "Successfully tagged built:1" in output
    assert docker("run", "--rm", "built:1") == "b\n0\nsent\n1000\n"
    assert "Using cache" in docker("build", str(context))
    (context / "Dockerfile").write_text(f"FROM {IMAGE}\nRUN exit 3\n")
    done = docker.run("build", str(context))
    assert done.returncode != 0
    assert "returned a non-zero code: 3" in done.stderr
    docker("container", "prune", "--force")  # the step that failed
    docker("image", "rm", "built:1")


@pytest.mark.full
def test_a_followed_log_and_files(docker: Dockerd, name: str) -> None:
    """logs --follow up to the end, cp in both directions, diff, commit, rename, and an OOM kill that is told."""
    pid = docker.started(name, IMAGE, "sh", "-c", COUNTING)
    with subprocess.Popen([*docker.words, "logs", "--follow", name], stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        assert [following.stdout.readline() for _ in range(3)] == ["1\n", "2\n", "3\n"]
        touch(pid, "/stop")
        rest = following.stdout.read().splitlines()
        assert following.wait(DEADLINE) == 0
    assert rest == [str(number + 4) for number in range(len(rest))]

    folder = docker.ground.base
    (folder / "copied").write_text("copied\n")
    docker("cp", str(folder / "copied"), f"{name}:/copied")
    docker("cp", f"{name}:/copied", str(folder / "back"))
    assert (folder / "back").read_text() == "copied\n"
    assert sorted(docker("diff", name).splitlines()) == ["A /copied", "A /stop"]
    docker("rename", name, "c2")
    docker("commit", "c2", "committed:1")
    docker("rename", "c2", name)
    assert docker("run", "--rm", "committed:1", "cat", "/copied") == "copied\n"
    docker("image", "rm", "committed:1")
    docker("rm", name)

    docker.run("run", "--name", name, "--memory", "16m", "--memory-swap", "16m", IMAGE, "tail", "/dev/zero")
    state = docker.inspect(name)["State"]
    assert (state["ExitCode"], state["OOMKilled"]) == (137, True)


@pytest.mark.full
def test_a_lost_shim_is_told(docker: Dockerd, pyctrd: DaemonProcess, name: str) -> None:
    """The container ends with its shim; docker is told a status that no program has given."""
    pid = docker.started(name, IMAGE, "sleep", "1000")
    shim = parent_of(pid)
    subprocess.run(["kill", "-KILL", str(shim)], check=True)

    assert docker("wait", name) == "255\n"
    assert not is_alive(pid)
    docker("start", name)
    assert docker.status(name) == "running"


def events_of(docker: Dockerd, id: str) -> list[str]:
    """Return what dockerd has told of a container, first words only: `exec_create: sh -c ...`."""
    words = ["events", "--since", "24h", "--until", "0s", "--filter", f"container={id}", "--format", "{{.Action}}"]
    return [line.partition(":")[0] for line in docker(*words).splitlines()]


def memory_limit(pid: int) -> int:
    return int(cgroup_value(pid, "memory", "memory.limit_in_bytes", "memory.max"))


def proc(pid: int, name: str) -> str:
    """Return a file of /proc, "" for a process that is gone."""
    try:
        with open(f"/proc/{pid}/{name}", encoding="utf-8") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_alive(pid: int) -> bool:
    return proc(pid, "stat").rpartition(")")[2].split()[:1] not in ([], ["Z"], ["X"])


def parent_of(pid: int) -> int:
    return int(proc(pid, "stat").rpartition(")")[2].split()[1])


def exists(pid: int, path: str) -> bool:
    return os.path.exists(f"/proc/{pid}/root{path}")
