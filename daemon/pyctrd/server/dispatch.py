"""From a method's name to its handler, and from our exceptions to a status.

grpc.aio asks each generic handler in turn, and runs each interceptor as a coroutine of its own: with
twenty services that is more work than the calls themselves. So there is one table of all methods,
and a servicer's method is wrapped once, when it is registered.
"""

import errno
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import grpc
import structlog
from grpc.aio import ServicerContext

from pyctr_wire.errors import ApiError, ResourceExhausted, Unimplemented, UnknownError

# A status message travels in a header, and peers refuse header lists of more than 8 KiB or so.
_MAX_MESSAGE_CHARACTERS: Final = 4096

_STATUS: Final[Mapping[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}

_EXHAUSTED: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})

_log = structlog.stdlib.get_logger("pyctrd.server")

Behaviour = Callable[[Any, "ServicerContext[Any, Any]"], Any]
Details = grpc.HandlerCallDetails


class Dispatch(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc-stubs knows it as Any
    """The table of methods. Takes the place of a server in the generated `add_XServicer_to_server`."""

    def __init__(self) -> None:
        """Start with no method."""
        self._methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._divert: Callable[[Details], grpc.RpcMethodHandler[Any, Any]] | None = None

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Ignore what generated code passes: the next call brings the same methods by name."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]
    ) -> None:
        """Take in the methods of a service."""
        for name, handler in handlers.items():
            self._methods[f"/{service}/{name}"] = _wrapped(handler)

    def services(self) -> set[str]:
        """Return the full names of the services that there are."""
        return {method.split("/")[1] for method in self._methods}

    def divert(self, handler_for: Callable[[Details], "grpc.RpcMethodHandler[Any, Any]"]) -> None:
        """Let `handler_for` serve every call that arrives from now on, whatever its method."""
        self._divert = handler_for

    def service(self, details: Details) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Return the handler of a call; None is answered with UNIMPLEMENTED. Called by grpc for every call."""
        if self._divert is not None:
            return self._divert(details)
        return self._methods.get(details.method)


def _wrapped(handler: "grpc.RpcMethodHandler[Any, Any]") -> "grpc.RpcMethodHandler[Any, Any]":
    """Return `handler` with its behaviour wrapped so that exceptions become statuses."""
    for field in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
        behaviour = getattr(handler, field)
        if behaviour is not None:
            wrap = _guard_generator if inspect.isasyncgenfunction(behaviour) else _guard
            return handler._replace(**{field: wrap(behaviour)})  # type: ignore[attr-defined, no-any-return]  # noqa: SLF001 - a namedtuple's
    raise TypeError(f"{handler!r} has no behaviour")


def _guard(behaviour: Behaviour) -> Callable[[Any, "ServicerContext[Any, Any]"], Awaitable[Any]]:
    async def call(request: Any, context: "ServicerContext[Any, Any]") -> Any:
        try:
            return await behaviour(request, context)
        except (ApiError, OSError, NotImplementedError) as error:
            await _abort(context, error, behaviour)

    return call


def _guard_generator(behaviour: Behaviour) -> Callable[[Any, "ServicerContext[Any, Any]"], AsyncIterator[Any]]:
    async def call(request: Any, context: "ServicerContext[Any, Any]") -> AsyncIterator[Any]:
        try:
            async for response in behaviour(request, context):
                yield response
        except (ApiError, OSError, NotImplementedError) as error:
            await _abort(context, error, behaviour)

    return call


async def _abort(context: "ServicerContext[Any, Any]", error: Exception, behaviour: Behaviour) -> None:
    """End the call with the status that stands for `error`.

    Every other exception is a bug: grpc answers UNKNOWN and logs the trace.
    """
    answer = _answer(error, behaviour)
    await context.abort(_STATUS[answer.code], str(answer)[:_MAX_MESSAGE_CHARACTERS])


def _answer(error: Exception, behaviour: Behaviour) -> ApiError:
    match error:
        case ApiError():
            return error
        case NotImplementedError():  # raised by generated servicers for methods that ours do not define
            return Unimplemented(f"method {behaviour.__name__}")
    # The system refused something: a full disk is the client's business too, so it gets the text.
    _log.error("call.failed", method=behaviour.__qualname__, exc_info=error)
    assert isinstance(error, OSError)
    failure = ResourceExhausted if error.errno in _EXHAUSTED else UnknownError
    return failure(f"{behaviour.__name__}: {error}")
