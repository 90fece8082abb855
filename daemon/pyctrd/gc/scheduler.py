"""When to collect: soon after a deletion, at once when asked, never for more than a fiftieth of the time.

Source: containerd plugins/gc, the policy of its scheduler.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from pyctr_wire.errors import ApiError
from pyctrd.gc.collector import Collected
from pyctrd.log import Logger
from pyctrd.metadata.database import Database

_FIRST: Final = 0.1  # seconds after the start
_SHARE: Final = 0.02  # of the time, at most
_LEAST: Final = 0.005  # seconds that a run is taken to last, at least
_MUTATIONS: Final = 100  # that are worth a run without any deletion

_log = Logger(__name__)


class Scheduler:
    """Runs collections, one after the other, for as long as `run` does."""

    def __init__(self, database: Database, collect: Callable[[], Awaitable[Collected]]) -> None:
        """Run `collect` when `database`'s commits give reason to."""
        self._database = database
        self._collect = collect
        self._asked = asyncio.Event()
        self._due = asyncio.Event()
        self._waiters: list[asyncio.Future[Collected]] = []
        self._seen_garbage = self._seen_mutations = 0
        # By how they ended, success or fail, and how long they took.
        self.ended: Counter[str] = Counter()
        self.seconds = 0.0

    async def run(self) -> None:
        """Collect when it is due, until cancelled."""
        loop = asyncio.get_running_loop()
        self._database.on_commit = lambda: self._committed(loop)
        delay = _FIRST
        self._due.set()  # the first run needs no reason: the last stop may have left some
        while True:
            await self._wait(delay)
            start = loop.time()
            await self._collect_once()
            self.seconds += loop.time() - start
            mean = max(self.seconds / self.ended.total(), _LEAST)
            delay = mean / _SHARE - mean

    async def collect_now(self) -> Collected:
        """Run a collection that begins after this call, at once, and return what it removed. Raises as it does."""
        future: asyncio.Future[Collected] = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        self._asked.set()
        self._due.set()
        return await future

    async def _wait(self, delay: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._asked.wait()
        await self._due.wait()

    async def _collect_once(self) -> None:
        self._asked.clear()
        self._due.clear()
        self._seen_garbage, self._seen_mutations = self._database.garbage, self._database.mutations
        waiters, self._waiters = self._waiters, []
        try:
            collected = await self._collect()
        except (ApiError, OSError) as error:
            # A full disk, mostly: it is tried again after the next deletion.
            _log.warning("garbage collection failed", error=str(error))
            self.ended["fail"] += 1
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(error)
        else:
            self.ended["success"] += 1
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(collected)
        finally:
            for waiter in waiters:
                waiter.cancel()  # of those that have their answer, this changes nothing

    def _committed(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called in the committing thread."""
        mutations = self._database.mutations - self._seen_mutations
        if (self._database.garbage != self._seen_garbage or mutations >= _MUTATIONS) and not self._due.is_set():
            with suppress(RuntimeError):  # the loop is closed: the daemon is ending
                loop.call_soon_threadsafe(self._due.set)
