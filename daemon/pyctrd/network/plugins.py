"""Running one plugin: as a program, or in this process where we know how to do what it does.

Source: CNI specification 1.1.0, "Section 2: Execution Protocol", "Section 5: Result types".
"""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from pyctrd.network import programs
from pyctrd.network.errors import PluginError

# What a plugin's program may need of our environment: it looks for iptables and the like.
_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SHOWN: Final = 500  # characters of what a plugin wrote that belongs to no protocol


class Call(NamedTuple):
    """One plugin's call. `configuration` is what a program would be given on its standard input.

    `netns` is a path, "" in a DEL if the namespace is gone.
    """

    command: str
    container: str
    netns: str
    interface: str
    arguments: str
    configuration: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """The plugin's type."""
        return str(self.configuration["type"])

    def of(self, kind: str) -> "Call":
        """Return the same call of another plugin, which is how a plugin asks its IPAM plugin."""
        return self._replace(configuration={**self.configuration, "type": kind})


class InProcess(Protocol):
    """A plugin of ours. `delegate` runs another one. Raises PluginError or OSError."""

    def can(self, configuration: Mapping[str, Any]) -> bool:
        """Return whether it knows all that a configuration asks for."""
        ...

    def call(self, call: Call, delegate: "Plugins") -> Mapping[str, Any] | None:
        """Do what a program would; an ADD returns its result in the configuration's version."""
        ...


class Plugins:
    """All plugins that can be run."""

    def __init__(
        self, directories: tuple[Path, ...], seconds: float, own: Mapping[str, InProcess], chosen: tuple[str, ...]
    ) -> None:
        """Look for programs in `directories`, give each `seconds`; of our `own` by types, run the `chosen` ones."""
        self._directories, self._seconds, self._own = directories, seconds, own
        self.chosen = chosen

    def choosing(self, chosen: tuple[str, ...]) -> "Plugins":
        """Return the same plugins, of which `chosen` run in this process."""
        return Plugins(self._directories, self._seconds, self._own, chosen)

    def is_own(self, configuration: Mapping[str, Any]) -> bool:
        """Return whether a plugin so configured runs in this process."""
        kind = configuration["type"]
        return kind in self.chosen and kind in self._own and self._own[kind].can(configuration)

    def run(self, call: Call) -> Mapping[str, Any] | None:
        """Run a plugin and return what it answers: a result in an ADD. Blocks. Raises PluginError."""
        try:
            if self.is_own(call.configuration):
                return self._own[call.kind].call(call, self)
        except OSError as error:
            raise PluginError(call.kind, call.command, error.strerror or str(error)) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # An administrator's document: what has another type than it should have is met where it is used.
            raise PluginError(call.kind, call.command, f"its configuration cannot be: {error}") from error
        return self._execute(call)

    def _execute(self, call: Call) -> Mapping[str, Any] | None:
        program = self._find(call)
        environment = {
            "PATH": os.environ.get("PATH") or _DEFAULT_PATH,
            "CNI_COMMAND": call.command,
            "CNI_PATH": ":".join(map(str, self._directories)),
        }
        if call.command not in ("STATUS", "GC", "VERSION"):
            environment |= {
                "CNI_CONTAINERID": call.container,
                "CNI_NETNS": call.netns,
                "CNI_IFNAME": call.interface,
                "CNI_ARGS": call.arguments,
            }
        data = json.dumps(call.configuration).encode()
        try:
            ended = programs.run(program, environment, data, self._seconds)
        except programs.ProgramError as error:
            raise PluginError(call.kind, call.command, str(error)) from error
        if ended.status:
            raise _refusal(call, ended)
        return _answer(call, ended.output) if call.command in ("ADD", "VERSION") else None

    def _find(self, call: Call) -> Path:
        for directory in self._directories:
            if (program := directory / call.kind).is_file():
                return program
        places = ", ".join(map(str, self._directories))
        raise PluginError(call.kind, call.command, f'failed to find plugin "{call.kind}" in {places}')


def _answer(call: Call, output: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(output)
    except (ValueError, RecursionError) as error:
        raise PluginError(call.kind, call.command, f"its answer is no JSON ({error}): {_shown(output)}") from error
    if not isinstance(document, dict):
        raise PluginError(call.kind, call.command, f"its answer is no JSON object: {_shown(output)}")
    return document


def _refusal(call: Call, ended: programs.Ended) -> PluginError:
    """Return what a program that failed says, or else how it ended."""
    try:
        document = json.loads(ended.output)
        texts = [str(document[key]) for key in ("msg", "details") if document.get(key)]
        if texts:
            return PluginError(call.kind, call.command, "; ".join(texts), int(document.get("code") or 0))
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    how = f"exit status {ended.status}"
    if ended.status < 0:
        how = f"ended by signal {signal.Signals(-ended.status).name}"
    said = _shown(ended.errors) or _shown(ended.output)
    return PluginError(call.kind, call.command, f"{how}: {said}" if said else how)


def _shown(data: bytes) -> str:
    return data[:_SHOWN].decode(errors="replace").strip()
