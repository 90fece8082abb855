"""What a transfer tells its client while it runs: milestones in order, and where each blob stands.

A client that reads slowly, or not at all, holds up nothing: it misses the states in between.
Source: containerd docs/transfer.md, "Progress".
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, Protocol

from pyctr_wire.errors import Cancelled
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.values import dataclass
from pyctrd.transfer.together import Together

# Seconds between two rounds of reports.
_INTERVAL: Final = 0.3
# Seconds in which a client must take one round.
_PATIENCE: Final = 5.0


@dataclass(frozen=True, slots=True)
class Report:
    """One message: `event` says what happens to `name`; `progress` of `total` are bytes, 0 for not known."""

    event: str
    name: str = ""
    parents: tuple[str, ...] = ()
    progress: int = 0
    total: int = 0
    descriptor: Descriptor | None = None


class Listener(Protocol):
    """The client, as far as it listens."""

    async def send(self, report: Report, /) -> None:
        """Pass a report on. Raises Cancelled if the client has gone."""
        ...

    async def close(self) -> None:
        """Let the client know that there is nothing more; return when all reports are on their way."""
        ...


class Progress:
    """What there is to report, in the order in which it happened; nothing here waits or fails."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._due: dict[object, Report] = {}

    def say(self, event: str, name: str = "", descriptor: Descriptor | None = None) -> None:
        """Report a milestone."""
        self._due[object()] = Report(event, name, descriptor=descriptor)

    def blob(self, report: Report) -> None:
        """Report the state of a blob, in place of an older one that has not been sent yet."""
        self._due.pop(report.name, None)
        self._due[report.name] = report

    def take(self) -> list[Report]:
        """Return what has not been reported yet."""
        due, self._due = list(self._due.values()), {}
        return due


@asynccontextmanager
async def reported(listener: Listener | None) -> AsyncIterator[Progress]:
    """Yield a Progress whose reports go to `listener` every 300 ms, and a last time before the end.

    None reports to nobody. A client that has gone (Cancelled) or takes nothing ends the reports, not the transfer.
    """
    progress = Progress()
    if listener is None:
        yield progress
        return
    is_done = asyncio.Event()
    try:
        async with Together() as tasks:
            tasks.create_task(_keep_sending(progress, listener, is_done))
            try:
                yield progress
            finally:
                is_done.set()
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await listener.close()


async def _keep_sending(progress: Progress, listener: Listener, is_done: asyncio.Event) -> None:
    while True:
        is_last = is_done.is_set()
        try:
            async with asyncio.timeout(_PATIENCE):
                for report in progress.take():
                    await listener.send(report)
        except (Cancelled, TimeoutError):
            return
        if is_last:
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(is_done.wait(), _INTERVAL)
