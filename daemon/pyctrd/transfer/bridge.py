"""Bytes that arrive on the event loop, for a thread that would rather iterate over them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import CancelledError, Future

from pyctr_wire.errors import Cancelled


class Bridge:
    """Iterates, in a thread, over an asynchronous iterator of the loop that made this."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        """Take from `chunks` what the thread asks for, when it asks."""
        self._chunks = chunks
        self._loop = asyncio.get_running_loop()
        self._waiting: Future[bytes] | None = None
        self._is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        """Yield the chunks; raises what their iterator raises, and Cancelled once this is closed."""
        while chunk := self._next():
            yield chunk

    def close(self) -> None:
        """Wake the thread, if it waits; it gets nothing more. Called on the loop."""
        self._is_closed = True
        if self._waiting is not None:
            self._waiting.cancel()

    def _next(self) -> bytes:
        waiting = self._waiting = asyncio.run_coroutine_threadsafe(self._take(), self._loop)
        # `close` sets its flag before it looks for us, so one of the two sees the other.
        if self._is_closed:
            waiting.cancel()
        try:
            return waiting.result()
        except CancelledError as error:
            raise Cancelled("the transfer was given up") from error

    async def _take(self) -> bytes:
        return await anext(self._chunks, b"")
