"""A connection to a shim's attach socket: frames of a type, a length and a payload, in both directions."""

import asyncio
import json
import struct
from contextlib import suppress
from typing import Final

from pyctr_wire.errors import UnknownError

HELLO, STDIN, STDOUT, STDERR, RESIZE, EXIT, MESSAGE = range(7)

_HEADER: Final = struct.Struct(">BI")
_MAX_PAYLOAD: Final = 1 << 20


class Connection:
    """One client of a process's streams. Use `connect`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Own both."""
        self._reader = reader
        self._writer = writer

    async def receive(self) -> tuple[int, bytes]:
        """Return the next frame's type and payload. Raises UnknownError at the end."""
        try:
            kind, length = _HEADER.unpack(await self._reader.readexactly(_HEADER.size))
            if length > _MAX_PAYLOAD:
                raise UnknownError(f"the shim sent a frame of {length} bytes")
            return kind, await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise UnknownError("the shim closed the attach socket") from None

    async def send(self, kind: int, payload: bytes) -> None:
        """Send a frame, waiting while the shim takes nothing; what a shim that is gone does not take is dropped."""
        with suppress(ConnectionError):
            for start in range(0, len(payload) or 1, _MAX_PAYLOAD):
                part = payload[start : start + _MAX_PAYLOAD]
                if not self._writer.is_closing():  # uvloop takes it for a mistake of ours; `drain` tells
                    self._writer.write(_HEADER.pack(kind, len(part)) + part)
                await self._writer.drain()

    def close(self) -> None:
        """Let go; the process does not notice."""
        self._writer.close()


async def connect(
    path: str,
    exec_id: str,
    *,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    ends_input: bool = False,
    left: int = 0,
) -> Connection:
    """Connect to the streams of a process, "" being the container's first. Raises UnknownError if the shim refuses.

    The only client of an exec may hold it up for as long as it likes; one of a container's that takes nothing for a
    second is cut off. Two things happen when this client goes, also if it is killed: with `ends_input` the process's
    input ends, and an exec that runs gets the signal `left`, SIGHUP or SIGKILL.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError as error:
        raise UnknownError(f"the shim cannot be reached: {error.strerror or error}") from None
    connection = Connection(reader, writer)
    wanted = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
    hello = {"exec_id": exec_id, **wanted, "patient": bool(exec_id), "ends_input": ends_input, "left": left}
    try:
        await connection.send(HELLO, json.dumps(hello).encode())
        kind, payload = await connection.receive()
    except BaseException:
        connection.close()
        raise
    answer = json.loads(payload) if kind == HELLO else {"error": "no answer to hello"}
    if "error" in answer:
        connection.close()
        raise UnknownError(f"attach: {answer['error']}")
    return connection
