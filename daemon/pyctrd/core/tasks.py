"""Tasks: the status of a container's processes, and how they ended."""

from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from typing import Final

from pyctr_wire.errors import FailedPrecondition
from pyctrd.core.values import dataclass


class Status(Enum):
    """Where a process is in its life."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


_NEXT: Final[Mapping[Status, frozenset[Status]]] = {
    Status.CREATED: frozenset({Status.RUNNING, Status.STOPPED}),
    Status.RUNNING: frozenset({Status.PAUSED, Status.STOPPED}),
    Status.PAUSED: frozenset({Status.RUNNING, Status.STOPPED}),
    Status.STOPPED: frozenset(),
}

# What stands for a status that nobody knows any more: the shim was lost with it.
LOST_EXIT_STATUS: Final = 255
# Why nobody knows how a process ended.
SHIM_LOST: Final = "shim lost"
REBOOTED: Final = "lost in a reboot"


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: `exit_status` is 128 + `signal` if a signal ended it, `signal` else 0."""

    exit_status: int
    exited_at: datetime
    signal: int = 0
    oom_killed: bool = False
    reason: str = "exited"

    @property
    def is_known(self) -> bool:
        """Whether somebody saw it end."""
        return self.reason not in (SHIM_LOST, REBOOTED)


def advance(now: Status, to: Status) -> Status:
    """Return `to`, or raise FailedPrecondition if a task cannot go there from `now`."""
    if to not in _NEXT[now]:
        raise FailedPrecondition(f"task is {now.value}, cannot become {to.value}")
    return to
