"""One owner per container: its operations run one after another, whatever becomes of the clients that asked.

An operation is never cancelled by its caller: it runs to its end in a task of the daemon's group. A second call of
the same name and token finds the first one under way and waits for it instead of running again. What it then gets
depends on the operation: a shared result goes to every caller; an exclusive one goes to the first caller that is
still there, and the others run their own work, which sees what the first one did.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import field
from enum import Enum
from typing import Any, Generic, TypeVar

from pyctrd.core.values import dataclass
from pyctrd.log import Logger

Key = tuple[str, ...]
Result = TypeVar("Result")
_log = Logger(__name__)


class Joining(Enum):
    """What callers get that find the same operation under way."""

    SHARED = "every caller gets the result"
    EXCLUSIVE = "one caller gets the result"


@dataclass(slots=True, eq=False)
class Job(Generic[Result]):
    """One operation in a queue; `callers` counts those still waiting for it."""

    name: str
    token: str
    work: "Callable[[Job[Result]], Awaitable[Result]]"
    future: "asyncio.Future[Result]"
    callers: int = 0
    claimed: bool = False
    given_up: bool = False

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for the result any more."""
        return self.callers == 0

    def give_up_if_abandoned(self) -> bool:
        """Return whether nobody waits; from then on nobody joins either, so what was done can be undone."""
        self.given_up = self.abandoned
        return self.given_up


@dataclass(slots=True, eq=False)
class _Queue:
    """What one container waits for."""

    jobs: deque[Job[Any]] = field(default_factory=deque)


class Owners:
    """The queues of all containers; an idle container has none."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        """Run operations in `tasks`."""
        self._tasks = tasks
        self._queues: dict[Key, _Queue] = {}

    async def run(
        self,
        key: Key,
        name: str,
        work: Callable[[Job[Result]], Awaitable[Result]],
        *,
        token: str = "",
        joining: Joining = Joining.EXCLUSIVE,
    ) -> Result:
        """Do `work` after what is queued for `key`, or join the same operation; cancelling the caller stops neither."""
        while True:
            job = self._find(key, name, token) or self._add(key, Job(name, token, work, asyncio.Future()))
            job.callers += 1
            try:
                result = await asyncio.shield(job.future)
            finally:
                job.callers -= 1
            if joining is Joining.SHARED or not job.claimed:
                job.claimed = True
                return result  # type: ignore[no-any-return]

    def busy(self, key: Key) -> bool:
        """Whether something is under way or queued for `key`."""
        return key in self._queues

    def _find(self, key: Key, name: str, token: str) -> Job[Any] | None:
        queue = self._queues.get(key)
        if queue is None:
            return None
        return next((job for job in queue.jobs if job.name == name and job.token == token and not job.given_up), None)

    def _add(self, key: Key, job: Job[Result]) -> Job[Result]:
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(deque([job]))
            self._tasks.create_task(self._drain(key, queue), name=f"owner {'/'.join(key)}")
        else:
            queue.jobs.append(job)
        return job

    async def _drain(self, key: Key, queue: _Queue) -> None:
        """Run the queue's jobs in order; a job stays in front, where others can join it, until it has ended."""
        try:
            while queue.jobs:
                job = queue.jobs[0]
                try:
                    result = await job.work(job)
                except asyncio.CancelledError:
                    raise
                except Exception as error:
                    if job.abandoned:
                        _log.warning(
                            "operation failed unobserved", owner="/".join(key), name=job.name, error=str(error)
                        )
                    else:
                        job.future.set_exception(error)
                else:
                    job.future.set_result(result)
                queue.jobs.popleft()
        finally:
            del self._queues[key]
            for job in queue.jobs:
                job.future.cancel()
