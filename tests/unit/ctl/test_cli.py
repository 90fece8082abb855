"""The command tree: what is imported when, help, suggestions, exit codes."""

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pyctr import cli


def pyctr(*arguments: str, address: str = "/nonexistent/socket") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyctr", "--address", address, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_every_command_is_where_the_table_says() -> None:
    for name, (module, attribute, _) in cli._ROOT.items():
        command = getattr(importlib.import_module(f"pyctr.commands.{module}"), attribute)
        assert isinstance(command, click.Command), name
        assert command.name in (name, None) or name == command.name.rstrip("_")
        assert command.help, name


def _commands() -> Iterator[tuple[str, click.Command]]:
    """Yield all commands with what is typed for them."""
    for name in cli._ROOT:
        command = cli.root.get_command(click.Context(cli.root), name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {verb}", one) for verb, one in command.commands.items())


def test_help_fits_into_80_columns_and_says_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name, command in _commands():
        text = CliRunner().invoke(cli.root, [*name.split(), "--help"]).output
        assert max(map(len, text.splitlines())) <= 80, name
        for line in text.splitlines():
            assert not re.search(r"[a-z]\.\.\.$", line), f"{name}: cut off: {line}"
            assert not re.search(r"--[\w-]+ (TEXT|INTEGER|FLOAT)", line), f"{name}: a value of which kind? {line}"
        if isinstance(command, click.Group):
            _, _, verbs = cli._ROOT[name][2].partition(": ")
            assert set(verbs.split("|")) == set(command.commands), name


@pytest.mark.parametrize("word", sorted(cli._DOCKERS))
def test_dockers_words_are_translated(word: str) -> None:
    done = pyctr(word)
    assert done.returncode == 2
    assert cli._DOCKERS[word] in done.stderr


def test_short_names_lead_somewhere() -> None:
    for name, path in cli._ALIASES.items():
        command = cli.root.get_command(click.Context(cli.root), name)
        assert command is not None
        assert command.name == path[1]


@pytest.mark.parametrize(("option", "reason"), [("-p", "--network host"), ("--publish", "publish"), ("--nope", "")])
def test_an_option_of_dockers_that_is_not_there_says_why(option: str, reason: str) -> None:
    done = pyctr("run", option, "x", "image")
    assert done.returncode == 125
    assert option in done.stderr
    assert reason in done.stderr
    assert ("There is no" in done.stderr) == bool(reason)


def test_help_imports_no_command() -> None:
    code = (
        "import sys; from pyctr.entry import run; sys.argv = ['pyctr', '--help']\n"
        "assert run() == 0\n"
        "heavy = {'grpc', 'rich', 'google.protobuf', 'asyncio'} & set(sys.modules)\n"
        "loaded = [name for name in sys.modules if name.startswith('pyctr.commands.')]\n"
        "sys.exit(f'{heavy} {loaded}' if heavy or loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "from-host" in done.stdout


def test_running_a_container_imports_neither_grpc_nor_rich() -> None:
    code = (
        "import sys, pyctr.commands.run, pyctr.commands.exec\n"
        "sys.exit(str({'grpc', 'rich', 'asyncio', 'http', 'urllib.request'} & set(sys.modules) or 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip() == "0"


@pytest.mark.parametrize("command", ["run", "exec", "create"])
def test_usage_errors_of_docker_have_dockers_code(command: str) -> None:
    done = pyctr(command, "--no-such-option")
    assert done.returncode == 125
    assert "No such option" in done.stderr


@pytest.mark.parametrize(
    "arguments", [("run", "--memory"), ("create", "--rm=maybe", "image"), ("exec", "-e"), ("run", "--rm", "--name")]
)
def test_a_value_too_few_or_too_many_has_dockers_code(arguments: tuple[str, ...]) -> None:
    done = pyctr(*arguments)
    assert done.returncode == 125
    assert done.stderr.startswith(f"Usage: pyctr {arguments[0]} ")


def test_only_what_people_type_is_suggested() -> None:
    error = pyctr("run", "--privilege").stderr
    assert "--privileged" in error
    assert ":" not in error.partition("Did you mean")[2].replace("one of:", "")


@pytest.mark.parametrize("noun", ["namespace", "lease"])
def test_what_docker_does_not_know_has_the_usual_code(noun: str) -> None:
    assert pyctr(noun, "create", "--no-such-option").returncode == 2


def test_other_usage_errors() -> None:
    done = pyctr("rnu")
    assert done.returncode == 2
    assert "Did you mean 'run'?" in done.stderr


def test_without_a_daemon_the_error_says_what_to_do() -> None:
    done = pyctr("ps")
    assert done.returncode == 1
    assert "is pyctrd running?" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_clients_version_needs_no_daemon() -> None:
    done = pyctr("version")
    assert done.returncode == 1
    assert done.stdout.startswith("Client:\n  Version:")
    assert "is pyctrd running?" in done.stderr


def test_addresses_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for names, address, namespace in (
        ({}, "/run/pyctr/pyctrd.sock", "default"),
        ({"CONTAINERD_ADDRESS": "/c", "CONTAINERD_NAMESPACE": "cn"}, "/c", "cn"),
        ({"PYCTR_ADDRESS": "/p", "PYCTR_NAMESPACE": "pn"}, "/p", "pn"),
    ):
        for name, value in names.items():
            monkeypatch.setenv(name, value)
        from pyctr import session

        assert (session.default_address(), session.default_namespace()) == (address, namespace)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    result = CliRunner().invoke(cli.root, ["completion", shell])
    assert result.exit_code == 0, result.output
    assert "_PYCTR_COMPLETE" in result.output


_INTERRUPTED_AT = """
import os, signal, sys
wanted = sys.argv.pop(1)
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
from pyctr.__main__ import main
main()
"""


@pytest.mark.parametrize("module", ["pyctr_wire.standard_streams", "pyctr.entry", "click", "pyctr.commands.run"])
def test_an_interrupt_while_modules_are_loaded(module: str) -> None:
    """It waits until they are: no trace, and none of them half made."""
    command = [sys.executable, "-c", _INTERRUPTED_AT, module, "--address", "/nonexistent", "run", "image"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "pyctr: interrupted")
