"""The write stream of the content service, without the stream: a message in, an answer out."""

from datetime import datetime
from typing import Protocol

from pyctr_wire.containerd.services.content.v1 import content_pb2 as pb
from pyctr_wire.errors import InvalidArgument, OutOfRange
from pyctrd.core.labels import Labels
from pyctrd.rpc.convert.well_known import time_to_proto


class BlobWriter(Protocol):
    """An ingest that this process has locked; `offset` and `total` in bytes."""

    total: int

    @property
    def offset(self) -> int: ...
    @property
    def started_at(self) -> datetime: ...
    @property
    def updated_at(self) -> datetime: ...
    def digest(self) -> str: ...
    def expect(self, digest: str, /) -> None: ...
    def truncate(self, size: int, /) -> None: ...
    def write(self, data: bytes, /) -> None: ...
    def commit(self, *, labels: Labels) -> str: ...
    def close(self) -> None: ...


def step(writer: BlobWriter, request: pb.WriteContentRequest) -> pb.WriteContentResponse:
    """Do what one message of a stream says and return its answer; blocks.

    Raises AlreadyExists if the blob is there by now, OutOfRange for data that does not follow what is
    there, FailedPrecondition if COMMIT finds another size or digest than was announced.
    """
    if request.total > 0:
        writer.total = request.total
    if request.expected:
        writer.expect(request.expected)
    response = pb.WriteContentResponse(action=request.action)
    match request.action:
        case pb.WriteAction.STAT:
            response.total = writer.total
            response.started_at.CopyFrom(time_to_proto(writer.started_at))
            response.updated_at.CopyFrom(time_to_proto(writer.updated_at))
        case pb.WriteAction.WRITE | pb.WriteAction.COMMIT:
            _append(writer, request)
        case _:
            raise InvalidArgument(f"unknown action {request.action}")
    response.offset = writer.offset
    if request.action == pb.WriteAction.COMMIT:
        response.digest = writer.commit(labels=dict(request.labels))
    else:
        response.digest = writer.digest()
    return response


def _append(writer: BlobWriter, request: pb.WriteContentRequest) -> None:
    """Write data where it belongs; from offset 0 on, it replaces what is there: so clients start again."""
    if request.offset > 0 and request.offset != writer.offset:
        raise OutOfRange(f"write @{request.offset} must occur at current offset {writer.offset}")
    if request.offset == 0 and writer.offset > 0:
        writer.truncate(0)
    if request.data:
        writer.write(request.data)
