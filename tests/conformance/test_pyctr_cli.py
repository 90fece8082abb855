"""`pyctr` against a real daemon: every command, as its users type it."""

import json
import os
import re
import select
import shutil
import signal
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pyctr_wire import exec_ids
from support.daemon_process import DaemonProcess, wait_until
from support.pyctr_command import TIMEOUT, Pyctr
from support.registry_process import running_registry

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

PROGRAMS = ("sh", "bash", "cat", "date", "echo", "grep", "id", "ls", "seq", "sleep", "stty", "true")


def test_version_and_info(pyctr: Pyctr) -> None:
    assert str(pyctr.daemon.address) in pyctr("version")
    info = json.loads(pyctr("info", "--format", "json"))
    found = info["Snapshotters"]
    assert found[0] == "overlayfs"  # the default; others are there where the machine has what they need
    assert "native" in found
    assert "aufs" not in found  # no machine has it, which is no failure
    assert info["FailedPlugins"] == []
    states = dict(line.split() for line in pyctr("plugin", "ls", "--format", "{{.ID}} {{.Status}}").splitlines())
    assert (states["overlayfs"], states["aufs"]) == ("ok", "skip")
    assert pyctr("ops").startswith("ID")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("demo", "true"), 0, ""),
        (("demo", "sh", "-c", "exit 7"), 7, ""),
        (("demo", "no-such-program"), 127, "no-such-program"),
        (("demo", "/etc"), 126, "/etc"),
        (("--user", "nobody-here", "demo", "true"), 125, "nobody-here"),
        (("--memory", "1m", "demo", "true"), 125, "6m"),
        (("localhost:1/nothing/here", "true"), 125, "could not be reached"),
    ],
)
def test_exit_codes_are_dockers(pyctr: Pyctr, name: str, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = pyctr.run("run", "--rm", "--name", name, "--network", "none", *arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert pyctr.is_gone(name)


def test_streams(pyctr: Pyctr) -> None:
    done = pyctr.run("run", "--rm", "-i", "demo", "sh", "-c", "cat; echo problem >&2", stdin="typed\n")
    assert done.stdout == "typed\n"
    assert done.stderr.splitlines()[-1] == "problem"
    assert "has no network" in done.stderr
    assert pyctr.box("demo", "cat", stdin="not passed on") == ""
    text = "".join(f"{number}\n" for number in range(100_000))
    assert pyctr.box("-i", "demo", "cat", stdin=text) == text


def test_process_options(pyctr: Pyctr, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("FROM_FILE=1\n# no\nHOME\n")
    out = pyctr.box(
        "-e", "A=x y", "--env-file", str(tmp_path / "env"), "-w", "/tmp", "-u", "33:44", "--group-add", "55",
        "--hostname", "box", "--ulimit", "nofile=77:88", "--entrypoint", "sh",
        "demo", "-c", 'id; pwd; echo "$A $FROM_FILE $HOSTNAME $HOME"; ulimit -n; ulimit -Hn',
    ).splitlines()  # fmt: skip
    assert out == ["uid=33 gid=44 groups=44,55", "/tmp", f"x y 1 box {os.environ['HOME']}", "77", "88"]


def status_of(pyctr: Pyctr, *arguments: str) -> dict[str, str]:
    """Return /proc/self/status of a container's process."""
    text = pyctr.box(*arguments, "demo", "cat", "/proc/self/status")
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def test_confinement(pyctr: Pyctr) -> None:
    plain = status_of(pyctr)
    assert plain["CapEff"] == "00000000a80425fb"
    assert (plain["Seccomp"], plain["NoNewPrivs"]) == ("2", "0")
    loose = status_of(pyctr, "--cap-drop", "ALL", "--cap-add", "NET_ADMIN", "--security-opt", "seccomp=unconfined",
                      "--security-opt", "no-new-privileges")  # fmt: skip
    assert int(loose["CapEff"], 16) == 1 << 12
    assert (loose["Seccomp"], loose["NoNewPrivs"]) == ("0", "1")
    privileged = status_of(pyctr, "--privileged")
    with open("/proc/self/status", encoding="ascii") as ours:
        assert f"CapBnd:\t{privileged['CapEff']}" in ours.read()


def test_limits_sysctls_and_devices(pyctr: Pyctr, name: str) -> None:
    pyctr("run", "-d", "--network", "none", "--name", name, "--memory", "64m", "--cpus", "0.5",
          "--pids-limit", "20", "--sysctl", "net.ipv4.ip_forward=1", "--device", "/dev/zero:/dev/nothing",
          "demo", "sleep", "1000")  # fmt: skip
    out = pyctr("exec", name, "sh", "-c", "cat /proc/sys/net/ipv4/ip_forward; echo $(ls -l /dev/nothing)")
    assert out.splitlines()[0] == "1"
    assert "1, 5" in out
    script = "cd /sys/fs/cgroup; cat memory.max memory/memory.limit_in_bytes; echo x >x"  # version 2, version 1
    seen = pyctr.run("exec", name, "sh", "-c", script)
    assert seen.stdout == f"{64 << 20}\n"
    assert seen.returncode != 0
    used = json.loads(pyctr("stats", "--no-stream", "--format", "json", name))
    assert used["MemUsage"].endswith("64MiB")
    assert used["PIDs"] == 1
    pyctr("rm", "-f", name)


def test_host_network(pyctr: Pyctr) -> None:
    done = pyctr.run("run", "--rm", "--network", "host", "demo", "ls", "/sys/class/net")
    assert sorted(done.stdout.split()) == sorted(os.listdir("/sys/class/net"))
    assert done.stderr == ""


def test_a_containers_life(pyctr: Pyctr, name: str, tmp_path: Path) -> None:
    cidfile = tmp_path / "cid"
    script = 'trap "echo bye; exit 3" INT; echo up; while :; do sleep 0.05; done'
    container = pyctr("run", "-d", "--network", "none", "--name", name, "--cidfile", str(cidfile),
                      "--stop-signal", "INT", "-l", "colour=blue", "demo", "sh", "-c", script).strip()  # fmt: skip
    assert cidfile.read_text() == container
    assert pyctr.run("run", "-d", "--name", name, "demo", "true").returncode == 125
    wait_until(lambda: pyctr("logs", name) == "up\n", "the container is up")
    row = json.loads(pyctr("ps", "--format", "json", "--filter", "label=colour=blue"))
    assert (row["Names"], row["State"], row["Image"]) == (name, "running", "demo:latest")
    assert pyctr("ps", "-q", "--filter", f"name={name}").strip() == container[:12]
    assert "sh -c" in pyctr("top", container[:8])
    pyctr("pause", name)
    assert pyctr.state(name) == "paused"
    pyctr("unpause", name)
    pyctr("rename", name, f"{name}-new")
    assert pyctr.run("inspect", name).returncode == 1
    name = f"{name}-new"
    assert pyctr.run("rm", name).returncode == 1
    pyctr("stop", "-t", "60", name)
    assert pyctr("wait", name).strip() == "3"
    document = json.loads(pyctr("inspect", name))[0]
    assert (document["State"]["Status"], document["State"]["ExitCode"]) == ("exited", 3)
    assert document["State"]["Reason"] == "exited"
    pyctr("start", name)
    wait_until(lambda: pyctr("logs", name).count("up") == 2, "the container is up again")
    pyctr("kill", "-s", "KILL", name)
    assert pyctr("wait", name).strip() == "137"
    pyctr("restart", name)
    assert pyctr.state(name) == "running"
    pyctr("rm", "-f", name)
    assert pyctr.run("logs", name).returncode == 1


def test_a_container_is_as_old_as_its_start(pyctr: Pyctr, name: str) -> None:
    """Though its process was made before that, and though the daemon was killed since."""
    made = datetime.now(UTC) - timedelta(seconds=1)  # file systems' clocks are coarser
    for _ in range(2):  # whoever came first may have got a process that was made just now
        pyctr("run", "-d", "--network", "none", "--name", name, "demo", "sleep", "100")
        started = datetime.fromisoformat(pyctr("inspect", "--format", "{{.State.StartedAt}}", name).strip())
        assert started > made
        pyctr.daemon.kill()
        pyctr.daemon.start()
        assert datetime.fromisoformat(pyctr("inspect", "--format", "{{.State.StartedAt}}", name).strip()) == started
        assert pyctr("ps", "--format", "{{.Names}} {{.Status}}").startswith(f"{name} Up ")
        pyctr("rm", "-f", name)


def test_created_containers(pyctr: Pyctr, name: str) -> None:
    pyctr("create", "--network", "none", "--name", name, "demo", "sh", "-c", "echo hello; exit 4")
    assert pyctr.state(name) == "created"
    assert pyctr.run("exec", name, "true").returncode != 0
    done = pyctr.run("start", "-a", name)
    assert (done.stdout, done.returncode) == ("hello\n", 4)
    pyctr("rm", name)


def test_exec(pyctr: Pyctr, name: str) -> None:
    pyctr("run", "-d", "--network", "none", "--name", name, "-e", "A=1", "demo", "sleep", "1000")
    out = pyctr("exec", "-e", "B=2", "-w", "/tmp", "-u", "nobody", name, "sh", "-c", 'id -u; pwd; echo "$A $B"')
    assert out.splitlines() == ["65534", "/tmp", "1 2"]
    assert pyctr("exec", "-i", name, "cat", stdin="in\n") == "in\n"
    assert pyctr.run("exec", name, "sh", "-c", "echo e >&2; exit 9").returncode == 9
    assert pyctr.run("exec", name, "no-such-program").returncode == 127
    assert pyctr.run("exec", name, "/etc").returncode == 126
    assert pyctr.run("exec", "no-such-container", "true").returncode == 1
    pyctr("exec", "-d", name, "sleep", "999")
    wait_until(lambda: "sleep 999" in pyctr("top", name), "the detached exec runs")
    # By which the daemon knows whose it is, and that nobody will come back for it.
    kept = [path.name for path in pyctr.daemon.state.glob("tasks/*/*/execs/*")]
    assert [one.startswith(exec_ids.OURS) for one in kept] == [True]
    pyctr("rm", "-f", name)


@pytest.mark.parametrize("ending", ["exits", "exits while the daemon is away"])
def test_detached_containers_with_rm_go_by_themselves(pyctr: Pyctr, name: str, ending: str) -> None:
    container = pyctr("run", "-d", "--rm", "--network", "none", "--name", name, "demo", "sleep", "1000").strip()
    if ending == "exits":
        pyctr("kill", name)
    else:
        pid = int(pyctr("inspect", "--format", "{{.State.Pid}}", name))
        pyctr.daemon.kill()
        os.kill(pid, signal.SIGKILL)
        pyctr.daemon.start()
    wait_until(lambda: pyctr.is_gone(name), "the container is gone")
    wait_until(lambda: container not in pyctr("snapshot", "ls", "--no-trunc"), "its snapshot is gone")
    wait_until(lambda: not list((pyctr.daemon.root / "logs").glob(f"*/{container}")), "its log is gone")


@pytest.mark.parametrize("end", ["killed", "replaced"])
def test_a_session_outlives_its_daemon(pyctr: Pyctr, name: str, end: str) -> None:
    """Output goes on whatever happens to the daemon, the next one passes a signal on, the exit code comes back."""
    script = 'trap "echo caught; exit 5" TERM; n=0; while :; do echo line $((n+=1)); sleep 0.05; done'
    with pyctr.start("run", "--rm", "--network", "none", "--name", name, "demo", "sh", "-c", script) as client:
        assert client.stdout
        lines = iter(client.stdout.readline, "")
        assert next(lines) == "line 1\n"
        if end == "killed":
            pyctr.daemon.kill()
        else:
            pyctr.daemon.upgrade()
        for number in range(2, 20):
            assert next(lines) == f"line {number}\n"
        client.send_signal(signal.SIGTERM)
        if end == "killed":
            pyctr.daemon.start()
        assert "caught\n" in lines
        assert client.wait(TIMEOUT) == 5
    assert pyctr.is_gone(name)


@pytest.mark.skipif(shutil.which("catatonit") is None, reason="catatonit is not installed (Debian package catatonit)")
def test_an_init(pyctr: Pyctr) -> None:
    done = pyctr.run("run", "--rm", "--init", "--network", "none", "demo", "sh", "-c", "cat /proc/1/cmdline; exit 7")
    assert done.stdout.startswith("/dev/init")
    assert done.returncode == 7


def test_signals_reach_the_container(pyctr: Pyctr, name: str) -> None:
    script = 'trap "echo hup" HUP; trap "exit 6" INT; echo up; while :; do sleep 0.05; done'
    with pyctr.start("run", "--rm", "--network", "none", "--name", name, "demo", "sh", "-c", script) as client:
        assert client.stdout
        assert client.stdout.readline() == "up\n"
        client.send_signal(signal.SIGHUP)
        assert client.stdout.readline() == "hup\n"
        client.send_signal(signal.SIGINT)
        assert client.wait(TIMEOUT) == 6


def test_a_terminal(pyctr: Pyctr, name: str) -> None:
    """A shell on a terminal behaves: size, resize, Ctrl-C, detach, attach, exit."""
    with pyctr.terminal(
        "run", "-it", "--network", "none", "--name", name, "demo", "bash", "--norc", size=(30, 100)
    ) as tty:
        tty.expect("# ")
        tty.type("stty size; echo $TERM\n")
        tty.expect("30 100\r\nxterm\r\n")
        tty.resize((40, 120))
        tty.expect("# ")
        tty.type("while [ \"$(stty size)\" != '40 120' ]; do sleep 0.05; done; echo resi''zed\n")
        tty.expect("resized")
        # Said by the child, so that it has the terminal: before that Ctrl-C would reach the shell.
        tty.type("sh -c 'echo be''gun; exec sleep 1000'; echo notyet\n")
        tty.expect("begun")
        tty.type("\x03")
        tty.expect("# ")
        tty.type("echo inter''rupted $?\n")
        tty.expect("interrupted 130")
        tty.type("\x10\x11")
        assert tty.wait() == 0
    assert pyctr.state(name) == "running"
    with pyctr.terminal("attach", name) as tty:
        tty.type("echo ba''ck\n")
        tty.expect("back")
        tty.type("exit 5\n")
        assert tty.wait() == 5
    pyctr("rm", name)


def test_an_exec_on_a_terminal(pyctr: Pyctr, name: str) -> None:
    pyctr("run", "-d", "--network", "none", "--name", name, "demo", "sleep", "1000")
    with pyctr.terminal("exec", "-it", "--detach-keys", "ctrl-x", name, "sh", size=(33, 99)) as tty:
        tty.type("stty size\n")
        tty.expect("33 99")
        tty.type("exit 8\n")
        assert tty.wait() == 8
    assert pyctr.run("exec", "-it", name, "sh").returncode == 1
    pyctr("rm", "-f", name)


def test_logs(pyctr: Pyctr, name: str) -> None:
    script = "for i in $(seq 2000); do echo line $i; done; cat; echo last >&2"
    pyctr("run", "-dit", "--network", "none", "--name", name, "--log-opt", "max-size=10k", "--log-opt", "max-file=100",
          "demo", "bash", "-c", script)  # fmt: skip
    assert pyctr.run("logs", "--tail", "x", name).returncode == 2
    wait_until(lambda: "line 2000" in pyctr("logs", "--tail", "1", name), "all lines are logged")
    out = pyctr("logs", name).splitlines()
    assert out == [f"line {number}" for number in range(1, 2001)]
    assert pyctr("logs", "--tail", "2", name).split() == ["line", "1999", "line", "2000"]
    assert pyctr("logs", "--since", "1h", "--tail", "1", "-t", name).split()[0].startswith("20")
    assert pyctr("logs", "--since", "2100-01-01T00:00:00Z", name) == ""
    with pyctr.start("logs", "-f", "--tail", "1", name) as follower:
        assert follower.stdout
        assert follower.stdout.readline() == "line 2000\n"
        with pyctr.terminal("attach", name) as tty:
            tty.type("typed\n")
            tty.expect("typed")
            tty.expect("typed")  # from within the container: our terminal is raw by now
            tty.type("\x04")
            assert tty.wait() == 0
        assert "last" in follower.stdout.read()
        assert follower.wait(TIMEOUT) == 0
    pyctr("rm", name)


def test_containers_without_a_log(pyctr: Pyctr, name: str) -> None:
    assert pyctr.box("--log-driver", "none", "demo", "echo", "seen") == "seen\n"
    pyctr("run", "-d", "--network", "none", "--name", name, "--log-driver", "cri", "demo", "echo", "kept")
    pyctr("wait", name)
    assert pyctr("logs", name) == "kept\n"
    pyctr("rm", name)


def test_images(pyctr: Pyctr, tmp_path: Path) -> None:
    pyctr("image", "tag", "demo", "other:1")
    rows = [json.loads(line) for line in pyctr("image", "ls", "--format", "json").splitlines()]
    assert {(row["Repository"], row["Tag"]) for row in rows} == {("demo", "latest"), ("other", "1")}
    assert len({row["ID"] for row in rows}) == 1
    assert pyctr.box(rows[0]["ID"], "echo", "by digest") == "by digest\n"
    archive = tmp_path / "archive.tar"
    pyctr("image", "export", "-o", str(archive), "other:1")
    assert pyctr("image", "rm", "other:1").strip() == "other:1"
    assert pyctr("-n", "elsewhere", "image", "import", str(archive)).strip() == "docker.io/library/other:1"
    assert pyctr("-n", "elsewhere", "run", "--rm", "--network", "none", "other:1", "echo", "there") == "there\n"
    assert json.loads(pyctr("image", "inspect", "demo"))[0]["Variants"][0]["Config"]["Cmd"]
    assert pyctr("-n", "elsewhere", "image", "rm", "other:1")
    assert pyctr("-n", "elsewhere", "content", "ls", "-q") == ""
    pyctr("namespace", "rm", "elsewhere")
    assert "elsewhere" not in pyctr("namespace", "ls", "-q")


def test_layers_are_refused_beyond_the_limits_of_the_configuration() -> None:
    with DaemonProcess(config="[unpack]\nmax_bytes = 1000000\n") as daemon:
        done = Pyctr(daemon).run("image", "from-host", "demo", "sh")
    assert done.returncode == 1
    assert "resource exhausted" in done.stderr


def test_another_snapshotter_unpacks_when_it_is_asked(pyctr: Pyctr) -> None:
    assert pyctr.box("--snapshotter", "native", "demo", "echo", "copied") == "copied\n"
    keys = pyctr("snapshot", "ls", "--snapshotter", "native", "--format", "{{.Kind}}").split()
    assert keys == ["committed"]


def test_images_that_are_used_stay(pyctr: Pyctr, name: str) -> None:
    pyctr("create", "--network", "none", "--name", name, "demo", "true")
    done = pyctr.run("image", "rm", "demo")
    assert done.returncode == 1
    assert "used by container" in done.stderr
    pyctr("rm", name)


def test_why_it_failed(pyctr: Pyctr, name: str) -> None:
    assert pyctr.run("run", "--network", "none", "--name", name, "demo", "missing").returncode == 127
    told = pyctr("why", name)
    assert re.fullmatch(
        r"op\d+: create container [0-9a-f]{64}\n  Started: .*\n  Stage: .*\n  Result:  failed: .*\n", told
    )
    assert "executable file not found" in told
    assert json.loads(pyctr("why", "--format", "json", name))["Name"] == "create"
    assert pyctr("ops").split()[:2] == ["ID", "NAMESPACE"]


def test_stored_things(pyctr: Pyctr, name: str) -> None:
    digests = pyctr("content", "ls", "-q").split()
    assert len(digests) == 3
    shown = pyctr("content", "ls")
    assert all(digest[:19] in shown and digest not in shown and digest in pyctr("content", "ls", "--no-trunc")
               for digest in digests)  # fmt: skip
    assert "committed" in pyctr("snapshot", "ls")
    container = pyctr("create", "--network", "none", "--name", name, "demo", "true").strip()
    assert pyctr("snapshot", "usage", container[:12]).splitlines()[1].startswith(f"{container[:12]} ")
    assert pyctr("snapshot", "rm", container[:12]) == f"{container[:12]}\n"
    assert container not in pyctr("snapshot", "ls", "--format", "{{.Key}}")
    pyctr("rm", name)
    assert (
        pyctr.run("snapshot", "rm", "nowhere").stderr == "pyctr: nowhere: snapshot nowhere does not exist: not found\n"
    )
    lease = pyctr("lease", "create", "--expires", "1h", "--label", "a=b").strip()
    assert "a=b" in pyctr("lease", "ls")
    pyctr("lease", "rm", "--sync", lease)
    pyctr("namespace", "create", "-l", "a=b", "spare")
    pyctr("namespace", "label", "spare", "a=c")
    assert "a=c" in pyctr("namespace", "ls")
    pyctr("namespace", "rm", "spare")
    assert "reclaimed" in pyctr("gc")
    assert json.loads(pyctr("gc", "--format", "json"))["RemovedContent"] == []
    assert "Images" in pyctr("df")
    assert pyctr.run("why", "nothing").returncode == 1


def test_a_failure_is_remembered(pyctr: Pyctr, name: str) -> None:
    pyctr("create", "--network", "none", "--name", name, "demo", "no-such-program")
    assert pyctr.run("start", name).returncode == 1
    assert "no-such-program" in pyctr("why", name)
    pyctr("rm", name)


def test_events(pyctr: Pyctr, name: str) -> None:
    with pyctr.start("events", "--filter", "topic~=/tasks/", "--format", "{{.Topic}} {{json .Event}}") as client:
        assert client.stdout
        stop = threading.Event()

        def make_some() -> None:
            while not stop.is_set():
                pyctr.box("--name", name, "demo", "true")

        maker = threading.Thread(target=make_some)
        maker.start()
        try:
            topics: set[str] = set()
            while topics < {"/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"}:
                topic, _, event = client.stdout.readline().partition(" ")
                assert json.loads(event)["container_id"]
                topics.add(topic)
        finally:
            stop.set()
            maker.join()


@pytest.mark.parametrize("end", ["killed", "replaced"])
def test_events_go_on_with_the_next_daemon(pyctr: Pyctr, name: str, end: str) -> None:
    with pyctr.start("events", "--format", "{{.Topic}}") as client:
        assert client.stdout
        assert client.stderr
        told = client.stdout.fileno()

        def wait_for_one() -> None:
            """Return when something that happens is told: until then, nobody knows whether somebody listens."""
            while not select.select([told], [], [], 0)[0]:
                pyctr.box("--name", name, "demo", "true")

        wait_for_one()
        if end == "killed":
            pyctr.daemon.restart()
        else:
            pyctr.daemon.upgrade()
        assert "may not be shown" in client.stderr.readline()
        while select.select([told], [], [], 0)[0]:
            os.read(told, 1 << 16)
        wait_for_one()
        assert client.poll() is None


@pytest.mark.peer
def test_push_and_pull(pyctr: Pyctr, tmp_path: Path) -> None:
    with running_registry(tmp_path) as registry:
        target = f"{registry}/team/demo:1"
        assert pyctr("image", "push", "demo", target).strip() == target
        assert pyctr("-n", "puller", "image", "pull", target).strip() == target
        pyctr("-n", "puller", "image", "rm", target)
        done = pyctr.run("-n", "puller", "run", "--rm", "--network", "none", target, "echo", "pulled")
        assert done.stdout == "pulled\n"
        assert "Unable to find image" in done.stderr
        pyctr("-n", "puller", "image", "rm", target)
        assert pyctr("-n", "puller", "content", "fetch", target).strip() == target
        assert pyctr("-n", "puller", "snapshot", "ls", "--format", "{{.Key}}") == ""
        pyctr("-n", "puller", "image", "rm", target)
        missing = pyctr.run("image", "pull", f"{registry}/team/none")
        assert missing.returncode == 1
        assert "not found" in missing.stderr


@pytest.mark.peer
def test_login(pyctr: Pyctr, tmp_path: Path) -> None:
    """Credentials go to the registry that they were stored for, and only while they are."""
    users = tmp_path / "users"
    users.write_text("me:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n")
    with running_registry(tmp_path, users) as registry:
        target = f"{registry}/demo:1"
        assert pyctr.run("image", "push", "demo", target).returncode == 1
        refused = pyctr.run("login", "-u", "me", "--password-stdin", registry, stdin="wrong\n")
        assert refused.returncode == 1
        assert "refuses" in refused.stderr
        pyctr("login", "-u", "me", "--password-stdin", registry, stdin="secret\n")
        pyctr("image", "push", "demo", target)
        pyctr("logout", registry)
        assert pyctr.run("image", "push", "demo", target).returncode == 1


def test_credentials_are_stored_for_their_registry(pyctr: Pyctr) -> None:
    done = pyctr.run("login", "-u", "me", "-p", "secret", "localhost:1")
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert "There were none" in pyctr("logout", "localhost:1")
