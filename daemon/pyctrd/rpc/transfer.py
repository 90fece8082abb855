"""containerd.services.transfer.v1."""

import asyncio
from collections.abc import Iterable
from typing import ClassVar, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from pyctr_wire.containerd.services.transfer.v1 import transfer_pb2 as pb
from pyctr_wire.containerd.types import platform_pb2
from pyctr_wire.containerd.types.transfer import imagestore_pb2, importexport_pb2, progress_pb2, registry_pb2
from pyctr_wire.errors import InvalidArgument, Unavailable, Unimplemented
from pyctrd.core.anys import AnyValue
from pyctrd.core.platforms import Platform, normalize
from pyctrd.registry.credentials import Credentials
from pyctrd.rpc.convert.records import descriptor_to_proto
from pyctrd.rpc.headers import Context, lease_of, namespace_of
from pyctrd.runtime.operations import Operation, Operations
from pyctrd.streams.manager import Stream, StreamManager
from pyctrd.transfer import requests
from pyctrd.transfer.progress import Listener, Report
from pyctrd.transfer.service import Transfers

_Message = TypeVar("_Message", bound=Message)


class Transfer:
    """Images between registries, archives and the store."""

    SERVICE: ClassVar = pb.DESCRIPTOR.services_by_name["Transfer"]

    def __init__(self, transfers: Transfers, streams: StreamManager, operations: Operations) -> None:
        """Serve `transfers`, to which clients talk over `streams` while they run and which `operations` lists."""
        self._transfers = transfers
        self._streams = streams
        self._operations = operations

    async def Transfer(self, request: pb.TransferRequest, context: Context) -> Empty:
        """Move an image; when this returns it is there. Unimplemented for a pair that makes no sense."""
        ns = namespace_of(context)
        source, destination = _endpoint(request.source), _endpoint(request.destination)
        if source is None or destination is None:
            raise Unimplemented(
                f"method Transfer not implemented for {request.source.type_url} to {request.destination.type_url}"
            )
        credentials: ClientCredentials | None = None
        for one in (source, destination):
            if isinstance(one, requests.Registry) and one.auth_stream:
                credentials = ClientCredentials(self._streams.get(ns, one.auth_stream), one.reference)
        name = request.options.progress_stream
        listener = ProgressStream(self._streams.get(ns, name)) if name else None
        with self._operations.listed(ns, *_subject(source, destination)) as operation:
            staged = _Staged(operation, listener)
            await self._transfers.transfer(ns, lease_of(context), source, destination, credentials, staged)
        return Empty()


def _subject(source: requests.Endpoint, destination: requests.Endpoint) -> tuple[str, str]:
    """Return what a transfer is about, and what it does with that."""
    match source, destination:
        case requests.Registry(), _:
            return f"image {source.reference}", "pull"
        case _, requests.Registry():
            return f"image {destination.reference}", "push"
        case requests.ImageStore(), requests.ImageStore():
            return f"image {source.name}", "tag"
        case requests.ImageStore(), _:
            return f"image {source.name}", "export"
        case _:
            return f"archive {source.stream}", "import"


class _Staged:
    """Keeps the stage of an operation up to date, and tells the client if it listens."""

    def __init__(self, operation: Operation, client: Listener | None) -> None:
        self._operation = operation
        self._client = client

    async def send(self, report: Report) -> None:
        """Take in a report. Raises Cancelled if the client went away."""
        if report.descriptor is None:
            self._operation.stage = report.event
        if self._client is not None:
            await self._client.send(report)

    async def close(self) -> None:
        """End the client's stream."""
        if self._client is not None:
            await self._client.close()


class ClientCredentials:
    """Credentials that the client is asked for over its auth stream, one question at a time."""

    def __init__(self, stream: Stream, reference: str) -> None:
        """Ask over `stream` (borrowed), about `reference`."""
        self._stream = stream
        self._reference = reference
        self._turn = asyncio.Lock()

    async def __call__(self, host: str, challenges: tuple[str, ...]) -> Credentials | None:
        """Return what the client gives for `host`, None if it has nothing. Raises Cancelled if it went away."""
        question = registry_pb2.AuthRequest(host=host, reference=self._reference, wwwauthenticate=challenges)
        async with self._turn:
            await self._stream.send(AnyValue(question.DESCRIPTOR.full_name, question.SerializeToString()))
            message = await self._stream.receive()
        if message is None:
            raise Unavailable(f"the client ended its auth stream instead of answering for {host}")
        answer = _parsed(registry_pb2.AuthResponse, message.type_url, message.value)
        match answer.authType:
            case registry_pb2.AuthType.CREDENTIALS:
                return Credentials(answer.username, answer.secret)
            case registry_pb2.AuthType.REFRESH:
                return Credentials(secret=answer.secret)
            case registry_pb2.AuthType.HEADER:
                return Credentials(header=answer.secret)
        return None


class ProgressStream:
    """Tells the client over its progress stream."""

    def __init__(self, stream: Stream) -> None:
        """Send over `stream` (borrowed)."""
        self._stream = stream

    async def send(self, report: Report) -> None:
        """Send a report. Raises Cancelled if the client went away."""
        message = progress_pb2.Progress(
            event=report.event,
            name=report.name,
            parents=report.parents,
            progress=report.progress,
            total=report.total,
            desc=descriptor_to_proto(report.descriptor) if report.descriptor else None,
        )
        await self._stream.send(AnyValue(message.DESCRIPTOR.full_name, message.SerializeToString()))

    async def close(self) -> None:
        """End the stream, and return when all reports are on their way: the transfer's answer comes after them."""
        await self._stream.close()
        await self._stream.flush()


def _endpoint(message: AnyMessage) -> requests.Endpoint | None:
    """Return the source or destination that a client names; None for a type that nobody here knows."""
    match message.type_url.rpartition("/")[2]:
        case "containerd.types.transfer.OCIRegistry":
            return _registry(_parsed(registry_pb2.OCIRegistry, message.type_url, message.value))
        case "containerd.types.transfer.ImageStore":
            return _image_store(_parsed(imagestore_pb2.ImageStore, message.type_url, message.value))
        case "containerd.types.transfer.ImageImportStream":
            archive = _parsed(importexport_pb2.ImageImportStream, message.type_url, message.value)
            return requests.ImportStream(archive.stream, archive.media_type, archive.force_compress)
        case "containerd.types.transfer.ImageExportStream":
            return _export_stream(_parsed(importexport_pb2.ImageExportStream, message.type_url, message.value))
    return None


def _registry(message: registry_pb2.OCIRegistry) -> requests.Registry:
    resolver = message.resolver
    return requests.Registry(
        reference=message.reference,
        headers=dict(resolver.headers),
        host_dir=resolver.host_dir,
        default_scheme=resolver.default_scheme,
        auth_stream=resolver.auth_stream,
    )


def _image_store(message: imagestore_pb2.ImageStore) -> requests.ImageStore:
    return requests.ImageStore(
        name=message.name,
        labels=dict(message.labels),
        platforms=_platforms(message.platforms),
        all_metadata=message.all_metadata,
        manifest_limit=message.manifest_limit,
        extra_references=tuple(
            requests.ExtraReference(
                extra.name, extra.is_prefix, extra.allow_overwrite, extra.add_digest, extra.skip_named_digest
            )
            for extra in message.extra_references
        ),
        unpacks=tuple(
            requests.Unpack(
                _platform(unpack.platform) if unpack.HasField("platform") and unpack.platform.os else None,
                unpack.snapshotter,
            )
            for unpack in message.unpacks
        ),
    )


def _export_stream(message: importexport_pb2.ImageExportStream) -> requests.ExportStream:
    return requests.ExportStream(
        stream=message.stream,
        media_type=message.media_type,
        platforms=_platforms(message.platforms),
        all_platforms=message.all_platforms,
        skip_compatibility_manifest=message.skip_compatibility_manifest,
        skip_non_distributable=message.skip_non_distributable,
    )


def _platforms(messages: Iterable[platform_pb2.Platform]) -> tuple[Platform, ...]:
    return tuple(map(_platform, messages))


def _platform(message: platform_pb2.Platform) -> Platform:
    return normalize(Platform(message.os, message.architecture, message.variant, message.os_version))


def _parsed(kind: type[_Message], type_url: str, value: bytes) -> _Message:
    """Return the message of `kind` in an Any; raises InvalidArgument for another one, or damage."""
    name = kind.DESCRIPTOR.full_name
    try:
        if type_url.rpartition("/")[2] == name:
            return kind.FromString(value)
    except DecodeError as error:
        raise InvalidArgument(f"damaged {name}") from error
    raise InvalidArgument(f"{type_url[:100]!r} where {name} was expected")
