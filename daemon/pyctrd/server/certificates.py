"""Who we are on TCP, and who may call: PEM files, read again when they change."""

import threading
from pathlib import Path
from ssl import Purpose, create_default_context
from typing import TypeAlias

import grpc

from pyctr_wire.errors import FailedPrecondition
from pyctrd.log import Logger

_log = Logger("pyctrd.server")

# For each file what tells that it is another one, or has been written to.
_Stamp: TypeAlias = tuple[tuple[int, int, int], ...]


class Certificates:
    """The server's certificate and key, and the authorities whose certificates clients must show."""

    def __init__(self, authorities: str, certificate: str, key: str) -> None:
        """Use these files, none of which is read yet."""
        self._files = tuple(map(Path, (authorities, certificate, key)))
        self._stamp: _Stamp = ()
        self._lock = threading.Lock()

    def credentials(self) -> grpc.ServerCredentials:
        """Return what grpc serves with. Raises FailedPrecondition, naming the file, if one cannot be used."""
        self._stamp, first = self._read()
        return grpc.dynamic_ssl_server_credentials(
            first,
            self._changed,  # type: ignore[arg-type]  # grpc-stubs do not know that None means "as before"
            require_client_authentication=True,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what the files hold if that is not what was returned last. grpc asks for each new connection."""
        with self._lock:
            try:
                stamp = self._look()
                if stamp == self._stamp:
                    return None
                # Not before it has been looked at: what is read may be newer than the stamp, and is read again then.
                self._stamp = stamp
                _, loaded = self._read()
            except FailedPrecondition as error:
                # One file of several has been replaced, perhaps. The next change is looked at again.
                _log.error("tls.not_reloaded", error=str(error))
                return None
            _log.info("tls.reloaded", certificate=str(self._files[1]))
            return loaded

    def _read(self) -> tuple[_Stamp, grpc.ServerCertificateConfiguration]:
        stamp = self._look()
        authorities, certificate, key = self._files
        context = create_default_context(Purpose.CLIENT_AUTH)
        try:
            context.load_verify_locations(authorities)
        except OSError as error:  # SSLError is one
            raise FailedPrecondition(f"TLS cannot use {authorities}: {error}") from error
        try:
            context.load_cert_chain(certificate, key, "")  # for a password, OpenSSL would ask the terminal
            pair = (key.read_bytes(), certificate.read_bytes())
            return stamp, grpc.ssl_server_certificate_configuration([pair], authorities.read_bytes())
        except OSError as error:
            raise FailedPrecondition(f"TLS cannot use {certificate} with {key}: {error}") from error

    def _look(self) -> _Stamp:
        try:
            found = [path.stat() for path in self._files]
        except OSError as error:
            raise FailedPrecondition(f"TLS cannot use {error.filename}: {error.strerror}") from error
        return tuple((status.st_ino, status.st_mtime_ns, status.st_size) for status in found)
