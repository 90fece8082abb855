"""Credentials in docker's file and its helpers."""

import json
import os
from pathlib import Path

import pytest

from pyctr import credentials
from pyctr.credentials import Credential
from pyctr.errors import CommandError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path / "config.json"


def test_what_is_stored_is_found_by_its_host_alone(config: Path) -> None:
    config.write_text('{"proxies": {"default": {}}}')
    credentials.store("host:5000", Credential("user", "pass:word"))
    assert credentials.find("host:5000") == Credential("user", "pass:word")
    assert credentials.find("host") is None
    assert json.loads(config.read_text())["proxies"] == {"default": {}}
    assert config.stat().st_mode & 0o077 == 0
    assert credentials.forget("host:5000")
    assert not credentials.forget("host:5000")
    assert credentials.find("host:5000") is None


def test_docker_hub_has_a_key_of_its_own(config: Path) -> None:
    credentials.store("docker.io", Credential("u", "p"))
    assert list(json.loads(config.read_text())["auths"]) == ["https://index.docker.io/v1/"]
    assert credentials.find("registry-1.docker.io") == Credential("u", "p")


@pytest.mark.parametrize("name", ["https://Host:5000", "http://host:5000/v2/", "host:5000/"])
def test_registries_may_be_named_by_urls(config: Path, name: str) -> None:
    """By users, and in files that other programs wrote."""
    config.write_text(json.dumps({"auths": {name: {"auth": "dTpw"}}}))
    assert credentials.find("host:5000") == Credential("u", "p")
    assert credentials.forget(name)
    credentials.store(name, Credential("v", "q"))
    assert list(json.loads(config.read_text())["auths"]) == ["host:5000"]
    assert credentials.find("host:5000") == Credential("v", "q")


def test_identity_tokens(config: Path) -> None:
    config.write_text(json.dumps({"auths": {"h": {"identitytoken": "t"}}}))
    assert credentials.find("h") == Credential("", "t")


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"auths": {"h": {"auth": "?"}}}', '{"auths": 5}', '{"auths": {"h": {"auth": 5}}}']
)
def test_damaged_files_are_named(config: Path, text: str) -> None:
    config.write_text(text)
    with pytest.raises(CommandError, match=r"config\.json"):
        credentials.find("h")


def test_helpers(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-fake"
    helper.write_text(
        "#!/bin/sh\nread host\n"
        'case $1-$host in get-known) echo \'{"ServerURL":"known","Username":"<token>","Secret":"s"}\';;\n'
        'get-broken) echo boom; exit 1;; get-*) echo "credentials not found in native keychain"; exit 1;; esac\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    config.write_text('{"credsStore": "fake", "auths": {"other": {"auth": "dTpw"}}}')
    assert credentials.find("known") == Credential("", "s")
    assert credentials.find("other") is None
    with pytest.raises(CommandError, match="boom"):
        credentials.find("broken")


@pytest.mark.parametrize("answer", ["nonsense", "[]", '{"Username": "u"}'])
def test_a_helper_that_answers_with_nonsense(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    program = tmp_path / "docker-credential-odd"
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    config.write_text('{"credsStore": "odd"}')

    with pytest.raises(CommandError, match="docker-credential-odd"):
        credentials.find("h")


@pytest.mark.parametrize("name", ["../../bin/x", "a\\u0000", "-x"])
def test_what_is_no_name_of_a_helper_is_not_run(config: Path, name: str) -> None:
    config.write_text(f'{{"credsStore": "{name}"}}')

    with pytest.raises(CommandError, match="not the name of a credential helper"):
        credentials.find("h")
