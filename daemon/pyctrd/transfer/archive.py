"""The files of an image archive, read once, front to back, and stored as content while they pass.

Synchronous: it runs in a thread. Nothing is extracted; names in the archive are only ever keys of a dictionary.
"""

import hashlib
import io
import posixpath
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import field
from gzip import BadGzipFile
from typing import IO, TYPE_CHECKING, Final, Protocol, cast

from pyctr_wire.errors import AlreadyExists, InvalidArgument, Unavailable
from pyctr_wire.oci import image_spec
from pyctrd.core.labels import Labels
from pyctrd.core.values import dataclass
from pyctrd.diff.compression import CHUNK, Compression, compressor, sniff
from pyctrd.diff.errors import ArchiveError
from pyctrd.diff.limits import Limits
from pyctrd.diff.tar_stream import HARD_LINK, REGULAR, SYMLINK, ByteStream, TarReader
from pyctrd.transfer.stores import BlobWriter, Content

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Documents that describe the archive; everything else is a blob.
DOCUMENTS: Final = frozenset({"oci-layout", "index.json", "manifest.json"})
# What docker's older archives hold beside that, and nobody reads any more.
_OBSOLETE: Final = frozenset({"VERSION", "json", "repositories"})
_BLOBS: Final = "blobs"
_MAX_FILES: Final = 100_000
_MAX_NAME: Final = 4096
_MAX_LINKS: Final = 16
# Memory that a zstd frame may ask for, in bytes.
_MAX_WINDOW: Final = 1 << 27

_LIMITS: Final = Limits()

# Called for each blob with its name in the archive and its size in bytes.
OnBlob = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class File:
    """A file of the archive, now a blob; `diff_id` names its bytes before we compressed them, else it is ""."""

    digest: str
    size: int
    compression: Compression
    diff_id: str = ""


@dataclass(slots=True)
class Archive:
    """What was found: blobs and links by their path in the archive, documents as they are."""

    files: dict[str, File] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)

    def find(self, name: str) -> File | None:
        """Return the file called `name`, through links; None if there is none."""
        for _ in range(_MAX_LINKS):
            if name not in self.links:
                return self.files.get(name)
            name = self.links[name]
        return None


class ArchiveReader:
    """Reads archives into a content store."""

    def __init__(self, content: Content, ns: str, lease: str, on_blob: OnBlob, *, compress: bool) -> None:
        """Store blobs in `ns` under `lease`; `compress` layers that are not compressed yet."""
        self._content = content
        self._ns = ns
        self._lease = lease
        self._on_blob = on_blob
        self._compress = compress

    def read(self, chunks: Iterator[bytes]) -> Archive:
        """Read an archive, compressed or not, to its end.

        Raises InvalidArgument for one that is damaged, too large for its compressed size, or not what its names say.
        """
        archive = Archive()
        stream = ByteStream(decompressed(chunks))
        try:
            reader = TarReader(stream)
            for number, entry in enumerate(reader):
                if number == _MAX_FILES or len(entry.name) > _MAX_NAME:
                    raise InvalidArgument(f"the archive has more than {_MAX_FILES} entries, or too long a name")
                name = _clean(entry.name)
                if entry.kind == REGULAR and entry.segments is None:
                    self._take(archive, name, entry.size, reader)
                elif entry.kind == HARD_LINK:
                    archive.links[name] = _clean(entry.link)
                elif entry.kind == SYMLINK:
                    archive.links[name] = _clean(posixpath.join(posixpath.dirname(name).encode(), entry.link))
            stream.drain()
        except ArchiveError as error:
            raise InvalidArgument(f"cannot read the image archive: {error}") from error
        return archive

    def _take(self, archive: Archive, name: str, size: int, reader: TarReader) -> None:
        if name in DOCUMENTS:
            image_spec.check_size(size, name)
            if name in archive.documents:
                raise InvalidArgument(f"the archive has {name} twice")
            archive.documents[name] = b"".join(reader.content())
        elif posixpath.basename(name) not in _OBSOLETE:
            content = reader.content()
            archive.files[name] = self._store(name, size, map(bytes, content))
            for _ in content:
                pass  # of a blob that was there already: the reader goes on behind it
            self._on_blob(name, size)

    def _store(self, name: str, size: int, parts: Iterator[bytes]) -> File:
        """Make a blob of a file: checked, if its name is its digest."""
        head = b""
        for part in parts:
            head += part
            if len(head) >= _TAR_MAGIC.stop:
                break
        compression = sniff(head.ljust(4, b"\0"))
        folder, _, digits = name.rpartition("/")
        if folder.startswith(f"{_BLOBS}/"):
            digest = image_spec.check_digest(f"{folder.removeprefix(f'{_BLOBS}/')}:{digits}")
            return self._write(name, size, digest, head, parts, compression)
        if self._compress and compression is Compression.NONE and head[_TAR_MAGIC] == b"ustar":
            return self._write_compressed(name, head, parts)
        return self._write(name, size, "", head, parts, compression)

    def _write(
        self, name: str, size: int, digest: str, head: bytes, parts: Iterator[bytes], compression: Compression
    ) -> File:
        try:
            writer = self._open(name, size, digest)
        except AlreadyExists:
            return File(digest, size, compression)
        try:
            if not (digest and writer.offset == size and writer.digest() == digest):
                writer.truncate(0)
                writer.write(head)
                for part in parts:
                    writer.write(part)
            return self._commit(writer, size, digest, compression, {})
        finally:
            writer.close()

    def _write_compressed(self, name: str, head: bytes, parts: Iterator[bytes]) -> File:
        writer = self._open(name, 0, "")
        try:
            writer.truncate(0)
            hashed, gzip = hashlib.sha256(head), compressor(Compression.GZIP)
            writer.write(gzip.compress(head))
            for part in parts:
                hashed.update(part)
                if data := gzip.compress(part):
                    writer.write(data)
            writer.write(gzip.flush())
            diff_id = f"sha256:{hashed.hexdigest()}"
            labels = {"containerd.io/uncompressed": diff_id}
            stored = self._commit(writer, writer.offset, "", Compression.GZIP, labels)
            return File(stored.digest, stored.size, Compression.GZIP, diff_id)
        finally:
            writer.close()

    def _open(self, name: str, size: int, digest: str) -> BlobWriter:
        """Open a writer under the ref that clients know for it, or one like it while another import has that."""
        ref = f"tar-{name}"
        try:
            return self._content.open_writer(self._ns, ref, size, digest, lease=self._lease)
        except Unavailable:
            ref = f"{ref}-{secrets.token_hex(4)}"
            return self._content.open_writer(self._ns, ref, size, digest, lease=self._lease)

    def _commit(self, writer: BlobWriter, size: int, expected: str, compression: Compression, labels: Labels) -> File:
        digest = writer.digest()
        if expected and digest != expected:
            raise InvalidArgument(f"the archive holds {digest} under the name of {expected}")
        with suppress(AlreadyExists):  # then the lease has it too
            writer.commit(size, digest, labels)
        return File(digest, size, compression)


_TAR_MAGIC: Final = slice(257, 262)


class _Source(io.RawIOBase):
    """Chunks as a file to read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""
        self.taken = 0

    def readable(self) -> bool:
        return True

    def peek(self, size: int) -> bytes:
        """Return the next `size` bytes without taking them, or as many as there are."""
        while len(self._rest) < size and (chunk := next(self._chunks, b"")):
            self._rest += chunk
        return self._rest[:size]

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer)
        data = self._rest or next(self._chunks, b"")
        size = min(len(view), len(data))
        view[:size], self._rest = data[:size], data[size:]
        self.taken += size
        return size


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes | None: ...


def _codec(source: _Source) -> tuple[_Readable, type[Exception]]:
    """Return what reads the bytes under the compression that `source` starts with, and the error it raises."""
    match sniff(source.peek(4).ljust(4, b"\0")):
        case Compression.GZIP:
            from isal import igzip, igzip_lib

            reader: _Readable = igzip.IGzipFile(fileobj=source, mode="rb")  # type: ignore[no-untyped-call]
            return reader, cast(type[Exception], igzip_lib.IsalError)
        case Compression.ZSTD:
            import zstandard

            decoder = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
            return decoder.stream_reader(cast(IO[bytes], source), read_across_frames=True), zstandard.ZstdError
    return source, ArchiveError


def decompressed(chunks: Iterator[bytes], limits: Limits = _LIMITS) -> Iterator[bytes]:
    """Yield the bytes under gzip or zstd, which the first bytes tell, or the bytes themselves.

    Raises ArchiveError for damage and for more than `limits` allow for what was read of `chunks`.
    """
    source = _Source(chunks)
    reader, codec_error = _codec(source)
    size = 0
    try:
        while chunk := reader.read(CHUNK):
            size += len(chunk)
            if reader is not source and size > limits.budget(source.taken):
                raise ArchiveError(f"more than {size} bytes come out of {source.taken}")
            yield chunk
    except (EOFError, BadGzipFile, codec_error) as error:
        raise ArchiveError(f"its compression is damaged: {error}") from error


def _clean(name: bytes) -> str:
    """Return a path of the archive in its one spelling, relative to its top."""
    text = name.decode(errors="replace")  # what is no text, no document names
    return posixpath.normpath(f"/{text}").lstrip("/")
