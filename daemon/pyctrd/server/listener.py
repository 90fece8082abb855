"""The gRPC server on a unix socket."""

from pathlib import Path
from typing import Final

import grpc
import grpc.aio

from pyctrd.server import public_socket
from pyctrd.server.dispatch import Dispatch

MAX_MESSAGE_BYTES: Final = 16 << 20  # containerd's, in both directions
# Of one connection; each takes some 20 KiB. A client waits for every process that it has made, so it may have many.
MAX_CALLS: Final = 10_000

_FOREVER_MS: Final = (1 << 31) - 1  # INT_MAX, which grpc takes for "without end"


def _options(connection_age: float) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_concurrent_streams", MAX_CALLS),
        # Clients ping as they like: GOAWAY "too_many_pings" breaks buildkit and dockerd.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 1),
        ("grpc.http2.max_ping_strikes", 0),
        # Connections move to a successor within this time, calls under way are never cut (an upgrade).
        ("grpc.max_connection_age_ms", int(connection_age * 1000)),
        ("grpc.max_connection_age_grace_ms", _FOREVER_MS),
    ]


class Listener:
    """Serves what a Dispatch knows at a public path."""

    def __init__(self, dispatch: Dispatch, address: Path, *, uid: int, gid: int, connection_age: float) -> None:
        """Prepare to serve at `address`, owned by `uid` and `gid`; `connection_age` in seconds."""
        self._server = grpc.aio.server(handlers=[dispatch], options=_options(connection_age))
        self._public = address
        self.private = public_socket.private_path(address)
        self._owner = (uid, gid)

    async def start(self) -> None:
        """Listen, and take the public path, from whoever has it.

        Raises OSError if the path cannot be bound or given to its owner.
        """
        public_socket.clear(self._public)
        self._server.add_insecure_port(f"unix:{self.private}")
        await self._server.start()
        public_socket.publish(self.private, self._public, *self._owner)

    async def stop(self, grace: float) -> None:
        """Stop accepting, give calls under way `grace` seconds, then cancel them; gives up the public path."""
        public_socket.withdraw(self.private, self._public)
        await self._server.stop(grace)

    async def drained(self) -> None:
        """Return when the server has stopped and its last call has ended."""
        await self._server.wait_for_termination()
