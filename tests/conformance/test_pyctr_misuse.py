"""`pyctr` as careless users and scripts call it: each mistake is answered, and nothing is left of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.daemon_process import wait_until
from support.pyctr_command import Pyctr

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


@pytest.mark.parametrize("command", ["pause", "unpause", "kill", "top", "attach"])
def test_a_container_that_does_not_run_is_called_by_its_name(pyctr: Pyctr, name: str, command: str) -> None:
    pyctr("create", "--network", "none", "--name", name, "demo")
    done = pyctr.run(command, name)
    assert (done.returncode, done.stderr) == (1, f"pyctr: container {name} is not running\n")


# Runs `pyctr` with an interrupt as it calls the daemon's METHOD, or as the answer has come.
_INTERRUPTED = """
import os, signal, sys
from pyctr.connection import Connection
when, wanted = sys.argv[1:3]
del sys.argv[1:3]
call = Connection.call
def interrupted(self, service, method, *rest, **options):
    if (when, method) == ("before", wanted):
        os.kill(os.getpid(), signal.SIGINT)
    answer = call(self, service, method, *rest, **options)
    if (when, method) == ("after", wanted):
        os.kill(os.getpid(), signal.SIGINT)
    return answer
Connection.call = interrupted
from pyctr.__main__ import main
main()
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", ["RunSpec", "Create", "Attach", "Start"])
def test_an_interrupt_before_a_container_runs_leaves_none(pyctr: Pyctr, name: str, when: str, method: str) -> None:
    arguments = ("run", "--rm", "--name", name, "--network", "none", "demo", "sleep", "100")
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, when, method, *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False, env=pyctr.environment,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "pyctr: interrupted")
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
