"""How a call has ended, for those who watch calls."""

import asyncio
from typing import Any, TypeAlias

import grpc
from grpc.aio import ServicerContext

from pyctr_wire.errors import Code

Context: TypeAlias = "ServicerContext[Any, Any]"


def outcome(error: BaseException | None, context: Context) -> Code:
    """Return the status of a call that `error` has ended, if one has: what the client was told, if it was told any."""
    if error is None:
        return Code.OK
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return Code.CANCELLED
    sent = context.code()  # None until something was sent
    return Code(sent.value[0]) if isinstance(sent, grpc.StatusCode) else Code.UNKNOWN
