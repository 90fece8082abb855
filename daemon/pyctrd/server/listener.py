"""The gRPC server on a unix socket."""

import asyncio
import socket
from pathlib import Path
from typing import Final

from pyctrd.server import public_socket
from pyctrd.server.dispatch import Dispatch
from pyctrd.server.http2.connection import Connection

_BACKLOG: Final = 1024  # a daemon that comes back meets all its clients at once
_PAUSE: Final = 0.01  # seconds between two looks at what has not ended
_GOODBYE: Final = 1.0  # seconds in which a client must have taken the last that it is told


class Listener:
    """Serves what a Dispatch knows at a public path."""

    def __init__(self, dispatch: Dispatch, address: Path, *, uid: int, gid: int, connection_age: float) -> None:
        """Prepare to serve at `address`, owned by `uid` and `gid`.

        After `connection_age` seconds a connection is asked to move on: to a successor, if there is one by then.
        """
        self._dispatch = dispatch
        self._public = address
        self.private = public_socket.private_path(address)
        self._owner = (uid, gid)
        self._age = connection_age
        self._server: asyncio.Server | None = None
        self._stopped = False
        self._connections: dict[Connection, asyncio.TimerHandle] = {}

    async def start(self) -> None:
        """Listen, and take the public path, from whoever has it.

        Raises OSError if the path cannot be bound or given to its owner.
        """
        public_socket.clear(self._public)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.private))
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._connection, sock=listener, backlog=_BACKLOG)
        public_socket.publish(self.private, self._public, *self._owner)

    async def stop(self, grace: float) -> None:
        """Stop accepting, give calls under way `grace` seconds, then end them; gives up the public path."""
        public_socket.withdraw(self.private, self._public)
        self.private.unlink(missing_ok=True)
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.leave()
        await self._until_gone(grace)
        for connection in tuple(self._connections):
            connection.cut_off("the daemon is stopping")
        await self._until_gone(_GOODBYE)
        self._stopped = True
        for connection in tuple(self._connections):
            connection.abort()

    async def _until_gone(self, seconds: float) -> None:
        """Return when all connections have ended, or after so many seconds; for idle ones that is one at most."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        while True:
            await asyncio.sleep(_PAUSE)
            is_idle = not any(connection.calls for connection in self._connections)
            passed = loop.time() - start
            if not self._connections or passed >= (min(seconds, _GOODBYE) if is_idle else seconds):
                return

    def _connection(self) -> Connection:
        return Connection(self._dispatch.handler_for, self._opened, self._closed)

    def _opened(self, connection: Connection) -> None:
        if self._stopped:  # it had been accepted when we stopped listening, and the loop tells of it only now
            connection.abort()
        self._connections[connection] = asyncio.get_running_loop().call_later(self._age, connection.leave)

    def _closed(self, connection: Connection) -> None:
        self._connections.pop(connection).cancel()
