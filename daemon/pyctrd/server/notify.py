"""Telling the service manager how we are. Source: sd_notify(3)."""

import os
import socket


def notify(*assignments: str) -> None:
    """Send assignments such as "READY=1" to the socket in $NOTIFY_SOCKET; do nothing if there is none.

    Raises OSError if the socket cannot be reached.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto("\n".join(assignments).encode(), address)
