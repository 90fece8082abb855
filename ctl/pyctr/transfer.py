"""Transfers: images to and from registries, archives and other names, by containerd's transfer service.

The daemon does the work. Beside the call itself run streams on the same connection: progress comes,
an archive goes or comes, and the daemon asks for credentials. Source: containerd docs/transfer.md.
"""

import secrets
from collections.abc import Callable, Sequence
from datetime import date
from typing import IO, Final

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from pyctr import credentials, progress, references
from pyctr.connection import INTROSPECTION, STREAMING, TRANSFER, Connection
from pyctr.errors import CommandError, tell
from pyctr.http2 import Call, Channel
from pyctr_wire.containerd.services.introspection.v1 import introspection_pb2
from pyctr_wire.containerd.services.streaming.v1 import streaming_pb2
from pyctr_wire.containerd.services.transfer.v1 import transfer_pb2
from pyctr_wire.containerd.types.platform_pb2 import Platform
from pyctr_wire.containerd.types.transfer import imagestore_pb2, importexport_pb2, registry_pb2
from pyctr_wire.containerd.types.transfer.progress_pb2 import Progress
from pyctr_wire.containerd.types.transfer.streaming_pb2 import Data, WindowUpdate
from pyctr_wire.errors import Unavailable
from pyctr_wire.progress_events import WARNING

_CHUNK: Final = 32 << 10  # the most that one Data message may carry
_WINDOW: Final = 64 << 10


def pack(message: Message) -> Any:
    """Return `message` in an Any, under containerd's bare type names."""
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def parse_platform(text: str) -> Platform:
    """Return the platform in "linux/arm64/v8". Raises CommandError."""
    os, *rest = text.split("/")
    if not 1 <= len(rest) <= 2 or not all((os, *rest)):
        raise CommandError(f"{text!r} is not a platform such as linux/amd64")
    return Platform(os=os, architecture=rest[0], variant=rest[1] if len(rest) == 2 else "")


class _Stream:
    """One open stream, and what happens with its messages."""

    def __init__(self, transfer: "_Transfer", prefix: str, on_message: Callable[[Any], None] | None) -> None:
        """Open it; the daemon has registered its name when this returns."""
        self.name = f"{prefix}-{secrets.token_hex(8)}"
        self.on_message = on_message
        self._transfer = transfer
        self.call = transfer.open(STREAMING, "Stream")
        self.send(streaming_pb2.StreamInit(id=self.name))
        transfer.channel.wait(self.call)
        if not self.call.messages:
            raise self.call.error or Unavailable("the daemon closed a stream at once")
        self.call.messages.popleft()  # empty: it is registered

    def send(self, message: Message) -> None:
        """Send one message."""
        self._transfer.channel.send(self.call, pack(message).SerializeToString(), last=False)


class _Transfer:
    """One transfer call and its streams, on one connection."""

    def __init__(self, connection: Connection) -> None:
        """Use the connection that there is now."""
        self._connection = connection
        self.channel: Channel = connection.channel
        self._streams: list[_Stream] = []

    def open(self, service: str, method: str) -> Call:
        """Open a call on this transfer's connection. Raises Unavailable if that has just been replaced."""
        channel, call = self._connection.open(service, method)
        if channel is not self.channel:
            channel.cancel(call)
            raise Unavailable("the daemon was replaced just now: try again")
        return call

    def stream(self, prefix: str, on_message: Callable[[Any], None] | None = None) -> _Stream:
        """Open a stream whose messages go to `on_message`."""
        stream = _Stream(self, prefix, on_message)
        self._streams.append(stream)
        return stream

    def run(
        self,
        source: Message,
        destination: Message,
        work: Callable[[], bool] = lambda: False,
        last: Call | None = None,
    ) -> list[str]:
        """Make the transfer, print what the daemon warns of, and return the names under which images were stored.

        `work` is called whenever nothing waits, and tells whether it did something. `last` is a stream
        that the daemon ends when it has sent everything. Raises what the daemon answers.
        """
        saved: list[str] = []
        warnings: list[str] = []

        def report(message: Any) -> None:
            one = Progress.FromString(message.value)
            if one.event.startswith(WARNING):
                warnings.append(one.event)
                return
            if one.event == "saved":
                saved.append(one.name)
            display.show(one)

        with progress.display() as display:
            stream = self.stream("progress", report)
            request = transfer_pb2.TransferRequest(
                source=pack(source),
                destination=pack(destination),
                options=transfer_pb2.TransferOptions(progress_stream=stream.name),
            )
            call = self.open(TRANSFER, "Transfer")
            self.channel.send(call, request.SerializeToString(), last=True)
            try:
                while not call.done or (last is not None and not last.done and call.error is None):
                    self.channel.pump(0 if work() else None)
                    self.dispatch()
            finally:
                for one in self._streams:
                    self.channel.cancel(one.call)
        for warning in warnings:
            tell(warning)
        if call.error is not None:
            raise call.error
        return saved

    def dispatch(self) -> None:
        """Give the streams' messages to whom they are for."""
        for stream in self._streams:
            while stream.call.messages:
                message = Any.FromString(stream.call.messages.popleft())
                if stream.on_message is not None:
                    stream.on_message(message)


class _Upload:
    """Sends a file as far as the daemon's credit allows."""

    def __init__(self, transfer: _Transfer, file: IO[bytes]) -> None:
        """`file` is borrowed."""
        self._file = file
        self._transfer = transfer
        self._credit = 0
        self._ended = False
        self.stream = transfer.stream("import", self._take)

    def _take(self, message: Any) -> None:
        self._credit += WindowUpdate.FromString(message.value).update

    def work(self) -> bool:
        """Send a chunk if there is credit for it; tell whether one was sent."""
        if self._ended or self._credit <= 0:
            return False
        data = self._file.read(min(_CHUNK, self._credit))
        if data:
            self._credit -= len(data)
            self.stream.send(Data(data=data))
        else:
            self._ended = True
            self._transfer.channel.finish(self.stream.call)
        return True


class _Download:
    """Receives a file and gives the daemon credit for more."""

    def __init__(self, transfer: _Transfer, file: IO[bytes]) -> None:
        """`file` is borrowed."""
        self._file = file
        self.stream = transfer.stream("export", self._take)
        self._credit = 0
        self._top_up()

    def _top_up(self) -> None:
        while self._credit < _WINDOW:
            self.stream.send(WindowUpdate(update=_WINDOW))
            self._credit += _WINDOW

    def _take(self, message: Any) -> None:
        data = Data.FromString(message.value).data
        self._file.write(data)
        self._credit -= len(data)
        self._top_up()


def _resolver(transfer: _Transfer) -> registry_pb2.RegistryResolver:
    """Return a resolver that asks us for credentials: ours, not the daemon's user's."""

    def answer(message: Any) -> None:
        request = registry_pb2.AuthRequest.FromString(message.value)
        found = credentials.find(request.host)
        if found is None:
            response = registry_pb2.AuthResponse(authType=registry_pb2.AuthType.NONE)
        else:
            kind = registry_pb2.AuthType.CREDENTIALS if found.username else registry_pb2.AuthType.REFRESH
            response = registry_pb2.AuthResponse(authType=kind, username=found.username, secret=found.secret)
        stream.send(response)

    stream = transfer.stream("creds", answer)
    return registry_pb2.RegistryResolver(auth_stream=stream.name)


def _unreachable(name: str, error: Unavailable, *remedies: str) -> CommandError:
    host = references.host_of(name)
    text = f"{error}\nThe registry {host} could not be reached. Without a way to it you can:"
    return CommandError("\n  ".join((text, *(remedy.format(host=host) for remedy in remedies))))


def _own_platform(connection: Connection) -> Platform:
    """Return the platform of the daemon's machine, which need not be ours."""
    request = introspection_pb2.PluginInfoRequest(type="io.containerd.runtime.v2", id="task")
    answer = connection.call(INTROSPECTION, "PluginInfo", request, introspection_pb2.PluginInfoResponse)
    return answer.plugin.platforms[0]


def pull(
    connection: Connection,
    image: str,
    *,
    platform: str = "",
    every_platform: bool = False,
    snapshotter: str = "",
    unpack: bool = True,
) -> str:
    """Pull an image and unpack it; return its full name.

    Without `platform`, it is the daemon's own. With `every_platform`, all are fetched and one is unpacked.
    """
    if platform and every_platform:
        raise CommandError("--platform and --all-platforms exclude each other")
    name = references.complete(image)
    wanted = parse_platform(platform) if platform else None
    store = imagestore_pb2.ImageStore(name=name)
    if not every_platform:
        store.platforms.append(wanted or _own_platform(connection))
    transfer = _Transfer(connection)
    if unpack:
        store.unpacks.add(platform=wanted, snapshotter=snapshotter)
    source = registry_pb2.OCIRegistry(reference=name, resolver=_resolver(transfer))
    try:
        transfer.run(source, store)
    except Unavailable as error:
        raise _unreachable(
            name,
            error,
            "name a mirror in /etc/pyctr/certs.d/{host}/hosts.toml",
            "bring an archive and load it: pyctr image import FILE",
            "make an image from programs of this machine: pyctr image from-host NAME PROGRAM...",
        ) from None
    return name


def push(connection: Connection, image: str, target: str, platforms: Sequence[str]) -> None:
    """Push the image called `image` to the reference `target`."""
    transfer = _Transfer(connection)
    store = imagestore_pb2.ImageStore(name=image, platforms=[parse_platform(text) for text in platforms])
    destination = registry_pb2.OCIRegistry(reference=target, resolver=_resolver(transfer))
    try:
        transfer.run(store, destination)
    except Unavailable as error:
        raise _unreachable(
            target,
            error,
            f"push to another: pyctr image push {references.familiar(image)} HOST/NAME",
            f"write an archive and carry it: pyctr image export -o FILE {references.familiar(image)}",
        ) from None


def import_archive(connection: Connection, file: IO[bytes], *, platform: str, snapshotter: str) -> list[str]:
    """Send an archive; its images are stored and unpacked. Returns their names.

    Those without a name of their own get one from the day and their digest.
    """
    transfer = _Transfer(connection)
    upload = _Upload(transfer, file)
    wanted = parse_platform(platform) if platform else None
    store = imagestore_pb2.ImageStore(platforms=[wanted] if wanted else [])
    store.extra_references.add(
        name=f"import-{date.today().isoformat()}",
        is_prefix=True,
        allow_overwrite=True,
        add_digest=True,
        skip_named_digest=True,
    )
    store.unpacks.add(platform=wanted, snapshotter=snapshotter)
    return transfer.run(importexport_pb2.ImageImportStream(stream=upload.stream.name), store, upload.work)


def export_archive(
    connection: Connection, image: str, file: IO[bytes], *, platforms: Sequence[str], every_platform: bool
) -> None:
    """Receive an archive of an image."""
    transfer = _Transfer(connection)
    download = _Download(transfer, file)
    destination = importexport_pb2.ImageExportStream(
        stream=download.stream.name,
        platforms=[parse_platform(text) for text in platforms],
        all_platforms=every_platform,
    )
    transfer.run(imagestore_pb2.ImageStore(name=image), destination, last=download.stream.call)


def tag(connection: Connection, image: str, target: str) -> None:
    """Give an image another name."""
    transfer = _Transfer(connection)
    transfer.run(imagestore_pb2.ImageStore(name=image), imagestore_pb2.ImageStore(name=target))
