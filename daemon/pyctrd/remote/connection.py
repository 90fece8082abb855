"""Calls to a program that keeps snapshots or content for us: with deadlines, and errors that say who failed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message

from pyctr_wire.errors import ApiError, Code, DeadlineExceeded, Unavailable, error_for

SILENT_TIMEOUT: Final = 2.0  # seconds for who did not answer the last time
_MAX_MESSAGE: Final = 16 << 20  # bytes
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.max_send_message_length", _MAX_MESSAGE),
    # Who comes back is found within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
)

Reply = TypeVar("Reply", bound=Message)


class Remote:
    """One program at the other end of a socket. Used from threads, never from the event loop; thread-safe."""

    def __init__(self, what: str, address: str, namespace: str, timeout: float, lease: str = "") -> None:
        """Call `address`, a path, in its `namespace`; each call may take `timeout` seconds.

        `what` names it in errors. What calls make is held by `lease`, if one is given. It is not connected to before
        the first call, and need not be there.
        """
        self.what = what
        self.address = address
        self._metadata = (("containerd-namespace", namespace), *([("containerd-lease", lease)] if lease else ()))
        self._timeout = timeout
        self._silent = False
        self._channel = grpc.insecure_channel(f"unix:{address}", options=_OPTIONS)

    def close(self) -> None:
        """End the connection, and the calls under way."""
        self._channel.close()

    def call(self, method: str, request: Message, reply: type[Reply]) -> Reply:
        """Return what `method`, as /SERVICE/NAME, answers. Raises the error that it sent, naming it; Unavailable."""
        stub = self._channel.unary_unary(method, request_serializer=_bytes_of, response_deserializer=reply.FromString)
        with self._naming(method):
            answer: Reply = stub(request, timeout=self._seconds, metadata=self._metadata)
        return answer

    def receive(self, method: str, request: Message, reply: type[Reply], more: float = 0.0) -> Iterator[Reply]:
        """Yield the messages of a stream that `method` sends, for `more` seconds more. Raises as `call` does."""
        stub = self._channel.unary_stream(method, request_serializer=_bytes_of, response_deserializer=reply.FromString)
        with self._naming(method):
            yield from stub(request, timeout=self._seconds + more, metadata=self._metadata)

    def exchange(
        self, method: str, requests: Iterable[Message], reply: type[Reply], more: float = 0.0
    ) -> Iterator[Reply]:
        """Send messages, taken one by one as they are wanted, and yield the answers. Raises as `receive` does."""
        stub = self._channel.stream_stream(method, request_serializer=_bytes_of, response_deserializer=reply.FromString)
        with self._naming(method):
            yield from stub(iter(requests), timeout=self._seconds + more, metadata=self._metadata)

    @property
    def _seconds(self) -> float:
        return min(self._timeout, SILENT_TIMEOUT) if self._silent else self._timeout

    @contextmanager
    def _naming(self, method: str) -> Iterator[None]:
        """Raise our own class for an error of grpc's."""
        name = method.rpartition("/")[2]
        try:
            yield
        except grpc.RpcError as error:
            raise self._translated(name, error) from None
        self._silent = False

    def _translated(self, name: str, error: Any) -> ApiError:
        code, details = Code(error.code().value[0]), error.details() or ""
        self._silent = code is Code.DEADLINE_EXCEEDED
        if code is Code.UNAVAILABLE:
            reason = details.rpartition("error: ")[2]  # of the whole story, what the kernel said
            return Unavailable(
                f"{self.what}: {name}: nobody answers at {self.address}: {reason}; see that its service runs"
            )
        if code is Code.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"{self.what}: {name}: no answer from {self.address} in time")
        return error_for(code, f"{self.what}: {name}: {details}")


def _bytes_of(message: Message) -> bytes:
    return message.SerializeToString()
