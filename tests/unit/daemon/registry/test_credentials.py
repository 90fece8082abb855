"""Credentials: found for the host that they are stored for, and for no other."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from pyctr_wire.errors import FailedPrecondition, InvalidArgument
from pyctrd.offload import Offload
from pyctrd.registry.credentials import Credentials, configured, docker_file, first_of, from_docker_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def write(path: Path, **document: Any) -> None:
    path.write_text(json.dumps(document))


def auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def helper(directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    """Put a credential helper into PATH."""
    program = directory / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


def test_no_file_knows_nobody(config: Path) -> None:
    assert from_docker_config(config, "example.com") is None


@pytest.mark.parametrize(
    ("entry", "credentials"),
    [
        (auth("me", "pa:ss"), Credentials("me", "pa:ss")),
        ({"username": "me", "password": "pass"}, Credentials("me", "pass")),
        ({"identitytoken": "token", **auth("me", "")}, Credentials(secret="token")),
        ({"registrytoken": "token"}, Credentials(header="Bearer token")),
        ({"identitytoken": 5}, Credentials(secret="5")),
        ({"username": 5, "password": 6}, Credentials("5", "6")),
        ({}, None),
    ],
)
def test_the_forms_of_an_entry(config: Path, entry: dict[str, Any], credentials: Credentials | None) -> None:
    write(config, auths={"example.com": entry})

    assert from_docker_config(config, "example.com") == credentials


@pytest.mark.parametrize(
    ("stored", "asked", "found"),
    [
        ("https://index.docker.io/v1/", "registry-1.docker.io", True),
        ("https://index.docker.io/v1/", "docker.io", True),
        ("https://example.com/v2/", "example.com", True),
        ("example.com:5000", "example.com:5000", True),
        ("example.com", "example.com:5000", False),
        ("example.com", "evil.example.com", False),
        ("example.com", "example.com.evil.org", False),
        ("docker.io", "example.com", False),
    ],
)
def test_a_host_gets_its_own_and_no_other_ones(config: Path, stored: str, asked: str, found: bool) -> None:
    write(config, auths={stored: auth("me", "pass")})

    assert (from_docker_config(config, asked) is not None) == found


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"auths":["h"]}',
        '{"auths":{"h":{"auth":"%%%"}}}',
        '{"auths":{"h":5}}',
        '{"credsStore":"../sh"}',
        "[" * 9999,
    ],
)
def test_a_broken_file_is_named(config: Path, text: str) -> None:
    config.write_text(text)

    with pytest.raises(FailedPrecondition, match=r"config\.json"):
        from_docker_config(config, "h")


def test_a_helper_is_asked_for_the_host(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, monkeypatch, "own", 'read -r host; echo "{\\"Username\\":\\"$host\\",\\"Secret\\":\\"$1\\"}"')
    write(config, credHelpers={"example.com": "own"}, auths={"other.com": auth("me", "pass")})

    assert from_docker_config(config, "example.com") == Credentials("example.com", "get")
    assert from_docker_config(config, "other.com") == Credentials("me", "pass")


def test_docker_hub_has_a_name_of_its_own_for_helpers(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(tmp_path, monkeypatch, "own", 'read -r host; echo "{\\"Username\\":\\"<token>\\",\\"Secret\\":\\"$host\\"}"')
    write(config, credsStore="own")

    assert from_docker_config(config, "registry-1.docker.io") == Credentials(secret="https://index.docker.io/v1/")


def test_a_helper_with_nothing_stored_leaves_it_to_the_file(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(tmp_path, monkeypatch, "empty", "echo credentials not found in native keychain; exit 1")
    write(config, credsStore="empty", auths={"example.com": auth("me", "pass")})

    assert from_docker_config(config, "example.com") == Credentials("me", "pass")
    assert from_docker_config(config, "other.com") is None


@pytest.mark.parametrize("script", ["echo locked >&2; exit 1", "echo nonsense"])
def test_a_helper_that_fails_is_an_error(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    helper(tmp_path, monkeypatch, "broken", script)
    write(config, credsStore="broken")

    with pytest.raises(FailedPrecondition):
        from_docker_config(config, "example.com")


def test_a_helper_that_is_not_there_is_an_error(config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    write(config, credsStore="absent")

    with pytest.raises(FailedPrecondition, match="docker-credential-absent"):
        from_docker_config(config, "example.com")


async def test_the_configuration_comes_before_the_file(config: Path) -> None:
    offload = Offload(1)
    write(config, auths={"a.com": auth("file", "x"), "b.com": auth("file", "x")})
    ours = configured({"https://a.com/": Credentials("configured", "x")})

    found = [await first_of(ours, docker_file(offload.run, config))(host, ()) for host in ("a.com", "b.com", "c.com")]

    assert [one and one.username for one in found] == ["configured", "file", None]
    offload.close()


def test_secrets_do_not_show() -> None:
    assert "hunter2" not in repr(Credentials("me", "hunter2", "Bearer hunter2"))


def test_a_header_cannot_bring_another_one() -> None:
    with pytest.raises(InvalidArgument):
        Credentials(header="Bearer x\r\nX-Evil: y")
