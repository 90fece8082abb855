"""The bytes between us and the daemon: a unix socket, or TCP with both sides' certificates."""

import socket
from typing import NamedTuple, Protocol


class Transport(Protocol):
    """A connection that blocks when it sends, and never when it receives."""

    def fileno(self) -> int: ...
    def close(self) -> None: ...
    def sendall(self, data: bytes, /) -> None: ...

    def receive(self, size: int) -> bytes:
        """Return what has arrived, b"" at the end. Raises BlockingIOError if there is nothing; OSError."""

    @property
    def has_more(self) -> bool:
        """Whether something can be received that the descriptor does not tell of."""


class TlsFiles(NamedTuple):
    """PEM files: who may be the daemon, and who we are."""

    authorities: str
    certificate: str
    key: str

    @classmethod
    def of(cls, authorities: str | None, certificate: str | None, key: str | None) -> "TlsFiles | None":
        """Return them if all are named."""
        return cls(authorities, certificate, key) if authorities and certificate and key else None


class UnixTransport(socket.socket):
    """A unix socket on this machine."""

    has_more = False

    def __init__(self, path: str, timeout: float) -> None:
        """Connect to `path` within `timeout` seconds. Raises OSError."""
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.settimeout(timeout)
            self.connect(path)
            self.setblocking(True)
        except OSError:
            self.close()
            raise

    def receive(self, size: int) -> bytes:
        """Return what has arrived."""
        return self.recv(size, socket.MSG_DONTWAIT)


class TlsTransport:
    """TCP, with mutual TLS."""

    def __init__(self, host: str, port: int, files: TlsFiles, timeout: float) -> None:
        """Connect to a daemon within `timeout` seconds. Raises OSError, ssl.SSLError among them."""
        import ssl  # takes as long to load as a call, and few commands go to another machine

        context = ssl.create_default_context(cafile=files.authorities)
        context.load_cert_chain(files.certificate, files.key)
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection((host, port), timeout)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = context.wrap_socket(plain, server_hostname=host)
            self._socket.setblocking(True)
        except OSError:
            plain.close()
            raise
        self._nothing_yet = (ssl.SSLWantReadError, ssl.SSLWantWriteError)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def sendall(self, data: bytes, /) -> None:
        """Send everything."""
        self._socket.sendall(data)

    def receive(self, size: int) -> bytes:
        """Return what has arrived; a record that is not whole yet is nothing."""
        self._socket.setblocking(False)
        try:
            return self._socket.recv(size)
        except self._nothing_yet as error:
            raise BlockingIOError from error
        finally:
            self._socket.setblocking(True)

    @property
    def has_more(self) -> bool:
        """Whether a part of a record is decrypted already."""
        return self._socket.fileno() >= 0 and self._socket.pending() > 0
