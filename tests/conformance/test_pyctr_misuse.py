"""`pyctr` as careless users and scripts call it: each mistake is answered, and nothing is left of it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemon_process import wait_until
from support.pyctr_command import TIMEOUT, Pyctr
from support.terminal_session import TerminalSession

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

PROGRAMS = ("sh", "cat", "echo", "id", "sleep", "stat", "true")


@pytest.mark.parametrize(
    ("closed", "out", "err"),
    [("<&-", "out\n", "err\n"), (">&-", "", "err\n"), ("2>&-", "out\n", ""), ("<&- >&- 2>&-", "", "")],
)
def test_a_closed_stream_is_an_empty_one(pyctr: Pyctr, closed: str, out: str, err: str) -> None:
    """The connection to the daemon must not take its number: its bytes would be the container's input or output."""
    script = "cat; echo out; echo err >&2; exit 3"
    done = pyctr.run(
        "run", "--rm", "-i", "--network", "none", "demo", "sh", "-c", script,
        wrapper=("sh", "-c", f'exec "$@" {closed}', "sh"),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (3, out, err)


def test_text_that_is_not_utf8(pyctr: Pyctr, name: str) -> None:
    """The wire carries text only; Python hands such bytes on as lone surrogates."""
    done = pyctr.run("run", "--name", name, "demo", "echo", "\udcff")
    assert done.returncode == 125
    assert "not UTF-8" in done.stderr
    assert "not UTF-8" in pyctr.run("exec", name, "\udcff").stderr
    done = pyctr.run("ps", "--filter", "name=\udcff")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert "Traceback" not in pyctr.run("image", "tag", "demo", "\udcff").stderr


@pytest.mark.parametrize("missing", [False, True])
def test_a_file_for_the_id_that_cannot_be_written(pyctr: Pyctr, name: str, tmp_path: Path, missing: bool) -> None:
    place = tmp_path / "nowhere" / "id" if missing else tmp_path / "id"
    if not missing:
        place.write_text("of another")
    done = pyctr.run("create", "--name", name, "--cidfile", str(place), "demo")
    assert done.returncode == 125
    assert str(place) in done.stderr
    assert pyctr.is_gone(name)


def test_a_file_for_the_id_goes_if_there_is_none(pyctr: Pyctr, name: str, tmp_path: Path) -> None:
    place = tmp_path / "id"
    assert (
        pyctr.run("create", "--name", name, "--cidfile", str(place), "--user", "nobody-here", "demo").returncode == 125
    )
    assert not place.exists()
    assert pyctr("create", "--name", name, "--cidfile", str(place), "demo").strip() == place.read_text()


def test_directories_that_were_made_for_nothing_go_again(pyctr: Pyctr, name: str, tmp_path: Path) -> None:
    arguments = ("create", "--name", name, "-v", f"{tmp_path}/a/b:/x", "-v", f"{tmp_path}/a/c:/y")
    assert pyctr.run(*arguments, "--user", "nobody-here", "demo").returncode == 125
    assert list(tmp_path.iterdir()) == []
    pyctr(*arguments, "demo")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["b", "c"]


def test_another_platform_than_the_images(pyctr: Pyctr, name: str) -> None:
    other = "linux/s390x"
    done = pyctr.run("run", "--rm", "--name", name, "--platform", other, "demo", "true")
    assert done.returncode == 125
    assert f"not for {other}" in done.stderr


def test_a_container_that_runs_can_be_started(pyctr: Pyctr, name: str) -> None:
    """There is nothing to do, or only to attach: as with docker."""
    pyctr("run", "-d", "-i", "--network", "none", "--name", name, "demo", "sh", "-c", "read line; echo $line; exit 4")
    assert pyctr("start", name) == f"{name}\n"
    done = pyctr.run("start", "-a", "-i", name, stdin="said\n")
    assert (done.returncode, done.stdout) == (4, "said\n")


@pytest.mark.parametrize(
    ("way", "command"),
    [
        *(("create", command) for command in ("pause", "unpause", "kill", "top", "attach", "stats", "exec")),
        *(("run", command) for command in ("kill", "top", "attach", "stats", "exec")),
    ],
)
def test_a_container_that_does_not_run_is_called_by_its_name(pyctr: Pyctr, name: str, way: str, command: str) -> None:
    """Neither one that was only made, nor one that has ended."""
    pyctr(way, "--network", "none", "--name", name, "demo", "true")
    done = pyctr.run(command, name, *(("true",) if command == "exec" else ()))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"pyctr: container {name} is not running\n")


def test_what_is_wrong_with_an_exec_in_a_container_that_runs_is_told(pyctr: Pyctr, name: str) -> None:
    script = "x=12345678; while [ ${#x} -lt 2000000 ]; do x=$x$x; done; echo $x >/etc/passwd; echo done; sleep 100"
    pyctr("run", "-d", "--network", "none", "--name", name, "demo", "sh", "-c", script)
    wait_until(lambda: pyctr("logs", name) == "done\n", "it is written")
    done = pyctr.run("exec", "--user", "somebody", name, "true")
    assert (done.returncode, done.stdout) == (1, "")
    assert "/etc/passwd in the image is larger than" in done.stderr


def test_figures_of_what_runs_are_shown_beside_what_does_not(pyctr: Pyctr, name: str) -> None:
    pyctr("create", "--network", "none", "--name", name, "demo")
    pyctr("run", "-d", "--network", "none", "--name", f"{name}-new", "demo", "sleep", "100")
    done = pyctr.run("stats", "--no-stream", "--format", "{{.Name}}", name, f"{name}-new")
    assert (done.returncode, done.stdout) == (1, f"{name}-new\n")
    assert done.stderr == f"pyctr: container {name} is not running\n"


# Runs `pyctr` with a signal as it calls the daemon's METHOD, or as the answer has come.
_INTERRUPTED = """
import os, signal, sys
from pyctr.connection import Connection
number, when, wanted = int(sys.argv[1]), *sys.argv[2:4]
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests may run below nohup
del sys.argv[1:4]
call = Connection.call
interrupted = False
def interrupt():
    global interrupted
    interrupted = True
    os.kill(os.getpid(), number)
def calling(self, service, method, *rest, **options):
    if interrupted and number != signal.SIGINT:  # again, while all is undone: a terminal's end is told twice
        interrupt()
    if (when, method) == ("before", wanted):
        interrupt()
    answer = call(self, service, method, *rest, **options)
    if (when, method) == ("after", wanted):
        interrupt()
    return answer
Connection.call = calling
from pyctr.__main__ import main
main()
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("command", "method"),
    [("run", "RunSpec"), ("run", "Create"), ("run", "Attach"), ("run", "Start"), ("create", "RunSpec")],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_before_a_container_runs_leaves_none(
    pyctr: Pyctr, name: str, number: signal.Signals, when: str, command: str, method: str
) -> None:
    arguments = (command, "--rm", "--name", name, "--network", "none", "demo", "sleep", "100")
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, str(int(number)), when, method, *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False, env=pyctr.environment,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.strip()) == (128 + number, "", "pyctr: interrupted")
    assert pyctr.is_gone(name)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", ["Exec", "Attach", "Start"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_before_an_exec_runs_leaves_none(
    pyctr: Pyctr, name: str, number: signal.Signals, when: str, method: str
) -> None:
    id = pyctr("run", "-d", "--name", name, "--network", "none", "demo", "sleep", "100").strip()
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, str(int(number)), when, method, "exec", name, "sleep", "200"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False, env=pyctr.environment,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.strip()) == (128 + number, "", "pyctr: interrupted")
    assert "sleep 200" not in pyctr("top", name)
    assert not list((pyctr.daemon.state / "tasks/default" / id).glob("execs/*.json"))
    pyctr("rm", "-f", name)


# Runs `pyctr` with a daemon of that PID, which dies as it answers RunSpec.
_BEREAVED = """
import os, signal, sys
from pyctr.connection import Connection
from pyctr.http2 import ConnectionLost
daemon = int(sys.argv.pop(1))
call = Connection.call
def calling(self, service, method, *rest, **options):
    answer = call(self, service, method, *rest, **options)
    if method == "RunSpec":
        os.kill(daemon, signal.SIGKILL)
        raise ConnectionLost("the daemon closed the connection")
    return answer
Connection.call = calling
from pyctr.__main__ import main
main()
"""


@pytest.mark.parametrize("command", ["run", "create"])
def test_a_container_whose_making_was_not_answered_goes(pyctr: Pyctr, name: str, command: str) -> None:
    """Nobody was told its id; the next daemon removes it for whoever waits."""
    daemon = pyctr.daemon
    with subprocess.Popen(
        [sys.executable, "-c", _BEREAVED, str(daemon.pid), command, "--name", name, "--network", "none", "demo"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=pyctr.environment,
    ) as client:  # fmt: skip
        daemon.wait_ended()
        daemon.start()
        out, err = client.communicate(timeout=TIMEOUT)
    assert (client.returncode, out, err) == (125, "", "pyctr: the daemon closed the connection: unavailable\n")
    assert pyctr.is_gone(name)


def test_a_frozen_container_is_named_with_the_remedy(pyctr: Pyctr, name: str) -> None:
    """Nobody would get out of an attached session again: the container takes no signal and no key."""
    pyctr("run", "-d", "--network", "none", "--name", name, "demo", "sleep", "100")
    pyctr("pause", name)
    for command in (("exec", name, "true"), ("attach", name)):
        done = pyctr.run(*command)
        assert (done.returncode, done.stderr) == (1, f"pyctr: container {name} is paused: pyctr unpause {name}\n")
    pyctr("unpause", name)
    pyctr("exec", name, "true")


def test_a_process_does_not_write_to_the_terminal_of_who_lists_it(pyctr: Pyctr, name: str) -> None:
    """Its command line is its own to choose: no colours, no lines that look like other processes."""
    pyctr("run", "-d", "--network", "none", "--name", name, "demo", "sh", "-c", "sleep 100; : \x1b[31m\n1 0 0 fake")
    lines = pyctr("top", name).splitlines()
    assert len(lines) == 3  # the title, the shell, sleep
    assert "sleep 100; : ?[31m?1 0 0 fake" in lines[1]


def test_what_is_not_there_does_not_hide_what_is(pyctr: Pyctr, name: str) -> None:
    pyctr("create", "--network", "none", "--name", name, "demo")
    done = pyctr.run("inspect", "no-such", name)
    assert [one["Name"] for one in json.loads(done.stdout)] == [name]
    assert (done.returncode, done.stderr) == (1, "pyctr: no such container or image: no-such\n")
    for kind in (("inspect",), ("image", "inspect"), ("volume", "inspect")):
        done = pyctr.run(*kind, "-f", "{{.Name}}", "no-such")
        assert (done.returncode, done.stdout) == (1, ""), kind


def test_a_wait_for_what_is_not_there_does_not_hide_how_others_ended(pyctr: Pyctr, name: str) -> None:
    pyctr.run("run", "--network", "none", "--name", name, "demo", "sh", "-c", "exit 7")
    pyctr("create", "--network", "none", "--name", f"{name}-new", "demo")
    done = pyctr.run("wait", "no-such", name, f"{name}-new", name)
    assert (done.returncode, done.stdout) == (1, "7\n7\n")
    assert done.stderr == f"pyctr: no such container: no-such\npyctr: container {name}-new is not running\n"


def test_names_are_found_by_docker_expressions(pyctr: Pyctr, name: str) -> None:
    container = pyctr("create", "--network", "none", "--name", name, "demo")[:12]
    for expression in (name, f"^{name}$", f"^/{name}$", f"^/?{name[:-1]}[0-9]+$"):
        assert container in pyctr("ps", "-aq", "--filter", f"name={expression}").split(), expression
    assert pyctr("ps", "-aq", "--filter", f"name=^{name[1:]}") == ""
    for expression, reason in (
        ("a[", "name=a[: unterminated character set"),
        ("a{99999999999}", "name=a{99999999999}: the repetition number is too large"),
        ("(" * 5000, "maximum recursion depth exceeded"),
    ):
        done = pyctr.run("ps", "--filter", f"name={expression}")
        assert done.returncode == 2
        assert reason in done.stderr
        assert "Traceback" not in done.stderr


def test_a_state_that_there_is_not(pyctr: Pyctr) -> None:
    """An empty list would tell a script that nothing runs."""
    done = pyctr.run("ps", "-a", "--filter", "status=runing")
    assert done.returncode == 2
    assert "running" in done.stderr


def test_an_archive_that_is_none_is_named(pyctr: Pyctr, tmp_path: Path) -> None:
    place = tmp_path / "archive"
    place.write_text("no archive\n" * 100)
    done = pyctr.run("image", "import", str(place))
    assert done.returncode == 1
    assert done.stderr.startswith(f"pyctr: {place}: ")
    assert "standard input: " in pyctr.run("image", "import", "-", stdin=place.read_text()).stderr


def test_credentials_without_a_terminal(pyctr: Pyctr) -> None:
    done = pyctr.run("login", "localhost:1")
    assert done.returncode == 1
    assert "--password-stdin" in done.stderr


def test_templates_for_what_is_inspected(pyctr: Pyctr) -> None:
    assert pyctr("image", "inspect", "--format", "{{.Name}}", "demo", "demo") == "docker.io/library/demo:latest\n" * 2


@pytest.mark.parametrize("state", ["created", "running", "exited"])
def test_a_template_finds_what_is_not_yet(pyctr: Pyctr, name: str, state: str) -> None:
    command = ("create",) if state == "created" else ("run",) if state == "exited" else ("run", "-d")
    pyctr(*command, "--network", "none", "--name", name, "demo", "sleep", "100" if state == "running" else "0")
    fields = ("Status", "ExitCode", "OOMKilled", "FinishedAt", "StartedAt", "Pid")
    found = pyctr("inspect", "-f", " ".join(f"{{{{.State.{field}}}}}" for field in fields), name).split()
    assert found[:3] == [state, "0", "false"]
    never = "0001-01-01T00:00:00Z"
    assert [field == never for field in found[3:5]] == [state != "exited", state == "created"]
    assert (found[5] == "0") == (state != "running")


def test_a_volume_name_that_cannot_be_is_told_first(pyctr: Pyctr, name: str) -> None:
    """Not that what the image has at its target is a file."""
    done = pyctr.run("create", "--name", name, "-v", f"{name}:/new", "-v", "bad/name:/bin/sh", "demo")
    assert done.returncode == 125
    assert "volume name 'bad/name'" in done.stderr
    assert name not in pyctr("volume", "ls", "-q").split()


def test_a_name_that_a_container_has_already(pyctr: Pyctr, name: str) -> None:
    pyctr("create", "--network", "none", "--name", name, "demo")
    done = pyctr.run("rename", name, name)
    assert (done.returncode, done.stderr) == (
        1,
        f"pyctr: the container has the name '{name}' already: invalid argument\n",
    )


def test_output_that_cannot_be_written(pyctr: Pyctr, name: str) -> None:
    """It is pyctr that failed, as its help says: with 125 from docker's commands."""
    pyctr("run", "-d", "--network", "none", "--name", name, "demo", "sleep", "100")
    new = ("--network", "none", "--name", f"{name}-new", "demo", "echo", "said")
    for command, code in (
        (("run", "--rm", *new), 125), (("create", *new), 125), (("exec", name, "echo", "said"), 125), (("ps",), 1),
    ):  # fmt: skip
        done = pyctr.run(*command, wrapper=("sh", "-c", 'exec "$@" > /dev/full', "sh"))
        assert (done.returncode, done.stderr) == (code, "pyctr: No space left on device\n"), command
        if command[0] == "run":
            wait_until(lambda: pyctr.is_gone(f"{name}-new"), "it is removed")


def test_a_restart_is_not_the_end_of_a_container_with_rm(pyctr: Pyctr, name: str) -> None:
    pyctr("run", "-d", "--rm", "--network", "none", "--name", name, "demo", "sleep", "100")
    pyctr("restart", "-t", "0", name)
    assert pyctr.state(name) == "running"
    pyctr("kill", name)
    wait_until(lambda: pyctr.is_gone(name), "it is removed")


def test_a_log_that_cannot_be_written_is_no_missing_program(pyctr: Pyctr, name: str) -> None:
    """Docker's 127 is for a program that is not there; "No such file or directory" is said of other things too."""
    arguments = ("--name", name, "--network", "none", "--sysctl", "net.nonsense.value=1", "demo", "true")
    done = pyctr.run("run", *arguments)
    assert done.returncode == 125
    assert "No such file or directory" in done.stderr


@pytest.fixture
def bash(pyctr: Pyctr, name: str, tmp_path: Path) -> Iterator[TerminalSession]:
    """A real one that completes our commands, in a folder of its own, and prints those it would run, as <ARGUMENTS>."""
    (tmp_path / "settings.env").touch()
    (tmp_path / "script").write_text(pyctr("completion", "bash"))
    pyctr("create", "--network", "none", "--name", name, "demo")
    pyctr("volume", "create", "stuff")
    for tag in ("demo:first", "demo:second"):
        pyctr("tag", "demo", tag)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with TerminalSession(
        ["bash", "--norc", "--noprofile", "-i"], {**pyctr.environment, "PATH": path, "TERM": "dumb"}, (24, 200)
    ) as session:
        session.type(f"cd {tmp_path}; . ./script; pyctr() {{ echo \"<$*>\"; }}; echo rea'd'y\n")
        session.expect("ready")
        yield session
        session.type("exit\n")
        assert session.wait() == 0
    pyctr("rmi", "demo:first", "demo:second")
    pyctr("volume", "rm", "stuff")


@pytest.mark.parametrize(
    ("typed", "whole"),
    [
        ("run demo:fi", "run demo:first"),
        ("run 'demo:fi", "run demo:first"),
        ("run --rm demo:s", "run --rm demo:second"),
        ("pul", "pull"),
        ("rmi demo:f", "rmi demo:first"),
        ("tag demo:s", "tag demo:second"),
        ("image import sett", "image import settings.env"),
        ("image export -o ./sett", "image export -o ./settings.env"),
        ("exec --env-file se", "exec --env-file settings.env"),
        ("run --env-file=se", "run --env-file=settings.env"),
        ("run --cidfile se", "run --cidfile settings.env"),
        ("run -v ./se", "run -v ./settings.env"),
        ("run -v st", "run -v stuff"),
        ("run --network ho", "run --network host"),
        ("run --network=ho", "run --network=host"),
        ("run --log-driver jo", "run --log-driver journald"),
        ("update --restart al", "update --restart always"),
        ("inspect demo:f", "inspect demo:first"),
        ("namespace rm defa", "namespace rm default"),
        ("-n defa", "-n default"),
    ],
)
def test_bash_completes(bash: TerminalSession, typed: str, whole: str) -> None:
    bash.type(f"pyctr {typed}\t\n")
    bash.expect("<")
    assert bash.expect(">") == f"{whole}>"


def test_bash_completes_names(pyctr: Pyctr, bash: TerminalSession, name: str) -> None:
    """Of what has none before it is there."""
    digest = pyctr("content", "ls", "-q").split()[0]
    chain = pyctr("snapshot", "ls", "--no-trunc", "--format", "{{.Key}}").split()[0]
    pyctr("lease", "create", "--id", "for-a-while")
    for command, whole in (
        ("why", name), ("inspect", name), ("content rm", digest), ("snapshot rm", chain), ("lease rm", "for-a-while"),
    ):  # fmt: skip
        bash.type(f"pyctr {command} {whole[:-1]}\t\n")
        bash.expect("<")
        assert bash.expect(">") == f"{command} {whole}>"
    pyctr("lease", "rm", "for-a-while")


def test_shells_complete_names(pyctr: Pyctr, name: str) -> None:
    pyctr("create", "--network", "none", "--name", name, "demo")

    def complete(*words: str) -> list[str]:
        variables = {
            "_PYCTR_COMPLETE": "bash_complete",
            "COMP_WORDS": "\n".join(words),
            "COMP_CWORD": str(len(words) - 1),
        }
        done = pyctr.run(wrapper=("env", *(f"{key}={value}" for key, value in variables.items())))
        assert done.returncode == 0, done.stderr
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line]

    assert complete("pyctr", "stop", name[:-1]).count(name) == 1
    assert complete("pyctr", "exec", name) == [name]
    assert complete("pyctr", "run", "de") == ["demo:latest"]
    assert complete("pyctr", "image", "rm", "no-such") == []
    assert complete("pyctr", "--address", "/nonexistent", "stop", "x") == []
