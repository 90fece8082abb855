"""What clients ask for over CRI and fetch over HTTP."""

from typing import TypeAlias

from pyctr_wire.errors import InvalidArgument
from pyctrd.core.values import dataclass
from pyctrd.cri.streaming.remote_command import Streams


@dataclass(frozen=True, slots=True)
class Exec:
    """Start a process in a container."""

    container_id: str
    command: tuple[str, ...]
    streams: Streams


@dataclass(frozen=True, slots=True)
class Attach:
    """Join a container's streams."""

    container_id: str
    streams: Streams


@dataclass(frozen=True, slots=True)
class PortForward:
    """Connect to ports inside a pod; `ports` are those of clients that cannot name them later."""

    sandbox_id: str
    ports: tuple[int, ...] = ()


Request: TypeAlias = Exec | Attach | PortForward


def check(request: Request) -> None:
    """Raise InvalidArgument if `request` cannot be served, whatever the state of what it names."""
    if isinstance(request, PortForward):
        if not request.sandbox_id:
            raise InvalidArgument("missing required pod_sandbox_id")
        for port in request.ports:
            if not 0 < port < 1 << 16:
                raise InvalidArgument(f"port {port} is not between 1 and 65535")
        return
    if not request.container_id:
        raise InvalidArgument("missing required container_id")
    streams = request.streams
    if streams.tty and streams.stderr:
        raise InvalidArgument("tty and stderr cannot both be true")
    if not (streams.stdin or streams.stdout or streams.stderr):
        raise InvalidArgument("one of stdin, stdout, or stderr must be set")
    if isinstance(request, Exec) and not request.command:
        raise InvalidArgument("missing required cmd")
