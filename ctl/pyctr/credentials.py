"""Registry credentials in docker's configuration file, and the helper programs that it names.

A credential is only ever looked up for the host that asks. Source: docker's config.json and
credential helper documentation.
"""

import base64
import binascii
import json
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyctr.errors import CommandError

_DOCKER_HUB: Final = "https://index.docker.io/v1/"
_HELPER_TIMEOUT: Final = 30.0  # seconds
_HELPER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_TOKEN_USER: Final = "<token>"  # noqa: S105 - the name that says that the secret is a token


@dataclass(frozen=True, slots=True)
class Credential:
    """A user and password, or with no user an identity token."""

    username: str
    secret: str


def config_path() -> Path:
    """Return where docker's configuration file is."""
    folder = os.environ.get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path.home() / ".docker") / "config.json"


def host_of(registry: str) -> str:
    """Return the host, with its port, in a registry's name or URL."""
    name = registry.strip().lower()
    return (name.partition("://")[2] or name).partition("/")[0]


def key_of(registry: str) -> str:
    """Return the name under which a registry's credentials are kept."""
    host = host_of(registry)
    return _DOCKER_HUB if host in ("docker.io", "index.docker.io", "registry-1.docker.io") else host


def _read() -> dict[str, Any]:
    path = config_path()
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot read {path}: {error}") from None
    if not isinstance(document, dict):
        raise CommandError(f"{path} is not a JSON object")
    for name in ("auths", "credHelpers"):
        if not isinstance(document.get(name) or {}, dict):
            raise CommandError(f"{path}: {name} is not a JSON object")
    return document


def _names(document: dict[str, Any], section: str, key: str) -> list[str]:
    """Return the names in a section that mean the registry with this key: other programs write URLs too."""
    return [name for name in document.get(section) or {} if key_of(name) == key]


def _write(document: dict[str, Any]) -> None:
    """Replace the file at once; whatever else is in it stays."""
    path = config_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".config-", delete=False) as file:
        json.dump(document, file, indent=8)
    Path(file.name).replace(path)


def _helper(document: dict[str, Any], key: str) -> str:
    own = [document["credHelpers"][name] for name in _names(document, "credHelpers", key)]
    return str(next(iter(own), "") or document.get("credsStore") or "")


def _ask_helper(helper: str, action: str, text: str) -> str | None:
    """Run a credential helper; None if it has nothing. Raises CommandError if it fails."""
    program = f"docker-credential-{helper}"
    if not _HELPER_NAME.fullmatch(helper):
        raise CommandError(f"{config_path()}: {helper!r} is not the name of a credential helper")
    try:
        done = subprocess.run(
            [program, action], input=text, capture_output=True, text=True, timeout=_HELPER_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandError(f"credential helper {program}: {error}") from None
    if done.returncode == 0:
        return done.stdout
    if "credentials not found" in done.stdout:  # the helpers' protocol has no other way to say it
        return None
    raise CommandError(f"credential helper {program} {action}: {done.stdout.strip() or done.stderr.strip()}")


def find(host: str) -> Credential | None:
    """Return the credential for a registry, None if there is none."""
    document = _read()
    key = key_of(host)
    helper = _helper(document, key)
    if helper:
        answer = _ask_helper(helper, "get", key)
        if answer is None:
            return None
        try:
            fields = json.loads(answer)
            username, secret = str(fields["Username"]), str(fields["Secret"])
        except (ValueError, KeyError, TypeError):
            raise CommandError(f"credential helper docker-credential-{helper} get: it answers with nonsense") from None
        return Credential("" if username == _TOKEN_USER else username, secret)
    entry = next((document["auths"][name] for name in _names(document, "auths", key)), None)
    if not isinstance(entry, dict):
        return None
    if entry.get("identitytoken"):
        return Credential("", str(entry["identitytoken"]))
    try:
        username, _, password = base64.b64decode(entry.get("auth", ""), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, TypeError):
        raise CommandError(f"the credentials for {host} in {config_path()} are damaged: log in again") from None
    return Credential(username, password) if username else None


def store(host: str, credential: Credential) -> str:
    """Keep a credential; return where."""
    document = _read()
    key = key_of(host)
    helper = _helper(document, key)
    if helper:
        fields = {"ServerURL": key, "Username": credential.username, "Secret": credential.secret}
        _ask_helper(helper, "store", json.dumps(fields))
        return f"docker-credential-{helper}"
    auth = base64.b64encode(f"{credential.username}:{credential.secret}".encode()).decode()
    document["auths"] = (document.get("auths") or {}) | {key: {"auth": auth}}
    _write(document)
    return str(config_path())


def forget(host: str) -> bool:
    """Remove a registry's credential; tell whether there was one."""
    document = _read()
    key = key_of(host)
    helper = _helper(document, key)
    if helper:
        return _ask_helper(helper, "erase", key) is not None
    names = _names(document, "auths", key)
    if not names:
        return False
    for name in names:
        del document["auths"][name]
    _write(document)
    return True
