"""A client of the transfer and streaming services, as containerd's Go client is one: streams, credit, credentials."""

import io
import queue
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from pyctr_wire.containerd.services.streaming.v1 import streaming_pb2, streaming_pb2_grpc
from pyctr_wire.containerd.services.transfer.v1 import transfer_pb2, transfer_pb2_grpc
from pyctr_wire.containerd.types import platform_pb2
from pyctr_wire.containerd.types.transfer import imagestore_pb2, importexport_pb2, progress_pb2, registry_pb2
from pyctr_wire.containerd.types.transfer import streaming_pb2 as bytes_pb2

DEADLINE = 60.0  # seconds
WINDOW = 64 << 10
AMD64 = platform_pb2.Platform(os="linux", architecture="amd64")

Answer = Callable[[registry_pb2.AuthRequest], registry_pb2.AuthResponse]


def packed(message: Message) -> AnyMessage:
    """Return `message` in an Any as containerd writes it: without a prefix."""
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


class Stream:
    """One named stream; `send` and iteration are its two directions."""

    def __init__(self, channel: grpc.Channel, namespace: str) -> None:
        """Open it, and return when the daemon knows it."""
        self.name = f"stream-{uuid.uuid4().hex[:8]}"
        self._outgoing: queue.SimpleQueue[AnyMessage | None] = queue.SimpleQueue()
        self.send(streaming_pb2.StreamInit(id=self.name))
        metadata = (("containerd-namespace", namespace),)
        stub: Any = streaming_pb2_grpc.StreamingStub(channel)
        self.call = stub.Stream(iter(self._outgoing.get, None), metadata=metadata)
        next(self.call)

    def send(self, message: Message) -> None:
        """Send a message."""
        self._outgoing.put(packed(message))

    def end(self) -> None:
        """Send nothing more."""
        self._outgoing.put(None)

    def __iter__(self) -> Iterator[AnyMessage]:
        """Yield what the daemon sends until it closes the stream, we do, or it dies: the transfer's status tells."""
        try:
            yield from self.call
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE):
                raise


class TransferClient:
    """Transfers in one namespace."""

    def __init__(self, channel: grpc.Channel, namespace: str = "default") -> None:
        self._channel = channel
        self._namespace = namespace
        self.progress: list[progress_pb2.Progress] = []

    def transfer(
        self, source: Message, destination: Message, *helpers: tuple[Stream, Callable[[Stream], None]]
    ) -> None:
        """Carry out a transfer while each of `helpers` serves its stream in a thread; collects the progress."""
        self.progress = []
        reports = self.stream()
        serving = [*helpers, (reports, self._collect)]
        threads = [threading.Thread(target=serve, args=(stream,)) for stream, serve in serving]
        for thread in threads:
            thread.start()
        try:
            transfer_pb2_grpc.TransferStub(self._channel).Transfer(
                transfer_pb2.TransferRequest(
                    source=packed(source),
                    destination=packed(destination),
                    options=transfer_pb2.TransferOptions(progress_stream=reports.name),
                ),
                metadata=(("containerd-namespace", self._namespace),),
                timeout=DEADLINE,
            )
            for thread in threads[len(helpers) :]:
                thread.join(DEADLINE)  # the daemon ends the progress stream when it has said everything
        finally:
            for stream, _ in serving:
                stream.end()
                stream.call.cancel()
            for thread in threads:
                thread.join(DEADLINE)

    def stream(self) -> Stream:
        """Return a new stream."""
        return Stream(self._channel, self._namespace)

    def pull(self, reference: str, answer: Answer | None = None, **options: Any) -> None:
        """Pull and unpack for amd64; `answer` is asked for credentials."""
        registry = registry_pb2.OCIRegistry(reference=reference)
        helpers = []
        if answer is not None:
            asking = self.stream()
            registry.resolver.auth_stream = asking.name
            helpers.append((asking, _answering(answer)))
        options.setdefault("unpacks", [imagestore_pb2.UnpackConfiguration(snapshotter="overlayfs")])
        store = imagestore_pb2.ImageStore(name=reference, platforms=[AMD64], **options)
        self.transfer(registry, store, *helpers)

    def push(self, name: str, reference: str) -> None:
        """Push an image of the store."""
        self.transfer(imagestore_pb2.ImageStore(name=name), registry_pb2.OCIRegistry(reference=reference))

    def load(self, archive: bytes, **options: Any) -> None:
        """Import an archive."""
        stream = self.stream()
        source = importexport_pb2.ImageImportStream(stream=stream.name)
        self.transfer(source, imagestore_pb2.ImageStore(platforms=[AMD64], **options), (stream, _sending(archive)))

    def save(self, *names: str) -> bytes:
        """Export images and return the archive."""
        stream = self.stream()
        archive = io.BytesIO()
        extra = [imagestore_pb2.ImageReference(name=name) for name in names[1:]]
        self.transfer(
            imagestore_pb2.ImageStore(name=names[0], extra_references=extra),
            importexport_pb2.ImageExportStream(stream=stream.name, platforms=[AMD64]),
            (stream, _receiving(archive)),
        )
        return archive.getvalue()

    def _collect(self, stream: Stream) -> None:
        self.progress += [progress_pb2.Progress.FromString(message.value) for message in stream]


def _answering(answer: Answer) -> Callable[[Stream], None]:
    def serve(stream: Stream) -> None:
        for message in stream:
            stream.send(answer(registry_pb2.AuthRequest.FromString(message.value)))

    return serve


def _sending(archive: bytes) -> Callable[[Stream], None]:
    def serve(stream: Stream) -> None:
        sent = 0
        for message in stream:
            granted = bytes_pb2.WindowUpdate.FromString(message.value).update
            end = min(sent + granted, len(archive))
            for start in range(sent, end, WINDOW // 2):
                stream.send(bytes_pb2.Data(data=archive[start : min(start + WINDOW // 2, end)]))
            sent = end
            if sent == len(archive):
                stream.end()
                return

    return serve


def _receiving(archive: io.BytesIO) -> Callable[[Stream], None]:
    def serve(stream: Stream) -> None:
        stream.send(bytes_pb2.WindowUpdate(update=WINDOW))
        for message in stream:
            data = bytes_pb2.Data.FromString(message.value).data
            archive.write(data)
            stream.send(bytes_pb2.WindowUpdate(update=len(data)))

    return serve
