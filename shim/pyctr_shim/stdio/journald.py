"""Logs into systemd's journal, by its native datagram protocol.

A journal that is gone or full loses lines, counted and told; a container never waits for it.
Source: systemd.io/JOURNAL_NATIVE_PROTOCOL.
"""

import socket
import struct
from typing import Final

from pyctr_shim import journal
from pyctr_shim.stdio.log_driver import LogStream
from pyctr_shim.stdio.relay import Sink
from pyctr_wire.errors import UnknownError

SOCKET: Final = "/run/systemd/journal/socket"
_PRIORITIES: Final = {"stdout": "6", "stderr": "3"}  # info and err, as docker's driver has it


class Journald:
    """The journal's socket and the fields that name the container."""

    def __init__(self, fields: dict[str, str], path: str = SOCKET) -> None:
        """Connect; raises UnknownError where no journal listens."""
        self._fields = fields
        self._streams = 0
        self._dropped = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise UnknownError(f"journald at {path}: {error.strerror}") from error

    def stream(self, name: str) -> Sink:
        """Return the sink of one stream."""
        self._streams += 1
        return LogStream(self, name)

    def append(self, stream: str, lines: list[tuple[bytes, bool]]) -> None:
        """Send one entry for each line."""
        for text, ended in lines:
            self._send(stream, text, ended=ended)

    def stream_ended(self) -> None:
        """One of the streams has ended."""
        self._streams -= 1
        if self._streams == 0:
            self.close()

    def reopen(self) -> None:
        """A journal needs none."""

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _send(self, stream: str, text: bytes, *, ended: bool) -> None:
        fields = {**self._fields, "PRIORITY": _PRIORITIES[stream]}
        if not ended:
            fields["CONTAINER_PARTIAL_MESSAGE"] = "true"
        try:
            if self._dropped:
                marker = f"[pyctr: {self._dropped} log lines dropped]".encode()
                self._socket.send(_encode({**self._fields, "PRIORITY": "4"}, marker))
                self._dropped = 0
            self._socket.send(_encode(fields, text))
        except OSError as error:
            if not self._dropped:
                journal.log("journald write failed", error=str(error))
            self._dropped += 1


def _encode(fields: dict[str, str], message: bytes) -> bytes:
    """Return an entry; every value in the length-prefixed form, which takes any bytes."""
    values = [(key, value.encode()) for key, value in fields.items()]
    return b"".join(
        key.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
        for key, value in [*values, ("MESSAGE", message)]
    )
