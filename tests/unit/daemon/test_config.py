"""The configuration: the example is the defaults, and what is wrong is named."""

from pathlib import Path

import pytest

from pyctrd.__main__ import main
from pyctrd.config.example import render
from pyctrd.config.loading import load, parse
from pyctrd.config.tables import Config, LogLevel
from pyctrd.config.values import ConfigError

EXAMPLE = Path(__file__).parents[3] / "deploy" / "config.toml"


def test_the_example_explains_every_key_and_equals_the_defaults() -> None:
    assert EXAMPLE.read_text() == render(Config()), "run: pyctrd config default > deploy/config.toml"
    assert parse(EXAMPLE.read_text(), "example") == Config()


def test_no_key_in_the_example_lacks_its_comment() -> None:
    lines = EXAMPLE.read_text().splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if " = " in line and not line.startswith("#"):
            assert before.startswith("# "), line


def test_values_are_taken_over() -> None:
    config = parse('state = "/run/x"\n[log]\nlevel = "debug"\n[grpc]\nconnection_age = 5\n', "f")

    assert (config.state, config.log.level, config.grpc.connection_age) == (Path("/run/x"), LogLevel.DEBUG, 5.0)
    assert config.address == "/run/x/pyctrd.sock"
    assert config.ttrpc_address == "/run/x/pyctrd.sock.ttrpc"


def test_an_address_may_be_written_as_clients_write_it() -> None:
    assert parse('[grpc]\naddress = "unix:///run/a.sock"\n', "f").address == "/run/a.sock"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rooot = 1", 'f: unknown key "rooot"; the nearest that there is: "root"'),
        ("[grpc]\nadress = 1", 'f: unknown key "grpc.adress"; the nearest that there is: "grpc.address"'),
        ("[grpc]\nuid = -1", "f: grpc.uid must be at least 0, not -1"),
        ('[grpc]\nuid = "root"', "f: grpc.uid must be a whole number, not 'root'"),
        ("[grpc]\nuid = true", "f: grpc.uid must be a whole number, not True"),
        ("[grpc]\nuid = 1.5", "f: grpc.uid must be a whole number, not 1.5"),
        ("grpc = 3", "f: grpc must be a table, not 3"),
        ("root = 3", "f: root must be a text, not 3"),
        ('root = "var"', 'f: root must be an absolute path, not "var"'),
        ('[log]\nlevel = "loud"', 'f: log.level must be one of debug, info, warning, error, not "loud"'),
        (f'[grpc]\naddress = "/{"a" * 90}"', f'f: grpc.address "/{"a" * 90}" is longer than 90 bytes'),
        ("root =", "f: Invalid value (at end of document)"),
    ],
)
def test_what_is_wrong_is_named(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(text, "f")

    assert str(raised.value) == complaint


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        load(tmp_path / "none.toml")


def test_the_command_prints_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "default"]) == 0
    assert capsys.readouterr().out == EXAMPLE.read_text()


def test_the_command_checks_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[log]\nlevl = 3\n")

    assert main(["--config", str(path), "config", "check"]) == 1
    assert f'{path}: unknown key "log.levl"' in capsys.readouterr().err
    path.write_text(EXAMPLE.read_text())
    assert main(["--config", str(path), "config", "check"]) == 0
    assert main(["config", "check", str(path)]) == 0


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ('[proxy_plugins.overlayfs]\naddress = "/run/x"', "built in"),
        ('[proxy_plugins.far]\naddress = "x"', "absolute"),
        ('[proxy_plugins.far]\ntype = "sandbox"\naddress = "/x"', "snapshot, content"),
        ('[proxy_plugins."a/b"]\naddress = "/x"', "a/b"),
    ],
)
def test_proxy_plugins_that_cannot_be_are_refused(table: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse(table, "config.toml")
