"""Which endpoints serve a registry: mirrors from hosts.toml in file order, then the registry itself.

    <config path>/<host>_<port>_/hosts.toml     the first directory that exists is the one that counts:
    <config path>/<host>:<port>/hosts.toml      for each configured path in turn, these four names
    <config path>/<host>/hosts.toml
    <config path>/_default/hosts.toml

A directory without hosts.toml may hold Docker's layout instead: *.crt, and pairs of NAME.cert and NAME.key.
Source: containerd docs/hosts.md; dockerd "Verify repository client with certificates".
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from enum import Flag, auto
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from pyctr_wire.errors import FailedPrecondition, InvalidArgument
from pyctrd.core.times import span_seconds
from pyctrd.core.values import dataclass

DOCKER_HUB: Final = "docker.io"
DOCKER_HUB_ENDPOINT: Final = "registry-1.docker.io"
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
# Bytes of one hosts.toml.
_MAX_FILE: Final = 1 << 20
# Not "..", which is no name of a host, but one of a directory. Source: RFC 1035 section 2.3.4 for the 63 and the 255.
_MAX_AUTHORITY: Final = 255
_AUTHORITY: Final = re.compile(
    r"(?:[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
)


class Capability(Flag):
    """What an endpoint is trusted with."""

    PULL = auto()
    RESOLVE = auto()
    PUSH = auto()
    REFERRERS = auto()
    ALL = PULL | RESOLVE | PUSH | REFERRERS


@dataclass(frozen=True, slots=True)
class Tls:
    """How to check an endpoint's certificate, and which of ours to show it: files in PEM form."""

    authorities: tuple[Path, ...] = ()
    client_pairs: tuple[tuple[Path, Path | None], ...] = ()
    skip_verify: bool = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server that may answer for a registry: `url` ends where `/<repository>/...` begins."""

    url: str
    host: str
    capabilities: Capability = Capability.ALL
    tls: Tls = Tls()
    headers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dial_timeout: float = 30.0
    # Plain http is tried after https fails: an http endpoint that was given TLS settings.
    may_fall_back: bool = False

    def serves(self, registry: str) -> bool:
        """Say whether this is the registry itself, not a mirror of it."""
        return self.host == registry or (registry == DOCKER_HUB and self.host == DOCKER_HUB_ENDPOINT)

    def plain(self) -> "Endpoint":
        """Return the same endpoint over plain http."""
        return replace(self, url="http" + self.url.removeprefix("https"), tls=Tls(), may_fall_back=False)


@dataclass(frozen=True, slots=True)
class HostsConfig:
    """Where hosts.toml files are, and which registries speak plain http without one."""

    config_path: tuple[Path, ...] = (Path("/etc/pyctr/certs.d"), Path("/etc/containerd/certs.d"))
    plain_http: frozenset[str] = frozenset()


def endpoints(host: str, config: HostsConfig, default_scheme: str = "") -> tuple[Endpoint, ...]:
    """Return who serves `host` ("docker.io", "localhost:5000"), in the order in which to try them.

    `default_scheme` ("http" or "https") overrides what the host's name suggests. Raises InvalidArgument for a
    malformed host or scheme, FailedPrecondition for a configuration that cannot be read.
    """
    if not _is_authority(host):
        raise InvalidArgument(f'"{host}" is not the host of a registry')
    if default_scheme not in ("", "http", "https"):
        raise InvalidArgument(f'scheme "{default_scheme}" of registry {host} is neither http nor https')
    if host in config.plain_http:
        default_scheme = "http"
    directory = _directory_of(host, config.config_path)
    if directory is None:
        return (_server(host, default_scheme),)
    file = directory / "hosts.toml"
    if not file.exists():
        return (_server(host, default_scheme, _docker_tls(directory)),)
    try:
        if file.stat().st_size > _MAX_FILE:
            raise FailedPrecondition(f"{file} is over {_MAX_FILE} bytes")
        document = tomllib.loads(file.read_text())
        return tuple(_parse(document, host, directory, default_scheme))
    except (OSError, ValueError, TypeError, RecursionError) as error:  # TOMLDecodeError and bad UTF-8 are ValueErrors
        raise FailedPrecondition(f"cannot use {file} for registry {host}: {error}") from error


def parse_hosts(text: str, host: str, directory: Path) -> tuple[Endpoint, ...]:
    """Return the endpoints that the hosts.toml document `text` in `directory` gives for `host`.

    Raises ValueError or TypeError for a document that is not valid; the text names the key.
    """
    return tuple(_parse(tomllib.loads(text), host, directory, ""))


def _directory_of(host: str, paths: Sequence[Path]) -> Path | None:
    name, _, port = host.rpartition(":") if _has_port(host) else (host, "", "")
    names = [f"{name}_{port}_", host, name] if port else [host]
    for path in paths:
        for candidate in (*names, "_default"):
            if os.path.isdir(path / candidate):  # also of a path that is too long to be one
                return path / candidate
    return None


def _parse(document: Mapping[str, Any], host: str, directory: Path, default_scheme: str) -> Iterable[Endpoint]:
    tables = document.get("host", {})
    if not isinstance(tables, dict):
        raise TypeError("host is not a table")
    for url, table in tables.items():
        if not isinstance(table, dict):
            raise TypeError(f'host."{url}" is not a table')
        yield _endpoint(url, table, directory)
    if server := document.get("server"):
        yield _endpoint(server, document, directory)
    else:
        fallback = _server(host, default_scheme)
        yield _endpoint(fallback.url, document, directory) if _has_settings(document) else fallback


def _has_settings(table: Mapping[str, Any]) -> bool:
    return any(key not in ("host", "server") for key in table)


def _endpoint(url: Any, table: Mapping[str, Any], directory: Path) -> Endpoint:
    if not isinstance(url, str):
        raise TypeError(f"{url!r} is not the URL of a server")
    tls = _tls(table, directory)
    has_scheme = "://" in url
    parts = urlsplit(url if has_scheme else f"//{url}")
    if not _is_authority(parts.netloc) or parts.query or parts.fragment:
        raise ValueError(f'"{url}" is not the URL of a registry')
    scheme = parts.scheme or _default_scheme(parts.netloc, has_tls=tls != Tls())
    if scheme not in ("http", "https"):
        raise ValueError(f'"{url}" is neither http nor https')
    path = parts.path.rstrip("/")
    if not _flag(table, "override_path") and not path.endswith("/v2"):
        path += "/v2"
    # TLS settings for an http address: it may well speak TLS. Ask that way first.
    upgraded = scheme == "http" and tls != Tls()
    if scheme == "https" and not has_scheme and is_loopback(parts.netloc):
        tls = replace(tls, skip_verify=True)
    return Endpoint(
        url=f"{'https' if upgraded else scheme}://{parts.netloc}{path}",
        host=parts.netloc,
        capabilities=_capabilities(table),
        tls=tls,
        headers={name: _header(name, values) for name, values in _table(table, "header").items()},
        dial_timeout=_seconds(table.get("dial_timeout", "30s")),
        may_fall_back=upgraded,
    )


def _server(host: str, default_scheme: str, tls: Tls | None = None) -> Endpoint:
    """Return the registry's own endpoint."""
    authority = DOCKER_HUB_ENDPOINT if host == DOCKER_HUB else host
    scheme = default_scheme or _default_scheme(authority, has_tls=tls is not None)
    return Endpoint(f"{scheme}://{authority}/v2", authority, tls=tls or Tls())


def _default_scheme(authority: str, *, has_tls: bool) -> str:
    if has_tls or not is_loopback(authority) or authority.endswith(":443"):
        return "https"
    return "http"


def address(url: str) -> SplitResult:
    """Return the parts of a URL that a registry names. Raises ValueError if nobody can be asked there."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not _is_authority(parts.netloc) or not url.isprintable():
        raise ValueError(f"{url[:200]!r} is no http address")
    return parts


def _is_authority(text: str) -> bool:
    """Say whether this is `host[:port]`, with an address that is one and a port that there can be."""
    try:
        return len(text) <= _MAX_AUTHORITY and bool(_AUTHORITY.fullmatch(text)) and urlsplit(f"//{text}").port != 0
    except ValueError:
        return False


def is_loopback(authority: str) -> bool:
    """Say whether `host[:port]` is this machine."""
    name = authority.rpartition(":")[0] if _has_port(authority) else authority
    return name.strip("[]") in _LOOPBACK


def _has_port(authority: str) -> bool:
    """Say whether a port follows; colons inside brackets belong to an IPv6 address."""
    return ":" in authority.rpartition("]")[2]


def _capabilities(table: Mapping[str, Any]) -> Capability:
    if "capabilities" not in table:
        return Capability.ALL
    found = Capability(0)
    for name in _texts(table["capabilities"], "capabilities"):
        try:
            found |= Capability[name.upper()]
        except KeyError:
            raise ValueError(f'"{name}" is not a capability') from None
    return found


def _tls(table: Mapping[str, Any], directory: Path) -> Tls:
    client = table.get("client", [])
    entries = [client] if isinstance(client, str) else client
    if not isinstance(entries, list):
        raise TypeError("client is neither a file nor a list")
    pairs: list[tuple[Path, Path | None]] = []
    for entry in entries:
        files = _texts(entry, "client")
        if len(files) not in (1, 2):
            raise ValueError("an entry of client is neither a file nor a pair of files")
        pairs.append((directory / files[0], directory / files[1] if len(files) == 2 and files[1] else None))
    authorities = tuple(directory / name for name in _texts(table.get("ca", []), "ca"))
    return Tls(authorities, tuple(pairs), _flag(table, "skip_verify"))


def _docker_tls(directory: Path) -> Tls | None:
    authorities = tuple(sorted(directory.glob("*.crt")))
    pairs: list[tuple[Path, Path | None]] = []
    for certificate in sorted(directory.glob("*.cert")):
        key = certificate.with_suffix(".key")
        if not key.exists():
            raise FailedPrecondition(f"missing key {key.name} for client certificate {certificate.name}")
        pairs.append((certificate, key))
    return Tls(authorities, tuple(pairs)) if authorities or pairs else None


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise TypeError(f"{key} is not a table")
    return value


def _header(name: str, value: Any) -> tuple[str, ...]:
    values = _texts(value, f"header.{name}")
    if not all(text.isprintable() for text in (name, *values)):
        raise ValueError(f"header.{name} holds something unprintable")
    return values


def _flag(table: Mapping[str, Any], key: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise TypeError(f"{key} is neither true nor false")
    return value


def _texts(value: Any, key: str) -> tuple[str, ...]:
    """Return a string, or a list of strings, as a tuple."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
        raise ValueError(f"{key} is neither a string nor a list of strings")
    return tuple(values)


def _seconds(value: Any) -> float:
    """Return a duration such as "5s", "1m30s" or "1.5m" in seconds; Go's may be negative, this one may not."""
    seconds = span_seconds(value) if isinstance(value, str) and not value.startswith("-") else None
    if seconds is None:
        raise ValueError(f"{value!r} is not a duration such as 5s or 1m30s")
    return seconds
