"""The other side of a D-Bus connection, scripted."""

import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyctr_shim.oci.cgroups import dbus

DEADLINE_SECONDS = 30.0
MARK: int = struct.unpack("<I", b"SERI")[0]


class Peer:
    """Answers calls as it is told to, and keeps them.

    An answer of several messages may have MARK where the call's serial is to be; none is an empty reply.
    """

    def __init__(
        self, path: Path, answer: Callable[[str, list[Any]], list[bytes]], *, greeting: bytes = b"OK 1234\r\n"
    ) -> None:
        """Listen at `path`; `answer` is given member and arguments of each call."""
        self.calls: list[tuple[str, list[Any]]] = []
        self._answer, self._greeting = answer, greeting
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        self._server.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            while True:
                peer, _ = self._server.accept()
                with peer, peer.makefile("rb") as stream:
                    assert stream.readline().startswith(b"\0AUTH EXTERNAL ")
                    peer.sendall(self._greeting)
                    if stream.readline() == b"BEGIN\r\n":
                        self._talk(peer, stream)
        except OSError:
            return

    def _talk(self, peer: socket.socket, stream: Any) -> None:
        while header := stream.read(16):
            body_length, serial, fields_length = struct.unpack_from("<III", header, 4)
            rest = stream.read(-(-(16 + fields_length) // 8) * 8 + body_length - 16)
            message = dbus.unpack_message(header + rest)
            self.calls.append((message.member, message.body))
            for answer in self._answer(message.member, message.body) or [reply(serial)]:
                peer.sendall(answer.replace(b"SERI", struct.pack("<I", serial)))

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(DEADLINE_SECONDS)
        assert not self._thread.is_alive()


def reply(serial: int = MARK, signature: str = "", *values: Any) -> bytes:
    return dbus.pack_message(dbus.RETURN, 1, {5: serial}, signature, values)
