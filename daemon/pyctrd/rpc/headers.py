"""What travels beside a request."""

from typing import Any, Final, TypeAlias

from grpc.aio import ServicerContext

from pyctr_wire.errors import FailedPrecondition
from pyctrd.core.identifiers import validate_namespace

Context: TypeAlias = "ServicerContext[Any, Any]"

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
    for name, value in context.invocation_metadata() or ():
        if name == key:
            return value if isinstance(value, str) else value.decode()
    return ""
