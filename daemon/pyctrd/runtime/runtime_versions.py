"""Other people's OCI runtimes have had holes that a container gets out by: whose version still has them is told.

A program is asked for its version when it is first used, and again when it has changed. Nothing is refused: what its
distribution calls 1.1.5 may well have been mended.
"""

import asyncio
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol

from pyctrd.log import Logger

_TIMEOUT: Final = 10.0  # seconds
_MAX_OUTPUT: Final = 4096  # bytes
_VERSION: Final = re.compile(
    r"^(?P<name>\w+) version (?P<text>v?(?P<numbers>\d+(?:\.\d+)+)(?P<rest>\S*))", re.MULTILINE
)

Numbers = tuple[int, ...]

# The first safe release of each series, the newest last; what is older than all series is not safe, what is newer is.
# Source: the advisories of 2025 and 2026 for runc (CVE-2025-31133, -52565, -52881, CVE-2026-41579) and for crun
# (CVE-2026-47766).
_SAFE: Final[Mapping[str, Sequence[Numbers]]] = {
    "runc": ((1, 3, 7), (1, 4, 4), (1, 5, 3)),
    "crun": ((1, 29, 2),),
}

_log = Logger("pyctrd.runtime")


class Offload(Protocol):
    """The way to a thread."""

    async def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call in a thread and return the result."""


class Warned(NamedTuple):
    """What is to be told of a program, and when it was last used."""

    program: str
    text: str
    last_used: datetime


class RuntimeVersions:
    """What is known of the runtimes that have been used."""

    def __init__(self, offload: Offload, group: asyncio.TaskGroup) -> None:
        """Ask programs in `offload`; nobody waits for that."""
        self._offload = offload
        self._group = group
        self._looked_at: dict[str, tuple[int, int]] = {}
        self._warned: dict[str, Warned] = {}

    @property
    def warnings(self) -> Sequence[Warned]:
        """What an operator should know."""
        return tuple(self._warned.values())

    def used(self, program: str) -> None:
        """Note that a container is made with the program at this path."""
        try:
            status = os.stat(program)
        except OSError:
            return  # who makes the container says so
        identity = (status.st_mtime_ns, status.st_size)
        if self._looked_at.get(program) == identity:
            if program in self._warned:
                self._warned[program] = self._warned[program]._replace(last_used=datetime.now(UTC))
            return
        self._looked_at[program] = identity
        self._group.create_task(self._look(program), name=f"version of {program}")

    async def _look(self, program: str) -> None:
        text = await self._offload.run(unsafe, program)
        self._warned.pop(program, None)
        if text:
            self._warned[program] = Warned(program, text, datetime.now(UTC))
            _log.warning("runtime.unsafe", program=program, reason=text)


def unsafe(program: str) -> str:
    """Return why a runtime should be replaced, "" if no reason is known; blocks while it tells its version."""
    try:
        done = subprocess.run(
            [program, "--version"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{program} does not tell its version: {error}"
    return judge(program, done.stdout[:_MAX_OUTPUT].decode(errors="replace"))


def judge(program: str, output: str) -> str:
    """Return what there is to say against a version, given what `--version` prints."""
    found = _VERSION.search(output)
    if found is None or found["name"] not in _SAFE:
        return ""  # of others nobody keeps a list here
    name, safe = found["name"], _SAFE[found["name"]]
    numbers = tuple(map(int, found["numbers"].split(".")))
    series = [least for least in safe if least[:2] <= numbers[:2]]
    is_candidate = found["rest"].startswith(("-rc", "-alpha", "-beta", "~"))
    if series and (numbers[:3] > series[-1] or (numbers[:3] == series[-1] and not is_candidate)):
        return ""
    wanted = " or ".join(".".join(map(str, least)) for least in safe)
    return f"{program} is {name} {found['text']}, in which containers are known to get out: use {wanted} or newer"
