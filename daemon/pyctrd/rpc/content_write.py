"""The write stream of the content service, without the stream: a message in, an answer out."""

from datetime import datetime
from typing import Protocol

from pyctr_wire.containerd.services.content.v1 import content_pb2 as pb
from pyctr_wire.errors import AlreadyExists, InvalidArgument, NotFound, OutOfRange
from pyctrd.core.content import BlobInfo
from pyctrd.core.labels import Labels
from pyctrd.rpc import convert


class BlobWriter(Protocol):
    """An ingest that this process has locked; `offset` and `total` in bytes."""

    @property
    def offset(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def started_at(self) -> datetime: ...
    @property
    def updated_at(self) -> datetime: ...
    def digest(self) -> str: ...
    def truncate(self, size: int) -> None: ...
    def write(self, data: bytes) -> int: ...
    def commit(self, total: int, expected: str, labels: Labels) -> object: ...
    def close(self) -> None: ...


class Ingests(Protocol):
    """What a write must know of the store around it."""

    def info(self, ns: str, digest: str) -> BlobInfo: ...
    def abort(self, ns: str, ref: str) -> None: ...


class WriteStream:
    """One client's write: what it said so far of the blob's size and digest."""

    def __init__(self, store: Ingests, namespace: str, first: pb.WriteContentRequest, writer: BlobWriter) -> None:
        """Write to `writer` (borrowed), which was opened for the stream's first message."""
        self._store = store
        self._namespace = namespace
        self._writer = writer
        self._ref = first.ref
        self._total = first.total
        self._expected = first.expected

    def step(self, request: pb.WriteContentRequest) -> pb.WriteContentResponse:
        """Do what a message says and return its answer; blocks.

        Raises AlreadyExists if the blob is there by now, OutOfRange for data that does not follow
        what is there, FailedPrecondition if COMMIT finds another size or digest than announced.
        """
        self._note_expectations(request)
        response = pb.WriteContentResponse(action=request.action)
        match request.action:
            case pb.WriteAction.STAT:
                response.total = self._total or self._writer.total
                response.started_at.CopyFrom(convert.time_to_proto(self._writer.started_at))
                response.updated_at.CopyFrom(convert.time_to_proto(self._writer.updated_at))
            case pb.WriteAction.WRITE:
                self._append(request)
            case pb.WriteAction.COMMIT:
                self._append(request)
            case _:
                raise InvalidArgument(f"unknown action {request.action}")
        response.offset = self._writer.offset
        response.digest = self._writer.digest()
        if request.action == pb.WriteAction.COMMIT:
            self._writer.commit(self._total, self._expected, dict(request.labels))
        return response

    def _note_expectations(self, request: pb.WriteContentRequest) -> None:
        if request.total > 0:
            self._total = request.total
        if not request.expected:
            return
        self._expected = request.expected
        try:
            self._store.info(self._namespace, request.expected)
        except NotFound:
            return
        self._store.abort(self._namespace, self._ref)
        raise AlreadyExists(f"blob with expected digest {request.expected} exists")

    def _append(self, request: pb.WriteContentRequest) -> None:
        """Write data where it belongs; from offset 0 on, it replaces what is there: so clients start again."""
        here = self._writer.offset
        if request.offset > 0 and request.offset != here:
            raise OutOfRange(f"write @{request.offset} must occur at current offset {here}")
        if request.offset == 0 and here > 0:
            self._writer.truncate(0)
        if request.data:
            self._writer.write(request.data)
