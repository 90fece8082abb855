"""The gRPC server on TCP, with mutual TLS: who shows a certificate of the right authority is as good as root."""

import math
import socket
from collections.abc import Sequence

import grpc.aio

from pyctr_wire.errors import FailedPrecondition
from pyctrd.core.addresses import Tcp
from pyctrd.server import public_socket
from pyctrd.server.certificates import Certificates
from pyctrd.server.dispatch import Dispatch
from pyctrd.server.listener import options

# Milliseconds. Strangers may connect: who does not show a certificate soon is cut off. Clients may be gone without a
# word, with their machine: they are asked whether they are there, and so leave nothing that waits for them.
_STRANGERS = (
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


class RemoteListener:
    """Serves what a Dispatch knows on TCP ports.

    A daemon that takes over listens on the ports before the old one stops to: the kernel gives each connection to
    one of them, and the old one passes calls on.
    """

    def __init__(
        self, dispatch: Dispatch, addresses: Sequence[Tcp], certificates: Certificates, *, connection_age: float
    ) -> None:
        """Prepare to serve; `connection_age` in seconds. Raises FailedPrecondition if a certificate cannot be used."""
        self._server = grpc.aio.server(handlers=[dispatch], options=[*options(connection_age), *_STRANGERS])
        self._addresses = addresses
        self._credentials = certificates.credentials()

    async def start(self) -> None:
        """Listen. Raises FailedPrecondition if an address cannot be used."""
        for address in self._addresses:
            with public_socket.naming(address):
                self._server.add_secure_port(str(address).removeprefix("tcp://"), self._credentials)
        await self._server.start()

    async def drain(self) -> None:
        """Stop accepting, and return when the last call under way has ended, or `stop` has ended it."""
        await self._server.stop(math.inf)

    async def stop(self, grace: float) -> None:
        """Stop accepting, give calls under way `grace` seconds, then cancel them."""
        await self._server.stop(grace)


def refuse_if_taken(address: Tcp, *, but_by_predecessor: bool = False) -> None:
    """Raise FailedPrecondition if `address` is not this machine's, or another program listens there.

    grpc would share the port with one that shares it too, as a predecessor of this daemon does.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, place in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if but_by_predecessor:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                probe.bind(place)
                if not but_by_predecessor:  # of connections to both, some would come here
                    probe.listen()
    except OSError as error:
        raise FailedPrecondition(f"address {address}: {error.strerror}") from error
