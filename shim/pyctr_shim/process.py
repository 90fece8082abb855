"""One process of a container: its state, and what may be done in which state."""

import os
import signal
from collections.abc import Mapping
from enum import Enum
from typing import Final

from pyctr_shim.exit_record import Exit
from pyctr_shim.keeper import Notice
from pyctr_shim.loop import Future
from pyctr_shim.stdio.streams import Streams
from pyctr_sys.pidfd import pidfd_send_signal_to_group
from pyctr_wire.errors import FailedPrecondition, NotFound, UnknownError


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


class Process:
    """The container's first process (`exec_id` is empty) or one that joined it."""

    def __init__(self, exec_id: str, streams: Streams, spec: bytes = b"") -> None:
        """Not made yet; `spec` is the OCI process document (JSON) of one that will join."""
        self.exec_id = exec_id
        self.streams = streams
        self.spec = spec
        self.status = Status.CREATED
        self.pid = 0
        self.pidfd: int | None = None
        self.end: Exit | None = None
        self.exited: Future[Exit | None] = Future()
        self.starting = False
        self.early: Notice | None = None
        """Its end, if that comes before its start has been told."""
        self.oom_kills_before = 0

    @property
    def over(self) -> bool:
        """Whether it has ended, or was never made."""
        return self.end is not None or not (self.pid or self.starting)

    def made(self, pid: int, pidfd: int | None) -> None:
        """The process exists; its pidfd is owned from now on. None if it has ended and that is about to be told."""
        self.pid = pid
        self.pidfd = pidfd

    def advance(self, to: Status) -> None:
        """Change the status; raises UnknownError where that is not legal."""
        if to not in _NEXT[self.status]:
            raise UnknownError(f"process is {self.status.value}, cannot become {to.value}")
        self.status = to

    def require(self, verb: str, noun: str, *allowed: Status) -> None:
        """Raise containerd's `cannot start a running process` and the like unless the status is allowed."""
        if self.status not in allowed:
            raise UnknownError(f"cannot {verb} a {self.status.value} {noun}")

    def kill(self, number: int) -> None:
        """Send a signal. Raises FailedPrecondition before the process was made, NotFound after its end."""
        try:
            signal.pidfd_send_signal(self.check_alive(), number)
        except ProcessLookupError as error:
            raise NotFound("process already finished") from error

    def kill_group(self, number: int) -> None:
        """Send a signal to it and to those that it has started and that are still in its group. Raises as `kill`."""
        try:
            pidfd_send_signal_to_group(self.check_alive(), self.pid, number)
        except ProcessLookupError as error:
            raise NotFound("process already finished") from error

    def check_alive(self) -> int:
        """Return the pidfd. Raises FailedPrecondition before the process was made, NotFound after its end."""
        if self.end is not None:
            raise NotFound("process already finished")
        if self.pidfd is None:
            raise FailedPrecondition("process not created")
        return self.pidfd

    def ended(self, end: Exit) -> None:
        """The process has been reaped."""
        self.end = end
        self.status = Status.STOPPED
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None

    def tell(self) -> None:
        """Wake everybody who waits for the end."""
        assert self.end is not None
        self.streams.exited(self.end.status)
        self.exited.set(self.end)
