"""The connection to the daemon: typed calls, errors as classes, a new connection when one ends."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, TypeVar

from pyctr.http2 import Call, Channel, ConnectionLost, NotSent
from pyctr.transport import TlsFiles, TlsTransport, UnixTransport
from pyctr_wire.errors import FailedPrecondition, Internal

if TYPE_CHECKING:  # protobuf is imported by whoever makes a message: `pyctr --help` makes none
    from google.protobuf.message import Message

CONTAINERS: Final = "containerd.services.containers.v1.Containers"
CONTENT: Final = "containerd.services.content.v1.Content"
ENGINE: Final = "pyctr.v1.Engine"
EVENTS: Final = "containerd.services.events.v1.Events"
IMAGES: Final = "containerd.services.images.v1.Images"
INTROSPECTION: Final = "containerd.services.introspection.v1.Introspection"
LEASES: Final = "containerd.services.leases.v1.Leases"
NAMESPACES: Final = "containerd.services.namespaces.v1.Namespaces"
SNAPSHOTS: Final = "containerd.services.snapshots.v1.Snapshots"
STREAMING: Final = "containerd.services.streaming.v1.Streaming"
TASKS: Final = "containerd.services.tasks.v1.Tasks"
TRANSFER: Final = "containerd.services.transfer.v1.Transfer"
VERSION: Final = "containerd.services.version.v1.Version"

DEFAULT_TIMEOUT: Final = 60.0  # seconds, for calls that should be quick
_CONNECT_TIMEOUT: Final = 10.0
_TCP: Final = "tcp://"
_RETRY_PAUSE: Final = 0.05
_MOST_TURNS: Final = 20  # times that a call is made which a daemon that is going away has not taken

Answer = TypeVar("Answer", bound="Message")


class NoDaemon(NotSent):
    """Nobody serves the socket; the text says what to do about it."""


def socket_path(address: str) -> str:
    """Return the path in an address, which may be a path or a unix: URL."""
    return address.removeprefix("unix://").removeprefix("unix:")


def _decoded(answer: type[Answer], data: bytes) -> Answer:
    """Return the message in `data`. Raises Internal for what is none."""
    from google.protobuf.message import DecodeError

    try:
        return answer.FromString(data)
    except DecodeError:
        raise Internal(f"the daemon's answer is no {answer.DESCRIPTOR.full_name}") from None


class Connection:
    """A daemon's API in one namespace. Not for use by several threads."""

    def __init__(self, address: str, namespace: str, tls: TlsFiles | None = None) -> None:
        """Nothing is connected before the first call. `tls` is who we are to a daemon at a tcp:// address."""
        self.address = address
        self.namespace = namespace
        self.tls = tls
        self._channel: Channel | None = None

    def close(self) -> None:
        """Close the connection if there is one."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    @property
    def channel(self) -> Channel:
        """The connection that new calls use, made when there is none. Raises NoDaemon."""
        if self._channel is not None:
            self._channel.pump(0)  # notices a daemon that went away while nobody looked
        old = self._channel
        if old is None or not old.usable:
            self._channel = self._connect()
            if old is not None and old.idle:  # calls under way on it end there
                old.close()
            return self._channel
        return old

    def check_local(self, what: str) -> None:
        """Raise FailedPrecondition if the daemon is another machine's, where alone there is `what`."""
        if self.address.startswith(_TCP):
            raise FailedPrecondition(f"{what} can be had on the daemon's own machine only, not over {self.address}")

    def _connect(self) -> Channel:
        if self.address.startswith(_TCP):
            return self._connect_remote()
        path = socket_path(self.address)
        try:
            return Channel(UnixTransport(path, _CONNECT_TIMEOUT))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                remedy = "you may not use its socket; try again with sudo"
            elif error.errno in (errno.ENOENT, errno.ECONNREFUSED):
                remedy = "is pyctrd running? (another socket can be named with --address or PYCTR_ADDRESS)"
            else:
                remedy = os.strerror(error.errno or 0)
            raise NoDaemon(f"cannot connect to the daemon at {path}: {remedy}") from None

    def _connect_remote(self) -> Channel:
        host, _, port = self.address.removeprefix(_TCP).rpartition(":")
        if not host or not port.isdecimal():
            raise NoDaemon(f"{self.address}: an address of another machine is tcp://HOST:PORT")
        if self.tls is None:
            raise NoDaemon(f"{self.address} needs certificates: --tls-ca, --tls-cert and --tls-key")
        try:
            return Channel(TlsTransport(host.strip("[]"), int(port), self.tls, _CONNECT_TIMEOUT))
        except OSError as error:
            reason = getattr(error, "verify_message", "") or error.strerror or str(error)
            place = f"{error.filename}: " if error.filename else ""
            raise NoDaemon(f"cannot connect to the daemon at {self.address}: {place}{reason}") from None

    def open(self, service: str, method: str, timeout: float | None = None, lease: str = "") -> tuple[Channel, Call]:
        """Open a call and send nothing yet."""
        metadata = [("containerd-namespace", self.namespace)]
        if lease:
            metadata.append(("containerd-lease", lease))
        channel = self.channel
        return channel, channel.open(f"/{service}/{method}", metadata, timeout)

    def call(
        self,
        service: str,
        method: str,
        request: "Message",
        answer: type[Answer],
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        lease: str = "",
        patience: float = 0.0,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> Answer:
        """Make a unary call; `meanwhile` is called once it is on its way, while the daemon works.

        `timeout` and `patience` are seconds. Within `patience`, a call that lost its daemon is made
        again once one answers: for calls that may be repeated. Raises the ApiError that the daemon
        answered, DeadlineExceeded, ConnectionLost, NoDaemon.
        """
        give_up = time.monotonic() + patience
        turned_away = 0
        while True:
            try:
                channel, call = self.open(service, method, timeout, lease)
                channel.send(call, request.SerializeToString(), last=True)
                meanwhile()
                channel.wait(call)
                if call.messages and not call.done:
                    self._drain(channel, call)
                if call.error is not None:
                    raise call.error
                return _decoded(answer, call.messages[0])
            except NoDaemon:
                if time.monotonic() >= give_up:
                    raise
                time.sleep(_RETRY_PAUSE)
            except NotSent:  # the daemon went away as we called: the next one has not seen it
                turned_away += 1
                if turned_away == _MOST_TURNS:
                    raise
                time.sleep(_RETRY_PAUSE * (turned_away > 1))
            except ConnectionLost:
                if time.monotonic() >= give_up:
                    raise

    @staticmethod
    def _drain(channel: Channel, call: Call) -> None:
        while not call.done:
            channel.pump(None if call.deadline is None else max(0.0, call.deadline - time.monotonic()))

    def stream(self, service: str, method: str, request: "Message", answer: type[Answer]) -> Iterator[Answer]:
        """Make a call whose answers come one after the other; leaving the loop cancels it."""
        channel, call = self.open(service, method)
        channel.send(call, request.SerializeToString(), last=True)
        try:
            while True:
                channel.wait(call)
                while call.messages:
                    yield _decoded(answer, call.messages.popleft())
                if call.done and not call.messages:
                    break
            if call.error is not None:
                raise call.error
        finally:
            channel.cancel(call)
