"""Bytes on their way from a client: bounded, so that what nobody takes holds the sender up, and timed."""

import asyncio
from typing import Final

# How much of what one connection sent may wait to be taken, in bytes.
ROOM: Final = 1 << 20


class Room:
    """How much may wait, shared by all streams of a connection."""

    def __init__(self, limit: int = ROOM) -> None:
        """Let `limit` bytes wait."""
        self._limit = limit
        self._held = 0
        self._free = asyncio.Event()
        self._free.set()

    def take(self, size: int) -> None:
        """Count bytes that wait from now on; a negative number are those that do not any more."""
        self._held += size
        if self._held < self._limit:
            self._free.set()
        else:
            self._free.clear()

    async def free(self) -> None:
        """Wait until there is room."""
        await self._free.wait()


class Inbox:
    """One stream's bytes that have come and that nobody has taken."""

    def __init__(self, room: Room) -> None:
        """Keep them in `room`."""
        self._room = room
        self._chunks: list[bytes] = []
        self._ready = asyncio.Event()
        self._ended = False
        self._discarding = False
        self._error: Exception | None = None

    async def put(self, data: bytes) -> None:
        """Add bytes, then wait until there is room for more."""
        if data and not self._ended and not self._discarding:
            self._chunks.append(data)
            self._room.take(len(data))
            self._ready.set()
        await self._room.free()

    def end(self, error: Exception | None = None) -> None:
        """No more will come; `error` is what `read` raises after the rest, None is a proper end."""
        if not self._ended:
            self._ended, self._error = True, error
            self._ready.set()

    def discard(self) -> None:
        """Drop what is there and what will come: nobody reads this."""
        self._discarding = True
        self._take()

    async def read(self) -> bytes:
        """Return all that has come, waiting for the first byte; nothing means the end. Raises what `end` was given."""
        await self._ready.wait()
        data = self._take()
        if not self._ended:
            self._ready.clear()
        elif not data and self._error is not None:
            raise self._error
        return data

    def _take(self) -> bytes:
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._room.take(-len(data))
        return data


class Activity:
    """When something was last sent or received."""

    def __init__(self) -> None:
        """Begin now."""
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()

    def touch(self) -> None:
        """Something was."""
        self._last = self._loop.time()

    async def until_idle(self, seconds: float) -> None:
        """Return once nothing was for `seconds`."""
        while (remaining := self._last + seconds - self._loop.time()) > 0:  # noqa: ASYNC110  rarely: hours, mostly
            await asyncio.sleep(remaining)
