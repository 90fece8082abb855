"""What the handlers of RuntimeClasses can do: a kubelet sends no pod that needs more.

Our own runtime can what the kernel and the file system of the layers can; a program is asked, by its command
`features`, and a shim of another make by `-info`. Source: OCI runtime specification, features.md; containerd's runtime
v2 documentation; mount_setattr(2).
"""

import asyncio
import json
import os
import re
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from google.protobuf.message import DecodeError

from pyctr_wire.containerd.types import introspection_pb2
from pyctrd.sandbox import views

_TIMEOUT: Final = 10.0  # seconds
_MAX_OUTPUT: Final = 1 << 20  # bytes
_OF_A_SHIM: Final = "-info"  # answered by a RuntimeInfo, which has the document in it
_RECURSIVE_ATTRIBUTES: Final = (5, 12)  # the first Linux with mount_setattr(2)


class Features(NamedTuple):
    """Of one handler."""

    recursive_read_only_mounts: bool
    user_namespaces: bool


class Threads(Protocol):
    """The way to a thread."""

    def run(self, function: Callable[..., Any], /, *args: Any) -> Awaitable[Any]:
        """Call in a thread and return the result."""


class HandlerFeatures:
    """Looked up once, when somebody asks first."""

    def __init__(self, commands: Mapping[str, Sequence[str]], layers: Path, threads: Threads) -> None:
        """Tell of these handlers by what their commands say, our own having none; `layers` is where snapshots are."""
        self._commands = commands
        self._layers = layers
        self._threads = threads
        self._known: asyncio.Future[dict[str, Features]] | None = None

    async def all(self) -> Mapping[str, Features]:
        """Return the features by handler."""
        if self._known is None:
            self._known = asyncio.ensure_future(self._threads.run(_look_up, self._commands, self._layers))
        return await asyncio.shield(self._known)


def _look_up(commands: Mapping[str, Sequence[str]], layers: Path) -> dict[str, Features]:
    can_map = not views.why_not_mapped(layers)
    found: dict[tuple[str, ...], Features] = {(): Features(_kernel() >= _RECURSIVE_ATTRIBUTES, can_map)}
    for command in set(map(tuple, commands.values())) - {()}:
        told = _told(command)
        found[command] = Features("rro" in (told.get("mountOptions") or ()), can_map and _maps_ids(told))
    return {name: found[tuple(command)] for name, command in commands.items()}


def _told(command: Sequence[str]) -> dict[str, Any]:
    """Return what a runtime says of itself; nothing if it is too old to say anything."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT, check=True, cwd="/",
        )  # fmt: skip
        output = done.stdout[:_MAX_OUTPUT]
        if command[-1] == _OF_A_SHIM:
            output = introspection_pb2.RuntimeInfo.FromString(output).features.value
        document = json.loads(output)
    except (OSError, ValueError, DecodeError, subprocess.SubprocessError):
        return {}
    return document if isinstance(document, dict) else {}


def _maps_ids(told: Mapping[str, Any]) -> bool:
    linux = told.get("linux") or {}
    return bool(((linux.get("mountExtensions") or {}).get("idmap") or {}).get("enabled"))


def _kernel() -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
