"""What every command starts from: where the daemon is, which namespace, how to print."""

import os
from dataclasses import dataclass, field
from typing import Final

import click

from pyctr.connection import Connection
from pyctr.transport import TlsFiles

DEFAULT_ADDRESS: Final = "/run/pyctr/pyctrd.sock"
DEFAULT_NAMESPACE: Final = "default"
FORMAT_HELP: Final = "table, json, or a template of fields: '{{.Field}}'."


def default_address() -> str:
    """Return the address from the environment, or the usual one: an ordinary user's own daemon comes before root's."""
    chosen = os.environ.get("PYCTR_ADDRESS") or os.environ.get("CONTAINERD_ADDRESS")
    if chosen or not os.geteuid():
        return chosen or DEFAULT_ADDRESS
    runtime_directory = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    own = f"{runtime_directory}/pyctr/pyctrd.sock"
    return own if os.path.exists(own) else DEFAULT_ADDRESS


def default_namespace() -> str:
    """Return the namespace from the environment, or the usual one."""
    return os.environ.get("PYCTR_NAMESPACE") or os.environ.get("CONTAINERD_NAMESPACE") or DEFAULT_NAMESPACE


@dataclass
class Session:
    """One run of the command."""

    address: str = field(default_factory=default_address)
    namespace: str = field(default_factory=default_namespace)
    format: str = "table"
    tls: TlsFiles | None = None
    _connection: Connection | None = None

    @property
    def connection(self) -> Connection:
        """The connection to the daemon, made when it is first used."""
        if self._connection is None:
            self._connection = Connection(self.address, self.namespace, self.tls)
        return self._connection

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


pass_session = click.make_pass_decorator(Session)
