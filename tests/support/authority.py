"""Certificates for tests, by the openssl program: an authority, and what it signs."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_NAMES: Final = "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1\n"
_CURVE: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True, slots=True)
class Pair:
    """Files of a certificate and of its key."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates for this machine's names, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        """Make its own certificate."""
        directory.mkdir()
        self._directory = directory
        self.own = self._files("ca")
        _openssl("req", "-x509", *_CURVE, "-days", "2", "-subj", f"/CN={directory.name}", *_outputs(self.own))

    def sign(self, name: str, days: int = 2) -> Pair:
        """Return a pair; one of -1 `days` has expired."""
        pair, request = self._files(name), self._directory / f"{name}.csr"
        names = self._directory / "names"
        names.write_text(_NAMES)
        _openssl("req", *_CURVE, "-subj", f"/CN={name}", "-keyout", str(pair.key), "-out", str(request))
        own = ("-CA", str(self.own.certificate), "-CAkey", str(self.own.key), "-CAcreateserial")
        output = ("-days", str(days), "-extfile", str(names), "-out", str(pair.certificate))
        _openssl("x509", "-req", "-in", str(request), *own, *output)
        return pair

    def _files(self, name: str) -> Pair:
        return Pair(self._directory / f"{name}.pem", self._directory / f"{name}.key")


def _outputs(pair: Pair) -> tuple[str, ...]:
    return "-keyout", str(pair.key), "-out", str(pair.certificate)


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
