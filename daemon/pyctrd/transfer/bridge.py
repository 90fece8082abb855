"""Bytes that arrive on the event loop, for a thread that would rather iterate over them."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Final

from pyctr_wire.errors import Cancelled

_READ_AHEAD: Final = 1 << 20  # bytes; a hop between the two for each chunk would take longer than the work on it


class Bridge:
    """Iterates, in a thread, over an asynchronous iterator, which is read ahead on the loop that made this."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        """Take from `chunks` from now on, until `close`."""
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._arrived: list[bytes] = []
        self._size = 0  # of what has arrived, in bytes
        self._room = asyncio.Event()
        self._filling = self._loop.create_task(self._fill(chunks))
        self._filling.add_done_callback(self._wake)

    def __iter__(self) -> Iterator[bytes]:
        """Yield what has arrived; raises what the chunks' iterator raises, and Cancelled once this is closed."""
        while True:
            with self._changed:
                while not self._arrived and not self._filling.done():
                    self._changed.wait()
                taken, self._arrived = self._arrived, []
                was_full, self._size = self._size >= _READ_AHEAD, 0
            if self._filling.cancelled():
                raise Cancelled("the transfer was given up")
            if was_full:
                self._loop.call_soon_threadsafe(self._room.set)
            if not taken:
                break
            yield b"".join(taken)
        self._filling.result()

    async def close(self) -> None:
        """Wake the thread, if it waits; it gets nothing more."""
        self._filling.cancel()
        await asyncio.wait([self._filling])

    async def _fill(self, chunks: AsyncIterator[bytes]) -> None:
        async for chunk in chunks:
            self._room.clear()
            with self._changed:
                self._arrived.append(chunk)
                self._size += len(chunk)
                is_full = self._size >= _READ_AHEAD
                self._changed.notify()
            if is_full:
                await self._room.wait()

    def _wake(self, _: "asyncio.Task[None]") -> None:
        with self._changed:
            self._changed.notify()
