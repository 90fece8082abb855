"""containerd.services.content.v1."""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar, Final, Protocol

from google.protobuf.empty_pb2 import Empty

from pyctr_wire.containerd.services.content.v1 import content_pb2 as pb
from pyctr_wire.errors import DataLoss, InvalidArgument, OutOfRange
from pyctrd.core.content import BlobInfo, IngestStatus
from pyctrd.offload import Offload
from pyctrd.rpc.content_write import BlobWriter, step
from pyctrd.rpc.convert.records import blob_from_proto, blob_to_proto, ingest_to_proto
from pyctrd.rpc.convert.well_known import mask_from_proto
from pyctrd.rpc.headers import Context, lease_of, namespace_of

_CHUNK: Final = 1 << 20  # bytes of a blob in a message


class ContentStore(Protocol):
    """Where content is kept."""

    def info(self, ns: str, digest: str, /) -> BlobInfo: ...
    def update(self, ns: str, info: BlobInfo, mask: tuple[str, ...], /) -> BlobInfo: ...
    def list(self, ns: str, filters: Sequence[str], /) -> Iterator[list[BlobInfo]]: ...
    def delete(self, ns: str, digest: str, /, lease: str) -> None: ...
    def open_blob(self, ns: str, digest: str, /) -> tuple[int, int]: ...
    def status(self, ns: str, ref: str, /) -> IngestStatus: ...
    def list_statuses(self, ns: str, filters: Sequence[str], /) -> Sequence[IngestStatus]: ...
    def abort(self, ns: str, ref: str, /) -> None: ...
    def open_writer(self, ns: str, ref: str, total: int, expected: str, /, lease: str) -> BlobWriter: ...


class Content:
    """Blobs that digests name, and writes that have not finished."""

    SERVICE: ClassVar = pb.DESCRIPTOR.services_by_name["Content"]

    def __init__(self, store: ContentStore, rows: Offload, bulk: Offload) -> None:
        """Serve `store`; blobs are read and written in `bulk`, the rest runs in `rows`."""
        self._store = store
        self._rows = rows
        self._bulk = bulk

    async def Info(self, request: pb.InfoRequest, context: Context) -> pb.InfoResponse:
        """Return what is known of a blob. NotFound, InvalidArgument."""
        info = await self._rows.run(self._store.info, namespace_of(context), request.digest)
        return pb.InfoResponse(info=blob_to_proto(info))

    async def Update(self, request: pb.UpdateRequest, context: Context) -> pb.UpdateResponse:
        """Change labels, those that the mask names or all. NotFound, InvalidArgument."""
        info = await self._rows.run(
            self._store.update,
            namespace_of(context),
            blob_from_proto(request.info),
            mask_from_proto(request.update_mask),
        )
        return pb.UpdateResponse(info=blob_to_proto(info))

    async def List(self, request: pb.ListContentRequest, context: Context) -> None:
        """Send the blobs that match, a batch a message. InvalidArgument."""
        batches = await self._rows.run(self._store.list, namespace_of(context), tuple(request.filters))
        while batch := await self._rows.run(next, batches, None):
            await context.write(pb.ListContentResponse(info=map(blob_to_proto, batch)))

    async def Delete(self, request: pb.DeleteContentRequest, context: Context) -> Empty:
        """Delete a blob from the namespace; the next collection frees its bytes. NotFound."""
        await self._rows.run(self._store.delete, namespace_of(context), request.digest, lease=lease_of(context))
        return Empty()

    async def Read(self, request: pb.ReadContentRequest, context: Context) -> None:
        """Send bytes of a blob; a size of 0 means to the end. NotFound, OutOfRange, DataLoss.

        The offset in each message counts from the start of what was asked for.
        """
        opening = partial(self._store.open_blob, namespace_of(context), request.digest)
        async with self._bulk.holding(opening, lambda opened: os.close(opened[0])) as (blob_fd, size):
            start = max(request.offset, 0)
            if start > size:
                raise OutOfRange(f"read past object length {size} bytes")
            wanted = size - start
            if request.size > 0:
                wanted = min(wanted, request.size)
            sent = 0
            while sent < wanted:
                data = await self._bulk.run(os.pread, blob_fd, min(_CHUNK, wanted - sent), start + sent)
                if not data:
                    raise DataLoss(f"content {request.digest}: the file ends after {start + sent} of {size} bytes")
                await context.write(pb.ReadContentResponse(offset=sent, data=data))
                sent += len(data)

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        """Return the state of an ingest. NotFound."""
        status = await self._rows.run(self._store.status, namespace_of(context), request.ref)
        return pb.StatusResponse(status=ingest_to_proto(status))

    async def ListStatuses(self, request: pb.ListStatusesRequest, context: Context) -> pb.ListStatusesResponse:
        """Return the ingests that match, whether somebody writes to them or not. InvalidArgument."""
        statuses = await self._rows.run(self._store.list_statuses, namespace_of(context), tuple(request.filters))
        return pb.ListStatusesResponse(statuses=map(ingest_to_proto, statuses))

    async def Abort(self, request: pb.AbortRequest, context: Context) -> Empty:
        """Delete an ingest. NotFound."""
        await self._rows.run(self._store.abort, namespace_of(context), request.ref)
        return Empty()

    async def Write(self, requests: object, context: Context) -> None:
        """Take a blob, message by message, and answer each.

        The ref of the first message names the ingest, which stays locked until the stream ends,
        however it does, and can be resumed if it ended without COMMIT. AlreadyExists (a success for
        whoever wants the blob), Unavailable (somebody else writes), OutOfRange, FailedPrecondition.
        """
        first = await context.read()
        if not isinstance(first, pb.WriteContentRequest) or not first.ref:
            raise InvalidArgument("first message must have a reference")
        opening = partial(
            self._store.open_writer,
            namespace_of(context),
            first.ref,
            first.total,
            first.expected,
            lease=lease_of(context),
        )
        async with self._bulk.holding(opening, lambda writer: writer.close()) as writer:
            request, response = first, None
            while isinstance(request, pb.WriteContentRequest):  # the end of the stream is another object
                response = await self._bulk.run(step, writer, request)
                await context.write(response)
                if request.action == pb.WriteAction.COMMIT:
                    return
                request = await context.read()
            # The client is done without COMMIT: containerd repeats itself here, and clients expect an answer.
            await context.write(response)
