"""The only door from the event loop to threads, and to the stores."""

import asyncio
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar

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


_Calls: TypeAlias = SimpleQueue[_Call | None]


class Offload:
    """A pool of threads for synchronous work, used from one event loop.

    A call that was accepted runs to its end, also when the caller is cancelled while it waits: what
    is passed in must be safe to complete unobserved. Calls beyond the number of workers queue.

    Not a ThreadPoolExecutor: its futures are for threads that wait for threads, and passing one on to the event loop
    takes longer than most calls. And each thread has its own queue: of those that wait at a common one, each that is
    woken wakes the next.
    """

    def __init__(self, workers: int, name: str = "offload") -> None:
        """Keep up to `workers` threads, started as they are needed."""
        self._workers, self._name = workers, name
        self._threads: dict[Thread, _Calls] = {}
        self._idle: list[_Calls] = []  # the last to have worked is the first to work again: its caches are warm
        self._waiting: deque[_Call] = deque()  # while no thread is idle
        self._closed = False
        # Calls that were accepted and of whose end the event loop has not heard.
        self._under_way = 0
        self._at_rest = asyncio.Event()
        self._at_rest.set()

    async def run(self, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Return `function(*args, **kwargs)`, called in a thread; raises what it raises."""
        return await self._accept(partial(function, *args, **kwargs))

    async def run_to_its_end(self, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Do as `run` does; but a caller who is cancelled goes on only at the call's end: for one who holds a lock."""
        return await to_its_end(self._accept(partial(function, *args, **kwargs)))

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
        for calls in self._threads.values():
            calls.put(None)
        for thread in self._threads:
            thread.join()

    def _accept(self, function: Callable[[], _T]) -> "asyncio.Future[_T]":
        if self._closed:
            raise RuntimeError("the threads have ended")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()
        self._under_way += 1
        self._at_rest.clear()
        call = _Call(function, loop, future)
        if self._idle:
            self._idle.pop().put(call)
        elif len(self._threads) < self._workers:
            self._start_with(call)
        else:
            self._waiting.append(call)
        return future

    def _start_with(self, call: _Call) -> None:
        calls: _Calls = SimpleQueue()
        calls.put(call)
        thread = Thread(target=self._work, args=(calls,), name=f"{self._name}-{len(self._threads)}", daemon=True)
        self._threads[thread] = calls
        thread.start()

    def _ended(
        self, future: "asyncio.Future[Any]", value: Any, error: BaseException | None, idle: _Calls | None
    ) -> None:
        """Pass on how a call ended, and take note of a thread that has nothing to do; in the event loop."""
        if idle is not None:
            if self._waiting:  # accepted after it had looked
                idle.put(self._waiting.popleft())
            else:
                self._idle.append(idle)
        self._under_way -= 1
        if not self._under_way:
            self._at_rest.set()
        if future.done():  # nobody waits any more
            _take_unobserved(error)
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    # -- in the threads

    def _work(self, calls: _Calls) -> None:
        while (call := calls.get()) is not None:
            while call is not None:
                call = self._perform(call, calls)
        while (call := self._next()) is not None:
            self._perform(call, calls)

    def _next(self) -> _Call | None:
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def _perform(self, call: _Call, calls: _Calls) -> _Call | None:
        """Do what was called for and return what this thread is to do next, if it knows."""
        function, loop, future = call
        value, error = None, None
        try:
            value = function()
        except BaseException as raised:
            error = raised
        following = self._next()
        try:
            loop.call_soon_threadsafe(self._ended, future, value, error, calls if following is None else None)
        except RuntimeError:  # the loop has ended, and so has everybody who could be told
            pass
        finally:
            # An error knows this frame by its traceback.
            del call, function, future, value, error
        return following

    def _release_unobserved(self, acquired: "asyncio.Future[_T]", release: Callable[[_T], object]) -> None:
        if acquired.exception() is None and not self._closed:
            self._accept(partial(release, acquired.result()))


async def to_its_end(work: "asyncio.Future[_T]") -> _T:
    """Return or raise what `work` does; a caller who is cancelled goes on only at its end."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        _take_unobserved(work.exception())
        raise


def _take_unobserved(error: BaseException | None) -> None:
    """Log what a call raised that nobody waits for; what a client was meant to see concerns only it."""
    if error is not None and not isinstance(error, ApiError):
        _log.error("call.failed_unobserved", exc_info=error)
