"""What travels beside a request."""

from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

from pyctr_wire.errors import FailedPrecondition
from pyctrd.core.identifiers import validate_namespace


class Context(Protocol):
    """The call that is served."""

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """Return the headers."""

    async def send_initial_metadata(self, metadata: Iterable[tuple[str, str | bytes]], /) -> None:
        """Send the response's headers, before its first message."""

    async def read(self) -> Any:
        """Return the next message of a client that streams, None when it has said all."""

    async def write(self, message: Any, /) -> None:
        """Send a message of a response that is a stream."""


NAMESPACE: Final = "containerd-namespace"
LEASE: Final = "containerd-lease"


def namespace_of(context: Context) -> str:
    """Return the namespace of a call.

    Raises FailedPrecondition if the caller named none, InvalidArgument if it cannot name one.
    """
    namespace = _header(context, NAMESPACE)
    if not namespace:
        raise FailedPrecondition("namespace is required")
    return validate_namespace(namespace)


def lease_of(context: Context) -> str:
    """Return the id of the lease that what this call makes belongs to, "" for none."""
    return _header(context, LEASE)


def _header(context: Context, key: str) -> str:
    """Return the first value of a header, "" if there is none."""
    for name, value in context.invocation_metadata():
        if name == key:
            return value if isinstance(value, str) else value.decode()
    return ""
