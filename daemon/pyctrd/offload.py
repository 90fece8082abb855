"""The only door from the event loop to threads."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar

import structlog

from pyctr_wire.errors import ApiError

_P = ParamSpec("_P")
_T = TypeVar("_T")

_log = structlog.stdlib.get_logger("pyctrd.offload")


class Offload:
    """A pool of threads for synchronous work.

    A call that was accepted runs to its end, also when the caller is cancelled while it waits: what
    is passed in must be safe to complete unobserved. Calls beyond the number of workers queue.
    """

    def __init__(self, workers: int, name: str = "offload") -> None:
        """Keep up to `workers` threads, started as they are needed."""
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._under_way: set[asyncio.Future[Any]] = set()

    async def run(self, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Return `function(*args, **kwargs)`, called in a thread; raises what it raises."""
        future = self._watched(self._pool.submit(function, *args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(_report_unobserved)
            raise

    @asynccontextmanager
    async def holding(self, acquire: Callable[[], _T], release: Callable[[_T], object]) -> AsyncIterator[_T]:
        """Enter with what `acquire` returns and give it to `release` at the end, both called in threads.

        What `acquire` returns after the caller was cancelled is released at once.
        """
        acquiring = self._pool.submit(acquire)
        try:
            held = await asyncio.shield(self._watched(acquiring))
        except asyncio.CancelledError:
            acquiring.add_done_callback(lambda done: _release_unobserved(done, release))
            raise
        try:
            yield held
        finally:
            await self.run(release, held)

    async def idle(self, seconds: float) -> bool:
        """Return whether nothing is under way, or ends within `seconds`."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=seconds)
        return not self._under_way

    def _watched(self, accepted: "Future[_T]") -> "asyncio.Future[_T]":
        future = asyncio.wrap_future(accepted)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return future

    def close(self) -> None:
        """Wait for what was accepted and end the threads; blocks."""
        self._pool.shutdown()


def _release_unobserved(acquired: "Future[_T]", release: Callable[[_T], object]) -> None:
    if acquired.exception() is None:
        release(acquired.result())


def _report_unobserved(future: "asyncio.Future[Any]") -> None:
    """Log a failure whose caller has gone; what a client was meant to see concerns nobody any more."""
    error = None if future.cancelled() else future.exception()
    if error is not None and not isinstance(error, ApiError):
        _log.error("call.failed_unobserved", exc_info=error)
