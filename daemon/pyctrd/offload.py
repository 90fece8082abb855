"""The only door from the event loop to threads, and to the stores."""

import asyncio
from asyncio import AbstractEventLoop
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, ParamSpec, TypeVar

from pyctr_wire.errors import ApiError
from pyctrd.log import Logger

_P = ParamSpec("_P")
_T = TypeVar("_T")

_log = Logger("pyctrd.offload")


class _Call(NamedTuple):
    """What a thread is to do, and where its outcome goes."""

    function: Callable[[], Any]
    loop: AbstractEventLoop
    future: "asyncio.Future[Any]"


class Offload:
    """A pool of threads for synchronous work, used from one event loop.

    A call that was accepted runs to its end, also when the caller is cancelled while it waits: what
    is passed in must be safe to complete unobserved. Calls beyond the number of workers queue.

    Not a ThreadPoolExecutor: its futures are for threads that wait for threads, and passing one on to the event loop
    takes longer than most calls.
    """

    def __init__(self, workers: int, name: str = "offload") -> None:
        """Keep up to `workers` threads, started as they are needed."""
        self._workers, self._name = workers, name
        self._threads: list[Thread] = []
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._closed = False
        # Calls that were accepted and of whose end the event loop has not heard.
        self._under_way = 0
        self._at_rest = asyncio.Event()
        self._at_rest.set()

    async def run(self, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Return `function(*args, **kwargs)`, called in a thread; raises what it raises."""
        return await self._accept(partial(function, *args, **kwargs))

    def at_once(self, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Return `function(*args, **kwargs)`, called right here: for the read of a row by its key, and nothing else.

        That takes a fraction of what handing it to a thread does, and waits for nobody: readers of the database do
        not wait for its writers. Not for what looks at other files, or for a number of rows that nobody knows.
        """
        if self._closed:
            raise RuntimeError("the threads have ended")
        return function(*args, **kwargs)

    @asynccontextmanager
    async def holding(self, acquire: Callable[[], _T], release: Callable[[_T], object]) -> AsyncIterator[_T]:
        """Enter with what `acquire` returns and give it to `release` at the end, both called in threads.

        What `acquire` returns after the caller was cancelled is released at once.
        """
        acquiring = self._accept(acquire)
        try:
            held = await asyncio.shield(acquiring)
        except asyncio.CancelledError:
            acquiring.add_done_callback(lambda done: self._release_unobserved(done, release))
            raise
        try:
            yield held
        finally:
            await self.run(release, held)

    async def idle(self, seconds: float) -> bool:
        """Return whether nothing is under way, or ends within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._at_rest.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Wait for what was accepted and end the threads; blocks."""
        self._closed = True
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def _accept(self, function: Callable[[], _T]) -> "asyncio.Future[_T]":
        if self._closed:
            raise RuntimeError("the threads have ended")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()
        if self._under_way >= len(self._threads) < self._workers:
            thread = Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._under_way += 1
        self._at_rest.clear()
        self._calls.put(_Call(function, loop, future))
        return future

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            self._perform(call)
            del call  # and what it refers to, before the waiting

    def _perform(self, call: _Call) -> None:
        function, loop, future = call
        try:
            outcome = partial(self._returned, future, function())
        except BaseException as error:
            outcome = partial(self._raised, future, error)
        try:
            loop.call_soon_threadsafe(outcome)
        except RuntimeError:  # the loop has ended, and so has everybody who could be told
            pass
        finally:
            # An error knows this frame by its traceback.
            del call, function, future, outcome

    def _returned(self, future: "asyncio.Future[_T]", value: _T) -> None:
        self._ended()
        if not future.done():
            future.set_result(value)

    def _raised(self, future: "asyncio.Future[Any]", error: BaseException) -> None:
        self._ended()
        if not future.done():
            future.set_exception(error)
        elif not isinstance(error, ApiError):  # what a client was meant to see concerns nobody any more
            _log.error("call.failed_unobserved", exc_info=error)

    def _ended(self) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._at_rest.set()

    def _release_unobserved(self, acquired: "asyncio.Future[_T]", release: Callable[[_T], object]) -> None:
        if acquired.exception() is None and not self._closed:
            self._accept(partial(release, acquired.result()))
