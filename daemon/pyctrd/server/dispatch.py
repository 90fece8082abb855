"""From a method's name to its handler, and from our exceptions to those that become a status.

There is one table of all methods, and a servicer's method is wrapped once, when it is registered.
"""

import asyncio
import errno
from collections.abc import Awaitable, Callable, Set
from contextlib import suppress
from typing import Any, Final, Protocol, TypeAlias

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from pyctr_wire.errors import ApiError, Internal, ResourceExhausted, Unavailable, Unimplemented, UnknownError, error_for
from pyctrd.log import Logger
from pyctrd.server.http2.call import Call, Handler

_EXHAUSTED: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})

# Calls that end when something happens elsewhere, perhaps in days: a daemon that stops does not wait for them.
_PARKED: Final = frozenset(
    {
        "/containerd.services.events.v1.Events/Subscribe",
        "/containerd.services.sandbox.v1.Controller/Wait",
        "/containerd.services.streaming.v1.Streaming/Stream",
        "/containerd.services.tasks.v1.Tasks/Wait",
        "/grpc.health.v1.Health/Watch",
    }
)

_PATIENCE: Final = 1.0  # seconds until somebody hears that there is no such method who does not say what he wants
_REPLACED: Final = "the daemon is being replaced; try again"

_log = Logger("pyctrd.server")

Behaviour: TypeAlias = Callable[[Any, Any], Awaitable[Any]]
HandlerFor: TypeAlias = Callable[[str], Handler]
PassOn: TypeAlias = Callable[[str, bytes, Call], Awaitable[bytes]]


class Servicer(Protocol):
    """Methods called as in SERVICE. One may return bytes: its response in encoded form."""

    @property
    def SERVICE(self) -> ServiceDescriptor: ...


class Dispatch:
    """The table of methods."""

    def __init__(self) -> None:
        """Start with no method."""
        self._methods: dict[str, Handler] = {}
        self._expected: Set[str] = frozenset()
        self._load: Callable[[], None] | None = None
        self._divert: HandlerFor | None = None
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
                    Handler(
                        behaviour,
                        method.client_streaming,
                        method.server_streaming,
                        _deserializer(GetMessageClass(method.input_type)),
                        GetMessageClass(method.output_type).SerializeToString,
                    ),
                )

    def register(self, method: str, handler: Handler) -> None:
        """Serve `method`, a name with slashes."""
        behaviour = handler.behaviour
        if method in _PARKED:
            behaviour = self._parking(method, behaviour, unary=not handler.server_streams)
        self._methods[method] = handler._replace(
            behaviour=_guard(method, behaviour, self._calls), serialize=_passing_bytes(handler.serialize)
        )

    def services(self) -> set[str]:
        """Return the full names of the services that there are."""
        return {method.split("/")[1] for method in self._methods} | self._expected

    def expect(self, services: Set[str], load: Callable[[], None]) -> None:
        """Count `services` among ours: `load` adds them, when one of them is called or at `complete`."""
        self._expected = services
        self._load = load

    def complete(self) -> None:
        """Add what is expected, unless that was done."""
        load, self._load = self._load, None
        if load is not None:
            load()

    def handler_for(self, method: str) -> Handler:
        """Return the handler of a call, whatever its method."""
        if self._divert is not None:
            return self._divert(method)
        handler = self._methods.get(method)
        if handler is None and self._load is not None:
            self.complete()
            handler = self._methods.get(method)
        return handler or self._unknown(method)

    def divert(self, handler_for: HandlerFor | None) -> None:
        """Let `handler_for` choose the handler of every call that arrives from now on; None: our own again."""
        self._divert = handler_for

    async def settle(self, seconds: float, besides: Set[asyncio.Task[Any] | None]) -> None:
        """Let the calls under way end, but for `besides` and those that only wait for something.

        What has not ended after `seconds` is cancelled, and its client told to try again.
        """
        await asyncio.sleep(0)  # what has been accepted in this turn of the loop begins
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

        async def refuse(requests: object, call: Call) -> None:
            # grpc's asynchronous client takes an answer that comes before it has asked for a failure of its own.
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await call.read()
            raise error_for(Unimplemented.code, text)  # in the words that clients know

        return Handler(refuse, client_streams=True, server_streams=True, deserialize=bytes, serialize=bytes)

    def _parking(self, method: str, behaviour: Behaviour, *, unary: bool) -> Behaviour:
        async def call(request: Any, context: Call) -> Any:
            task = asyncio.current_task()
            assert task is not None
            self._parked.add(task)
            try:
                if not self._stopping:
                    return await behaviour(request, context)
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


def _deserializer(kind: type[Message]) -> Callable[[bytes], Message]:
    def deserialize(data: bytes) -> Message:
        try:
            return kind.FromString(data)
        except DecodeError as error:
            raise Internal(f"the request is no {kind.DESCRIPTOR.full_name}") from error

    return deserialize


def _passing_bytes(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    return lambda response: response if type(response) is bytes else serialize(response)


def _guard(method: str, behaviour: Behaviour, calls: _Calls) -> Behaviour:
    """Return a behaviour that raises nothing but what clients get to know, bugs aside."""

    async def call(request: Any, context: Call) -> Any:
        task = calls.begin()
        try:
            return await behaviour(request, context)
        except OSError as error:
            raise _answer(method, error) from error
        except asyncio.CancelledError:
            if not calls.was_cut_off(task):
                raise
            raise Unavailable(_REPLACED) from None
        finally:
            calls.end(task)

    return call


def _answer(method: str, error: OSError) -> ApiError:
    """Return what the client gets to know of something that the system refused: where it is used up, that says all."""
    if error.errno in _EXHAUSTED:
        _log.error("call.failed", method=method, error=str(error))
        return ResourceExhausted(f"{method}: {error}")
    _log.error("call.failed", method=method, exc_info=error)
    return UnknownError(f"{method}: {error}")
