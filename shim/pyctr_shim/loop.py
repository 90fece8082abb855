"""One thread, one epoll: descriptors, timers and coroutines of a shim.

Coroutines are plain `async def` functions driven by `Loop.spawn`; the only thing they may await is a
`Future` of this module (asyncio would cost each shim more memory than its container's bookkeeping).
The collector is off in a shim, so nothing here may leave reference cycles behind: callbacks are dropped
once they ran, and an exception is dropped once it was raised.
"""

import heapq
import math
import select
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, Generic, TypeVar

from pyctr_shim import journal

T = TypeVar("T")
READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
PRIORITY: Final = select.EPOLLPRI
_LONGEST_WAIT: Final = 86400.0  # seconds; epoll_wait(2) takes less than 25 days, and a client may give a call years


class Future(Generic[T]):
    """A value that arrives once; any number of coroutines may await it."""

    __slots__ = ("_callbacks", "_value", "done")

    def __init__(self) -> None:
        """Start without a value."""
        self.done = False
        self._value: T | None = None
        self._callbacks: list[Callable[[], None]] = []

    def set(self, value: T) -> None:
        """Deliver the value and run the callbacks; a second value is ignored."""
        if self.done:
            return
        self.done = True
        self._value = value
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def result(self) -> T:
        """Return the value that was set; only meaningful when `done`."""
        assert self.done
        return self._value  # type: ignore[return-value]

    def when_done(self, callback: Callable[[], None]) -> None:
        """Run `callback` when the value arrives, at once if it is there already."""
        if self.done:
            callback()
        else:
            self._callbacks.append(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        """Undo when_done: a parked caller that went away must not be kept until the value comes."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    def __await__(self) -> Generator["Future[Any]", None, T]:
        """Suspend the coroutine until the value is there, then return it."""
        if not self.done:
            yield self
        return self.result()


class Timer:
    """A call that waits for its time, in seconds of the monotonic clock."""

    __slots__ = ("_callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        """Wait for `when`; made by Loop.call_later."""
        self.when = when
        self._callback: Callable[[], None] | None = callback

    @property
    def pending(self) -> bool:
        """Whether it is still to be called."""
        return self._callback is not None

    def cancel(self) -> None:
        """Never call; harmless after the call."""
        self._callback = None

    def fire(self) -> None:
        """Call, unless cancelled."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()

    def __lt__(self, other: "Timer") -> bool:
        """Order by time, for the heap."""
        return self.when < other.when


class Call:
    """A coroutine under way; `cancel` ends it where it waits."""

    __slots__ = ("_coroutine", "_waiting_for")

    def __init__(self, coroutine: Coroutine[Future[Any], None, None]) -> None:
        """Run the coroutine up to its first wait."""
        self._coroutine: Coroutine[Future[Any], None, None] | None = coroutine
        self._waiting_for: Future[Any] | None = None
        self._step()

    @property
    def done(self) -> bool:
        """Whether the coroutine has ended."""
        return self._coroutine is None

    def cancel(self) -> None:
        """Close the coroutine (GeneratorExit at its await) unless it has ended."""
        coroutine, self._coroutine = self._coroutine, None
        if self._waiting_for is not None:
            self._waiting_for.forget(self._step)
            self._waiting_for = None
        if coroutine is not None:
            coroutine.close()

    def _step(self) -> None:
        coroutine = self._coroutine
        if coroutine is None:
            return
        self._waiting_for = None
        try:
            future = coroutine.send(None)
        except StopIteration:
            self._coroutine = None
            return
        self._waiting_for = future
        future.when_done(self._step)


class Loop:
    """Dispatches ready descriptors, due timers and deferred calls until `stop`."""

    def __init__(self, epoll_fd: int = -1) -> None:
        """Own an epoll descriptor, or open one (close-on-exec)."""
        self._epoll = select.epoll() if epoll_fd < 0 else select.epoll.fromfd(epoll_fd)
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._soon: deque[Callable[[], None]] = deque()
        self._running = True
        self._idle_seconds = math.inf
        self._idle_at = math.inf
        self._when_idle: Callable[[], float] | None = None

    def __getstate__(self) -> tuple[Any, ...]:
        """What pickle writes down of an idle loop."""
        return self._epoll.fileno(), self._handlers, self._idle_seconds, self._when_idle

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Go on where another process with the same descriptors has left off."""
        epoll_fd, handlers, idle_seconds, when_idle = state
        self.__init__(epoll_fd)  # type: ignore[misc]
        self._handlers = handlers
        if when_idle is not None:
            self.when_idle(idle_seconds, when_idle)

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Call `handler` with the ready events of `fd` (borrowed) until `unwatch`.

        Error and hang-up are always reported. Raises OSError EPERM for a regular file, EEXIST if watched already.
        """
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def rewatch(self, fd: int, events: int) -> None:
        """Change which events of a watched `fd` are reported."""
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Stop watching; harmless if `fd` is not watched. To be called before `fd` is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call after the handlers of this round."""
        self._soon.append(callback)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call in `seconds` (monotonic)."""
        timer = Timer(time.monotonic() + seconds, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def when_idle(self, seconds: float, callback: Callable[[], float]) -> None:
        """Call after `seconds` without any event, and again after as many seconds as it returns.

        Timers are no events: who tries something again and again has nothing to do for anybody meanwhile.
        """
        self._idle_seconds = seconds
        self._idle_at = time.monotonic() + seconds
        self._when_idle = callback

    @property
    def has_plans(self) -> bool:
        """Whether a timer or a deferred call is pending."""
        self._timers = [timer for timer in self._timers if timer.pending]
        heapq.heapify(self._timers)
        return bool(self._timers or self._soon)

    def spawn(self, coroutine: Coroutine[Future[Any], None, None]) -> Call:
        """Run a coroutine now, up to its first wait; it must handle its own errors."""
        return Call(coroutine)

    async def to_the_end(self, work: Coroutine[Future[Any], None, T]) -> T:
        """Return or raise what `work` does, which goes on if the caller is cancelled meanwhile."""
        told: Future[T | Exception] = Future()
        self.spawn(_tell(work, told))
        outcome = await told
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def wait(self, future: Future[Any], seconds: float) -> bool:
        """Wait for `future`, at most `seconds`; return whether it arrived."""
        if future.done:
            return True
        either: Future[None] = Future()

        def arrived() -> None:
            either.set(None)

        future.when_done(arrived)
        timer = self.call_later(seconds, arrived)
        try:
            await either
        finally:
            timer.cancel()
            future.forget(arrived)
        return future.done

    async def readable(self, fd: int, seconds: float) -> bool:
        """Wait until the unwatched `fd` is readable or at its end, at most `seconds`; return whether it is."""
        ready: Future[int] = Future()
        self.watch(fd, READ, ready.set)
        try:
            return await self.wait(ready, seconds)
        finally:
            self.unwatch(fd)

    def stop(self) -> None:
        """Make `run` return after this round."""
        self._running = False

    def run(self) -> None:
        """Dispatch until `stop`.

        An exception that leaves a handler is a bug; it is logged and its descriptor is no longer watched,
        because the shim that dies of it would take its container's stdio along.
        """
        while self._running:
            self.run_once()

    def run_once(self) -> None:
        """Wait for the next event and dispatch what is ready."""
        ready = self._epoll.poll(self._timeout())
        for fd, events in ready:
            handler = self._handlers.get(fd)
            if handler is None:  # unwatched by a handler earlier in this round
                continue
            try:
                handler(events)
            except Exception:
                journal.log_exception("handler failed", fd=fd)
                self.unwatch(fd)
            handler = None
        now = time.monotonic()
        self._run_timers(now)
        if ready:
            self._idle_at = now + self._idle_seconds
        elif now >= self._idle_at:
            self._guarded(self._idle)
        while self._soon:
            self._guarded(self._soon.popleft())

    def close(self) -> None:
        """Close the epoll descriptor."""
        self._epoll.close()

    def _timeout(self) -> float | None:
        """Seconds until the next timer or until this counts as idle, None to wait for ever. Source: epoll_wait(2)."""
        if self._soon:
            return 0
        due = min(self._timers[0].when, self._idle_at) if self._timers else self._idle_at
        return None if due == math.inf else min(max(0.0, due - time.monotonic()), _LONGEST_WAIT)

    def _run_timers(self, now: float) -> None:
        while self._timers and self._timers[0].when <= now:
            self._guarded(heapq.heappop(self._timers).fire)

    def _idle(self) -> None:
        assert self._when_idle is not None
        self._idle_at = time.monotonic() + self._idle_seconds  # also if this fails
        self.when_idle(self._when_idle(), self._when_idle)

    def _guarded(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            journal.log_exception("deferred call failed")


async def _tell(work: Coroutine[Future[Any], None, T], told: Future[T | Exception]) -> None:
    """Do the work and tell how it went."""
    try:
        told.set(await work)
    except Exception as error:
        told.set(error)
