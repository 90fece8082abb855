"""Which network pods get: the first usable file of a directory that administrators and network add-ons write.

The directory is looked at whenever somebody needs a network or asks for one, and read again if a file has changed.
Source: CNI specification 1.1.0, "Section 1: Network configuration format".
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pyctrd.log import Logger
from pyctrd.network.errors import NetworkNotReady
from pyctrd.network.results import VERSIONS

_SUFFIXES: Final = (".conf", ".conflist", ".json")
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_MAX_FILE: Final = 1 << 20  # bytes

_log = Logger("pyctrd.network")


class Network(NamedTuple):
    """A network: its plugins in the order of ADD, each as its part of the file says."""

    name: str
    version: str
    plugins: tuple[Mapping[str, Any], ...]
    disable_check: bool = False
    disable_gc: bool = False

    def at_least(self, version: str) -> bool:
        """Return whether the network's plugins are spoken to in `version` of CNI or a later one."""
        return VERSIONS.index(self.version) >= VERSIONS.index(version)

    def document(self) -> dict[str, Any]:
        """Return it in the form of a .conflist file."""
        return {
            "cniVersion": self.version,
            "name": self.name,
            "disableCheck": self.disable_check,
            "disableGC": self.disable_gc,
            "plugins": [dict(plugin) for plugin in self.plugins],
        }


def parse(data: bytes | str) -> Network:
    """Return the network that a file's content describes: a list of plugins, or one plugin alone.

    Raises ValueError saying what is wrong.
    """
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - the file's fault, not a caller's
    plugins = document.get("plugins")
    if plugins is None:
        plugins = [{key: value for key, value in document.items() if key not in ("name", "cniVersion")}]
    if not isinstance(plugins, list) or not plugins:
        raise ValueError('"plugins" is not a list with something in it')
    name = document.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f'"name" must be letters, digits, "_", "." and "-", not {name!r}')
    for plugin in plugins:
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        if not isinstance(kind, str) or not _NAME.fullmatch(kind):
            raise ValueError(f'each plugin needs a "type" that is a program\'s name, not {kind!r}')
    return Network(
        name, _version(document), tuple(plugins), _flag(document, "disableCheck"), _flag(document, "disableGC")
    )


class Configuration:
    """The network of a directory's files."""

    def __init__(self, directory: Path) -> None:
        """Look into `directory`, which need not be there."""
        self._directory = directory
        self._seen: object = None
        self._network: Network | None = None
        self._problems: list[str] = []

    def network(self) -> Network:
        """Return the network of the first usable file, in the order of names. Blocks.

        Raises NetworkNotReady if there is none, naming what is wrong with each file.
        """
        seen = self._look()
        if seen != self._seen:
            self._read([name for name, *_ in seen])
            self._seen = seen
        if self._network is not None:
            return self._network
        reason = "; ".join(self._problems) or f"no network config found in {self._directory}"
        raise NetworkNotReady(f"cni config load failed: {reason}: cni plugin not initialized")

    def _look(self) -> list[tuple[str, int, int, int]]:
        """Return (name, inode, size, time of last change in ns) of each file, by name."""
        try:
            with os.scandir(self._directory) as entries:
                found = [(entry.name, entry.stat()) for entry in entries if entry.name.endswith(_SUFFIXES)]
        except OSError:
            return []
        return sorted((name, about.st_ino, about.st_size, about.st_mtime_ns) for name, about in found)

    def _read(self, names: list[str]) -> None:
        self._network, self._problems = None, []
        for name in names:
            path = self._directory / name
            try:
                network = parse(_content(path))
            except (OSError, ValueError) as error:
                self._problems.append(f"{path}: {error}")
                _log.warning("network.unusable", file=str(path), error=str(error))
                continue
            if network != self._network:
                _log.info("network.chosen", network=network.name, file=str(path))
            self._network = network
            return


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise ValueError(f"it is over {_MAX_FILE} bytes")
    return data


def _version(document: Mapping[str, Any]) -> str:
    """Return the newest version of CNI that the file allows and we know."""
    named = document.get("cniVersions") or [document.get("cniVersion") or VERSIONS[0]]
    known = [version for version in VERSIONS if version in named]
    if not known:
        raise ValueError(f'"cniVersion" {", ".join(map(str, named))} is none of {", ".join(VERSIONS)}')
    return known[-1]


def _flag(document: Mapping[str, Any], key: str) -> bool:
    """Return a truth value, which may be a text."""
    return document.get(key) in (True, "true")
