"""Where a new layer goes: from a worker's pipe into the content store."""

import threading
from contextlib import suppress
from dataclasses import replace
from secrets import token_hex
from typing import Final, Protocol

from pyctr_wire.errors import AlreadyExists, NotFound
from pyctrd.core.content import BlobInfo
from pyctrd.core.labels import Labels

_CHUNK: Final = 1 << 20


class BlobWriter(Protocol):
    """The writer of an ingest; thread-safe."""

    @property
    def offset(self) -> int: ...
    def digest(self) -> str: ...
    def truncate(self, size: int, /) -> None: ...
    def write(self, data: bytes, /) -> None: ...
    def commit(self, total: int = 0, expected: str = "", labels: Labels | None = None) -> object: ...
    def close(self) -> None: ...


class Content(Protocol):
    """What is needed of the content store."""

    def open_blob(self, ns: str, digest: str, /) -> tuple[int, int]: ...
    def verify(self, digest: str, /) -> bool: ...
    def open_writer(self, ns: str, ref: str, /, *, lease: str = "") -> BlobWriter: ...
    def abort(self, ns: str, ref: str, /) -> None: ...
    def info(self, ns: str, digest: str, /) -> BlobInfo: ...
    def update(self, ns: str, info: BlobInfo, mask: tuple[str, ...], /) -> BlobInfo: ...


class Ingest:
    """One blob on its way. All methods block; `close` may come while another one runs, and ends it."""

    def __init__(self, content: Content, ns: str, ref: str, lease: str) -> None:
        """Write to the ingest `ref`, started over, or for "" to one that nobody else knows."""
        self._content, self._ns, self._lease = content, ns, lease
        self._is_anonymous = not ref
        self._ref = ref or f"diff-{token_hex(8)}"
        self._lock = threading.Lock()
        self._writer: BlobWriter | None = None
        self._closed = False

    def receive(self, pipe_fd: int) -> None:
        """Store what comes out of the pipe, which is closed then. Raises what the content store raises."""
        with open(pipe_fd, "rb", buffering=0) as pipe:
            writer = self._content.open_writer(self._ns, self._ref, lease=self._lease)
            with self._lock:
                self._writer = writer
                if self._closed:
                    writer.close()
                    return
            if writer.offset:
                writer.truncate(0)
            while data := pipe.read(_CHUNK):
                writer.write(data)

    def commit(self, labels: Labels) -> tuple[str, int]:
        """Make what was received a blob with `labels` and return its digest and size in bytes.

        One that is there already gets the labels beside those that it has.
        """
        assert self._writer is not None
        digest, size = self._writer.digest(), self._writer.offset
        try:
            self._writer.commit(size, digest, labels)
        except AlreadyExists:
            info = replace(self._content.info(self._ns, digest), labels=labels)
            if labels:
                self._content.update(self._ns, info, tuple(f"labels.{key}" for key in labels))
        self._is_anonymous = False
        return digest, size

    def close(self) -> None:
        """Unlock the ref, and forget an unfinished ingest that nobody could resume."""
        with self._lock:
            self._closed = True
        if self._writer is not None:
            self._writer.close()
            if self._is_anonymous:
                with suppress(NotFound):
                    self._content.abort(self._ns, self._ref)
