"""`pyctr` as careless users and scripts call it: each mistake is answered, and nothing is left of it."""

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
