"""Who we are to a registry: from our configuration, else from the client, else from Docker's file and its helpers.

A credential belongs to the host that it was stored for and is never looked up for, or sent to, another one; a mirror
gets the mirror's own. Source: docker config.json; docker-credential-helpers' README.
"""

import base64
import binascii
import json
import re
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from pyctr_wire.errors import FailedPrecondition, InvalidArgument
from pyctrd.core.values import dataclass
from pyctrd.registry.hosts import DOCKER_HUB

_DOCKER_HUB_KEY: Final = "https://index.docker.io/v1/"
_DOCKER_HUB_HOSTS: Final = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})
_HELPER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# Bytes that we read of a config.json or take from a helper; seconds that a helper may take.
_MAX_FILE: Final = 8 << 20
_MAX_ANSWER: Final = 1 << 20
_HELPER_DEADLINE: Final = 30.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """A name and its password; without a name, `secret` is an identity (refresh) token. `header` is sent as it is."""

    username: str = ""
    secret: str = ""
    header: str = ""

    def __post_init__(self) -> None:
        """Raise InvalidArgument for a header that would break out of its line."""
        if not self.header.isprintable():
            raise InvalidArgument("an authorization header must be printable text")

    def __repr__(self) -> str:
        """Never show the secret: values end up in logs and traces."""
        return f"Credentials(username={self.username!r})"


class CredentialSource(Protocol):
    """Finds the credentials for one host, or None. Asked anew for each session with a registry."""

    async def __call__(self, host: str, challenges: tuple[str, ...]) -> Credentials | None:
        """Return what `host` (never another one) may be shown; `challenges` are its WWW-Authenticate headers."""
        ...


Run = Callable[..., Awaitable[Any]]


def configured(logins: Mapping[str, Credentials]) -> CredentialSource:
    """Return a source that knows the hosts of `logins`, from the daemon's configuration."""
    by_host = {canonical_host(host): credentials for host, credentials in logins.items()}

    async def find(host: str, challenges: tuple[str, ...]) -> Credentials | None:
        return by_host.get(canonical_host(host))

    return find


def docker_file(run: Run, path: Path) -> CredentialSource:
    """Return a source that knows what from_docker_config does; `run` takes blocking calls off the event loop."""

    async def find(host: str, challenges: tuple[str, ...]) -> Credentials | None:
        found: Credentials | None = await run(from_docker_config, path, host)
        return found

    return find


def first_of(*sources: CredentialSource) -> CredentialSource:
    """Return a source that asks each of `sources` until one knows the host."""

    async def find(host: str, challenges: tuple[str, ...]) -> Credentials | None:
        for source in sources:
            if found := await source(host, challenges):
                return found
        return None

    return find


def canonical_host(host: str) -> str:
    """Return the one name under which a host's credentials are kept: a URL's host, Docker Hub's many names."""
    name = host.strip().lower()
    name = name.partition("://")[2] or name
    name = name.partition("/")[0]
    return DOCKER_HUB if name in _DOCKER_HUB_HOSTS else name


def from_docker_config(path: Path, host: str) -> Credentials | None:
    """Return what Docker's config.json at `path` knows of `host`; None without a file or an entry. Blocks.

    Raises FailedPrecondition if the file cannot be read or the helper that it names fails.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise FailedPrecondition(f"cannot read {path}: {error}") from error
    try:
        return _find(data, canonical_host(host))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FailedPrecondition(f"{path} is not a valid Docker configuration: {error}") from error


def _find(data: bytes, host: str) -> Credentials | None:
    """Ask as Docker does: the host's own helper, else the default one, else the file."""
    if len(data) > _MAX_FILE:
        raise ValueError(f"it is over {_MAX_FILE} bytes")
    document = json.loads(data)
    helpers = document.get("credHelpers") or {}
    helper = next((helpers[key] for key in helpers if canonical_host(key) == host), document.get("credsStore"))
    if helper and (found := _ask_helper(helper, host)):
        return found
    entries = document.get("auths") or {}
    entry = next((entries[key] for key in entries if canonical_host(key) == host), None)
    return _from_entry(entry) if entry else None


def _from_entry(entry: Mapping[str, str]) -> Credentials | None:
    if token := entry.get("identitytoken"):
        return Credentials(secret=str(token))
    if token := entry.get("registrytoken"):
        return Credentials(header=f"Bearer {token}")
    if encoded := entry.get("auth"):
        try:
            username, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except binascii.Error as error:
            raise ValueError(f"auth is not base64: {error}") from error
        return Credentials(username, password.rstrip("\0"))
    if entry.get("username"):
        return Credentials(str(entry["username"]), str(entry.get("password", "")))
    return None


def _ask_helper(helper: str, host: str) -> Credentials | None:
    """Run `docker-credential-<helper> get`; None if it has nothing for `host`."""
    if not _HELPER_NAME.fullmatch(helper):
        raise ValueError(f"{helper!r} is not the name of a credential helper")
    key = _DOCKER_HUB_KEY if host == DOCKER_HUB else host
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, "get"], input=key.encode(), capture_output=True, timeout=_HELPER_DEADLINE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FailedPrecondition(f"credential helper {program} failed for {host}: {error}") from error
    if done.returncode != 0:
        # The protocol has no code for "nothing stored": its text on stdout is the only sign.
        if b"credentials not found" in done.stdout:
            return None
        text = (done.stdout or done.stderr)[:200].decode(errors="replace").strip()
        raise FailedPrecondition(f"credential helper {program} failed for {host}: {text}")
    answer = json.loads(done.stdout[:_MAX_ANSWER])
    username, secret = str(answer.get("Username", "")), str(answer.get("Secret", ""))
    # "<token>" as the name says that the secret is an identity token.
    return Credentials("" if username == "<token>" else username, secret) if secret else None
