"""Blobs that another program keeps, in the place of our own files.

They are uploaded when an ingest is whole, and fetched into a file without a name when somebody reads them. The other
program sees one namespace, which is ours alone: which of our namespaces sees which blob is told by our rows.
Source: containerd.services.content.v1.
"""

import os
import tempfile
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO, Final, Protocol, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from pyctr_wire.containerd.services.content.v1 import content_pb2 as pb
from pyctr_wire.errors import AlreadyExists, DataLoss, NotFound
from pyctrd.content.arrivals import Arrivals
from pyctrd.content.ingests import hash_file
from pyctrd.core.digests import Digest

_SERVICE: Final = "/containerd.services.content.v1.Content/"
_CHUNK: Final = 1 << 20  # bytes
_SLOW: Final = 1 << 20  # bytes a second that a transfer may take more time for
# Clients read a blob in many calls: the files of the last ones stay.
_KEPT_FILES: Final = 16
_KEPT_BYTES: Final = 1 << 30
# One that collects garbage by itself must not take ours for that.
_KEPT: Final = {"containerd.io/gc.root": "pyctrd"}

Reply = TypeVar("Reply", bound=Message)


class Service(Protocol):
    """The other program."""

    @property
    def what(self) -> str:
        """What it is called in errors."""

    def call(self, method: str, request: Message, reply: type[Reply]) -> Reply: ...
    def receive(self, method: str, request: Message, reply: type[Reply], more: float = 0.0) -> Iterator[Reply]: ...
    def exchange(
        self, method: str, requests: Iterable[Message], reply: type[Reply], more: float = 0.0
    ) -> Iterator[Reply]: ...


class RemoteBlobs:
    """Does what Blobs does; thread-safe. Every call may raise Unavailable, and DeadlineExceeded."""

    def __init__(self, root: Path, service: Service) -> None:
        """Keep what is fetched below `root`, while it is read."""
        self._root = root
        self._service = service
        self._arrivals = Arrivals()
        self._files: OrderedDict[str, IO[bytes]] = OrderedDict()
        self._files_lock = threading.Lock()

    def size(self, digest: str) -> int | None:
        """Return a blob's size in bytes, None if it is not there."""
        try:
            return self._service.call(f"{_SERVICE}Info", pb.InfoRequest(digest=digest), pb.InfoResponse).info.size
        except NotFound:
            return None

    def open(self, digest: str) -> int:
        """Return a descriptor, the caller's to close. Raises NotFound, DataLoss for bytes that are not the blob's."""
        with self._files_lock:
            file = self._files.get(digest)
            if file is not None:
                self._files.move_to_end(digest)
                return _opened(file)
        size = self.size(digest)
        if size is None:
            raise NotFound(f"content {digest}")
        file = self._fetched(digest, size)
        with self._files_lock:
            self._files[digest] = file
            fd = _opened(file)
            total = sum(os.fstat(one.fileno()).st_size for one in self._files.values())
            while len(self._files) > _KEPT_FILES or (total > _KEPT_BYTES and self._files):
                _, oldest = self._files.popitem(last=False)
                total -= os.fstat(oldest.fileno()).st_size
                oldest.close()
        return fd

    def arriving(self, digest: str) -> AbstractContextManager[None]:
        """Keep the blob from `remove_unless` until the block, which stores its row, is left."""
        return self._arrivals.holding(digest)

    def place(self, data: Path, digest: str) -> None:
        """Upload a finished file, and remove it. Raises FailedPrecondition if something else has arrived there."""
        size = data.stat().st_size
        answers = self._service.exchange(
            f"{_SERVICE}Write", _writing(data, size, digest), pb.WriteContentResponse, size / _SLOW
        )
        with suppress(AlreadyExists):
            deque(answers, maxlen=0)  # its commit verifies the digest
        data.unlink()

    def remove_unless(self, digest: str, is_used: Callable[[str], bool]) -> int | None:
        """Delete the blob unless a row for it is on its way or there; return the bytes freed, else None."""
        with self._arrivals.removing(digest, is_used) as may_go:
            if not may_go:
                return None
            size = self.size(digest) or 0
            try:
                self._service.call(f"{_SERVICE}Delete", pb.DeleteContentRequest(digest=digest), Empty)
            except NotFound:
                size = 0
        with self._files_lock:
            if (file := self._files.pop(digest, None)) is not None:
                file.close()
        return size

    def __iter__(self) -> Iterator[Digest]:
        """Yield the digests of all blobs that are there."""
        for batch in self._service.receive(f"{_SERVICE}List", pb.ListContentRequest(), pb.ListContentResponse):
            yield from (Digest(info.digest) for info in batch.info)

    def _fetched(self, digest: str, size: int) -> IO[bytes]:
        algorithm, _, digits = digest.partition(":")
        file: IO[bytes] = tempfile.TemporaryFile(dir=self._root, buffering=0)  # noqa: SIM115 - whoever has it closes it
        try:
            request = pb.ReadContentRequest(digest=digest)
            for part in self._service.receive(f"{_SERVICE}Read", request, pb.ReadContentResponse, size / _SLOW):
                rest = memoryview(part.data)
                while rest:
                    rest = rest[file.write(rest) :]
            whole = hash_file(file.fileno(), algorithm).hexdigest() == digits
        except BaseException:
            file.close()
            raise
        if not whole:
            file.close()
            raise DataLoss(f"{self._service.what}: content {digest}: what it sent is something else")
        return file


def _opened(file: IO[bytes]) -> int:
    """Return another descriptor of the file, with an offset of its own."""
    return os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)


def _writing(data: Path, size: int, digest: str) -> Iterator[pb.WriteContentRequest]:
    """Yield the calls that upload a file from its start, whatever an earlier attempt has left there."""
    ref, offset = f"pyctrd-{digest}", 0
    with data.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield pb.WriteContentRequest(
                action=pb.WRITE, ref=ref, total=size, expected=digest, offset=offset, data=chunk
            )
            offset += len(chunk)
    yield pb.WriteContentRequest(action=pb.COMMIT, ref=ref, total=size, expected=digest, offset=offset, labels=_KEPT)
