"""From a method's name to its handler, and from our exceptions to a status.

grpc.aio asks each generic handler in turn, and runs each interceptor as a coroutine of its own: with
twenty services that is more work than the calls themselves. So there is one table of all methods,
and a servicer's method is wrapped once, when it is registered.
"""

import asyncio
import errno
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc.aio import ServicerContext

from pyctr_wire.errors import ApiError, ResourceExhausted, Unavailable, UnknownError
from pyctrd.log import Logger

# A status message travels in a header, and peers refuse header lists of more than 8 KiB or so.
_MAX_MESSAGE_CHARACTERS: Final = 4096

_STATUS: Final[Mapping[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}

_EXHAUSTED: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})

# Streams that never end by themselves: whoever reads one opens it again when it is cut.
SUBSCRIPTIONS: Final = frozenset(
    {
        "/containerd.services.events.v1.Events/Subscribe",
        "/grpc.health.v1.Health/Watch",
        "/runtime.v1.RuntimeService/GetContainerEvents",
    }
)

# Calls that end when something happens elsewhere, perhaps in days: a daemon that stops does not wait for them.
_PARKED: Final = SUBSCRIPTIONS | {
    "/containerd.services.sandbox.v1.Controller/Wait",
    "/containerd.services.streaming.v1.Streaming/Stream",
    "/containerd.services.tasks.v1.Tasks/Wait",
}

_REPLACED: Final = "the daemon is being replaced; try again"

_log = Logger("pyctrd.server")

Context: TypeAlias = "ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behaviour: TypeAlias = Callable[[Any, Any], Any]
# Entered for the time of a call, with the method's name; it sees what ends the call, and lets it pass.
Observer: TypeAlias = Callable[[str, Context], AbstractContextManager[None]]
PassOn: TypeAlias = Callable[[str, bytes, Context], Awaitable[bytes]]


class Servicer(Protocol):
    """Methods called as in SERVICE. One may return bytes: its response in encoded form."""

    @property
    def SERVICE(self) -> ServiceDescriptor: ...


if TYPE_CHECKING:  # the class is generic only in its stubs
    _GenericHandler = grpc.GenericRpcHandler[Any, Any]
else:
    _GenericHandler = grpc.GenericRpcHandler


class Dispatch(_GenericHandler):
    """The table of methods."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        """Start with no method; `observers` watch the calls of all of them."""
        self._observers = observers
        self._methods: dict[str, Handler] = {}
        self._expected: Set[str] = frozenset()
        self._load: Callable[[], None] | None = None
        self._divert: Callable[[grpc.HandlerCallDetails], Handler] | None = None
        self._calls = _Calls()
        self._parked: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._pass_on: PassOn | None = None

    def add(self, servicer: Servicer) -> None:
        """Serve the methods of a servicer; those that it does not define are answered with UNIMPLEMENTED.

        The generated servicer classes are not used: together with stubs for clients, they take as long to
        load as all messages.
        """
        for method in servicer.SERVICE.methods:
            behaviour = getattr(servicer, method.name, None)
            if behaviour is not None:
                self.register(
                    f"/{servicer.SERVICE.full_name}/{method.name}",
                    _KINDS[method.client_streaming, method.server_streaming],
                    behaviour,
                    GetMessageClass(method.input_type).FromString,
                    GetMessageClass(method.output_type).SerializeToString,
                )

    def register(
        self,
        method: str,
        kind: Callable[..., Handler],
        behaviour: Behaviour,
        deserialize: Callable[[bytes], Any],
        serialize: Callable[[Any], bytes],
    ) -> None:
        """Serve `method`, a name with slashes, by `behaviour`; `kind` makes a handler of it."""
        if method in _PARKED:
            behaviour = self._parking(method, behaviour, unary=kind is grpc.unary_unary_rpc_method_handler)
        guard = _guard_generator if inspect.isasyncgenfunction(behaviour) else _guard
        guarded: Behaviour = guard(method, behaviour, self._calls)
        self._methods[method] = kind(
            _observed(method, guarded, self._observers) if self._observers else guarded,
            request_deserializer=deserialize,
            response_serializer=_passing_bytes(serialize),
        )

    def services(self) -> set[str]:
        """Return the full names of the services that there are."""
        return {method.split("/")[1] for method in self._methods} | self._expected

    def kinds(self) -> dict[str, str]:
        """Return what kind of call each method takes, as other servers' metrics say it."""
        names = {
            (False, False): "unary",
            (False, True): "server_stream",
            (True, False): "client_stream",
            (True, True): "bidi_stream",
        }
        return {
            method: names[handler.request_streaming, handler.response_streaming]
            for method, handler in self._methods.items()
        }

    def expect(self, services: Set[str], load: Callable[[], None]) -> None:
        """Count `services` among ours: `load` adds them, when one of them is called or at `complete`."""
        self._expected = services
        self._load = load

    def complete(self) -> None:
        """Add what is expected, unless that was done."""
        load, self._load = self._load, None
        if load is not None:
            load()

    def service(self, details: grpc.HandlerCallDetails) -> Handler:
        """Return the handler of a call. grpc asks this for every one."""
        if self._divert is not None:
            return self._divert(details)
        handler = self._methods.get(details.method)
        if handler is None and self._load is not None:
            self.complete()
            handler = self._methods.get(details.method)
        return handler or self._unknown(details.method)

    def divert(self, handler_for: Callable[[grpc.HandlerCallDetails], Handler] | None) -> None:
        """Let `handler_for` choose the handler of every call that arrives from now on; None: our own again."""
        self._divert = handler_for

    async def settle(self, seconds: float, besides: Set[asyncio.Task[Any] | None]) -> None:
        """Let the calls under way end, but for `besides` and those that only wait for something.

        What has not ended after `seconds` is cancelled, and its client told to try again.
        """
        running = self._calls.running - self._parked - besides
        if running:
            _, late = await asyncio.wait(running, timeout=seconds)
            await self._calls.cut_off(late)

    def end_parked(self, pass_on: "PassOn | None" = None) -> None:
        """End calls that only wait for something to happen, and those to come, with UNAVAILABLE.

        Unary ones are handed to `pass_on`, if it is given, and go on waiting there.
        """
        self._stopping = True
        self._pass_on = pass_on
        for task in self._parked:
            task.cancel()

    def _unknown(self, method: str) -> Handler:
        """Return a handler that says what it is that we do not have."""
        service, _, name = method.removeprefix("/").partition("/")
        known = service in self.services()
        text = f"unknown method {name} for service {service}" if known else f"unknown service {service}"

        async def refuse(requests: object, context: Context) -> None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, text)

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _parking(self, method: str, behaviour: Behaviour, *, unary: bool) -> Behaviour:
        async def call(request: Any, context: Context) -> Any:
            task = asyncio.current_task()
            assert task is not None
            self._parked.add(task)
            try:
                if not self._stopping:
                    return await behaviour(request, _Unbroken(context))
            except asyncio.CancelledError:
                if not self._stopping:
                    raise
                task.uncancel()
            finally:
                self._parked.discard(task)
            if unary and self._pass_on is not None:
                return await self._pass_on(method, request.SerializeToString(), context)
            raise Unavailable("the daemon is stopping")

        return call


class _Unbroken:
    """A context that carries on with what it is sending when the call is cancelled.

    grpc has a status follow only what has been sent whole, and fails otherwise.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def send_initial_metadata(self, metadata: Any) -> None:
        await _to_its_end(self._context.send_initial_metadata(metadata))

    async def write(self, message: Any) -> None:
        await _to_its_end(self._context.write(message))


async def _to_its_end(operation: Awaitable[None]) -> None:
    """Wait for `operation`, also when the waiting is cancelled."""
    task = asyncio.ensure_future(operation)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class _Calls:
    """The calls under way, each a task."""

    def __init__(self) -> None:
        self.running: set[asyncio.Task[Any]] = set()
        self._cut_off: set[asyncio.Task[Any]] = set()

    def begin(self) -> asyncio.Task[Any]:
        task = asyncio.current_task()
        assert task is not None
        self.running.add(task)
        return task

    def end(self, task: asyncio.Task[Any]) -> None:
        self.running.discard(task)

    def was_cut_off(self, task: asyncio.Task[Any]) -> bool:
        """Whether it was we who cancelled it: then there is somebody to answer."""
        if task not in self._cut_off:
            return False
        task.uncancel()
        return True

    async def cut_off(self, tasks: set[asyncio.Task[Any]]) -> None:
        """Cancel calls and return when they have ended."""
        self._cut_off |= tasks
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._cut_off -= tasks


# By whether the client and whether the server streams.
_KINDS: Final[Mapping[tuple[bool, bool], Callable[..., Handler]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _passing_bytes(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    return lambda response: response if type(response) is bytes else serialize(response)


def _observed(method: str, behaviour: Behaviour, observers: Sequence[Observer]) -> Behaviour:
    if inspect.isasyncgenfunction(behaviour):

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            with ExitStack() as stack:
                for observer in observers:
                    stack.enter_context(observer(method, context))
                async for response in behaviour(request, context):
                    yield response

        return stream

    async def call(request: Any, context: Context) -> Any:
        with ExitStack() as stack:
            for observer in observers:
                stack.enter_context(observer(method, context))
            return await behaviour(request, context)

    return call


def _guard(method: str, behaviour: Behaviour, calls: _Calls) -> Callable[[Any, Context], Awaitable[Any]]:
    async def call(request: Any, context: Context) -> Any:
        task = calls.begin()
        try:
            return await behaviour(request, context)
        except (ApiError, OSError) as error:
            await _abort(context, _answer(method, error))
        except asyncio.CancelledError:
            if not calls.was_cut_off(task):
                raise
            await _abort(context, Unavailable(_REPLACED))
        finally:
            calls.end(task)

    return call


def _guard_generator(method: str, behaviour: Behaviour, calls: _Calls) -> Callable[[Any, Context], AsyncIterator[Any]]:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        task = calls.begin()
        try:
            async for response in behaviour(request, context):
                yield response
        except (ApiError, OSError) as error:
            await _abort(context, _answer(method, error))
        except asyncio.CancelledError:
            if not calls.was_cut_off(task):
                raise
            await _abort(context, Unavailable(_REPLACED))
        finally:
            calls.end(task)

    return call


async def _abort(context: Context, error: ApiError) -> None:
    """End the call with the status that stands for `error`."""
    # It may name a file of an image, which need be no text: grpc would answer nothing, and the client wait for ever.
    text = str(error)[:_MAX_MESSAGE_CHARACTERS].encode(errors="replace").decode()
    await context.abort(_STATUS[error.code], text)


def _answer(method: str, error: ApiError | OSError) -> ApiError:
    """Return what the client gets to know. Every exception that does not come here is a bug: grpc logs its trace."""
    if isinstance(error, ApiError):
        return error
    # The system refused something, and the client gets the text. Where something is used up, that says it all.
    if error.errno in _EXHAUSTED:
        _log.error("call.failed", method=method, error=str(error))
        return ResourceExhausted(f"{method}: {error}")
    _log.error("call.failed", method=method, exc_info=error)
    return UnknownError(f"{method}: {error}")
