"""The gRPC server on unix sockets."""

from collections.abc import Sequence
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


def options(connection_age: float) -> list[tuple[str, int]]:
    """Return what a server of ours is told; `connection_age` in seconds."""
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
    """Serves what a Dispatch knows at public paths."""

    def __init__(
        self, dispatch: Dispatch, addresses: Sequence[Path], *, uid: int, gid: int, connection_age: float
    ) -> None:
        """Prepare to serve at `addresses`, owned by `uid` and `gid`; `connection_age` in seconds."""
        self._server = grpc.aio.server(handlers=[dispatch], options=options(connection_age))
        self._paths = {address: public_socket.private_path(address) for address in addresses}
        self.private = self._paths[addresses[0]]
        self._owner = (uid, gid)

    async def start(self) -> None:
        """Listen, and take the public paths, from whoever has them.

        Raises FailedPrecondition if a path cannot be bound or given to its owner.
        """
        for public, private in self._paths.items():
            with public_socket.naming(public):
                public_socket.clear(public)
                self._server.add_insecure_port(f"unix:{private}")
        await self._server.start()
        for public, private in self._paths.items():
            with public_socket.naming(public):
                public_socket.publish(private, public, *self._owner)

    async def stop(self, grace: float) -> None:
        """Stop accepting, give calls under way `grace` seconds, then cancel them; gives up the public paths."""
        for public, private in self._paths.items():
            public_socket.withdraw(private, public)
        await self._server.stop(grace)

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return sum(map(public_socket.connections, self._paths.values()))

    async def drained(self) -> None:
        """Return when the server has stopped and its last call has ended."""
        await self._server.wait_for_termination()
