"""Addresses that a daemon serves: a path, or `tcp://HOST:PORT`."""

from pathlib import Path
from typing import NamedTuple

# Below sun_path's 108 bytes, less what is appended to a path for sockets of our own.
MAX_PATH_BYTES = 90


class Tcp(NamedTuple):
    """A host's name or address, an IPv6 one without its brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return it as clients write it."""
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"


def parse_address(text: str) -> Path | Tcp:
    """Return the socket that `text` names. Raises ValueError, which says what can be served instead."""
    scheme, separator, rest = text.partition("://")
    if text.startswith("fd:"):
        raise ValueError(f'"{text}": sockets are not taken from systemd; name the path of one to be made')
    if separator and scheme == "tcp":
        return _parse_tcp(text, rest)
    if separator and scheme != "unix":
        raise ValueError(f'"{text}": an address is a path, unix://PATH or tcp://HOST:PORT')
    path = Path(rest if separator else text.removeprefix("unix:"))
    if not path.is_absolute():
        raise ValueError(f'must be an absolute path, not "{path}"')
    if len(str(path).encode()) > MAX_PATH_BYTES:
        raise ValueError(f'"{path}" is longer than {MAX_PATH_BYTES} bytes')
    return path


def _parse_tcp(text: str, rest: str) -> Tcp:
    host, _, port = rest.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (":" in bare) != (bare != host) or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f'"{text}" must be tcp://HOST:PORT, with an IPv6 address in brackets')
    return Tcp(bare, int(port))
