"""Containers made of a checkpoint: CreateContainer with, as its image, the path of what CheckpointContainer wrote.

Or an OCI image with one layer, which has the same files, and CRIU's annotation in its manifest: registries take those.
Of the archive come the processes, what the container had changed of its image, and which image that was. Everything
else is the new container's own: its request and its pod say what it may do and see, and CRIU's images are checked
against that before anything runs (ADR 18). The archive's own settings, annotations, mounts, devices and log are not
looked at (CVE-2026-53492, CVE-2024-8676, CVE-2026-95837, CVE-2026-53489).
"""

import io
import json
import os
import secrets
import stat
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any, Final, Protocol

from pyctr_wire.errors import AlreadyExists, InvalidArgument, NotFound
from pyctr_wire.oci.image_spec import load_json
from pyctrd.content.writer import Writer
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.leases import for_a_call
from pyctrd.core.mounts import Mount
from pyctrd.core.values import dataclass
from pyctrd.cri.records import NAMESPACE, PodContainer
from pyctrd.diff import media_types
from pyctrd.diff.compression import Compression, decompressor
from pyctrd.diff.errors import ArchiveError, TooLarge
from pyctrd.diff.limits import Limits
from pyctrd.diff.tar_stream import REGULAR, ByteStream, Entry, TarReader
from pyctrd.offload import Offload
from pyctrd.runtime.checkpoints import MOST_FILES, PROCESSES, Sink
from pyctrd.runtime.creation import LeaseRows

_MOST_IDENTITY: Final = 1 << 20  # bytes of config.dump
_PROCESSES: Final = "checkpoint/"
_CHUNK: Final = 1 << 20


class Content(Protocol):
    """Where what is in the archive is kept meanwhile."""

    def open_writer(self, ns: str, ref: str, /, *, lease: str = "") -> Writer: ...
    def open_blob(self, ns: str, digest: str, /) -> tuple[int, int]: ...
    def abort(self, ns: str, ref: str, /) -> None: ...


class Differ(Protocol):
    """What unpacks layers."""

    async def apply(self, ns: str, layer: Descriptor, mounts: Sequence[Mount], /) -> Descriptor: ...


class Unpacker(Protocol):
    """What hands out saved processes."""

    def unpacked(self, namespace: str, descriptor: Descriptor, /) -> AbstractAsyncContextManager[str]: ...


@dataclass(frozen=True, slots=True)
class Archive:
    """What is of use in a checkpoint: the id of an image, and blobs."""

    image: str
    processes: Descriptor
    changes: Descriptor | None


def is_path(image: str) -> bool:
    """Whether an image's name is the path of a file: no reference begins so."""
    return image.startswith("/")


class Processes:
    """A container's saved processes, as its first start wants them."""

    def __init__(self, unpacker: Unpacker, descriptor: Descriptor) -> None:
        """Have `unpacker` unpack them."""
        self._unpacker = unpacker
        self._descriptor = descriptor

    @property
    def digest(self) -> str:
        """What tells them from others."""
        return self._descriptor.digest

    def unpacked(self) -> AbstractAsyncContextManager[str]:
        """Return what makes a directory of them and removes that."""
        return self._unpacker.unpacked(NAMESPACE, self._descriptor)


class Restores:
    """Reads archives."""

    def __init__(
        self,
        content: Content,
        differ: Differ,
        leases: LeaseRows,
        unpacker: Callable[[], Unpacker],
        threads: Offload,
    ) -> None:
        """Use these; `unpacker` is made when it is needed."""
        self._content = content
        self._differ = differ
        self._leases = leases
        self._unpacker = unpacker
        self._threads = threads

    @asynccontextmanager
    async def read(self, location: str) -> AsyncIterator[Archive]:
        """Yield what an archive has, which is a file, or a blob in the content store.

        Blobs are kept until the end by a lease, and then by whoever refers to them. Raises NotFound if it is not there,
        InvalidArgument for what is no checkpoint of a container.
        """
        lease = f"cri-restore-{secrets.token_hex(8)}"

        def make() -> None:
            self._leases.create(NAMESPACE, for_a_call(lease))

        async with self._threads.holding(make, lambda _: self._leases.delete(NAMESPACE, lease)):
            yield await self._threads.run(self._take_in, location, lease)

    async def apply(self, archive: Archive, mounts: Sequence[Mount]) -> None:
        """Make the changes of the saved container in a new one's file system."""
        if archive.changes is not None:
            await self._differ.apply(NAMESPACE, archive.changes, mounts)

    def processes(self, container: PodContainer) -> Processes | None:
        """Return what a container is to go on with, None if it begins as others do."""
        if container.checkpoint is None:
            return None
        digest, size = container.checkpoint
        return Processes(self._unpacker(), Descriptor(PROCESSES, digest, size))

    def _take_in(self, location: str, lease: str) -> Archive:
        if is_path(location):
            fd = _open(location)
        else:
            fd, _ = self._content.open_blob(NAMESPACE, location)
        with open(fd, "rb", buffering=0):
            budget = Limits().budget(os.fstat(fd).st_size)
            try:
                return self._read(TarReader(ByteStream(decompressor(Compression.SNIFF, fd, budget))), lease)
            except (ArchiveError, TooLarge) as error:
                raise InvalidArgument(f"checkpoint {location}: {error}") from error

    def _read(self, reader: TarReader, lease: str) -> Archive:
        image, changes, names = "", None, set[str]()
        with self._ingest(f"{lease}-processes", lease) as writer:
            with tarfile.open(fileobj=Sink(writer), mode="w|", bufsize=_CHUNK, format=tarfile.PAX_FORMAT) as processes:
                for entry in reader:
                    name = _name(entry)
                    if name in names or len(names) >= MOST_FILES:
                        raise ArchiveError(f"{name} comes twice" if name in names else f"more than {MOST_FILES} files")
                    names.add(name)
                    if name == "config.dump":
                        image = _image_of(_small(reader, entry))
                    elif name == "rootfs-diff.tar":
                        changes = self._layer(reader, lease)
                    elif name.startswith(_PROCESSES):
                        member = tarfile.TarInfo(name.removeprefix(_PROCESSES))
                        member.size, member.mode = entry.size, 0o600
                        processes.addfile(member, _Content(reader.content()))
            if not image or f"{_PROCESSES}inventory.img" not in names:
                raise ArchiveError("it is no checkpoint of a container")
            return Archive(image, _blob(writer, PROCESSES), changes)

    def _layer(self, reader: TarReader, lease: str) -> Descriptor:
        with self._ingest(f"{lease}-changes", lease) as writer:
            for piece in reader.content():
                writer.write(bytes(piece))
            return _blob(writer, media_types.LAYER)

    @contextmanager
    def _ingest(self, ref: str, lease: str) -> Iterator[Writer]:
        """Yield the writer of an ingest of which nothing is left if that fails."""
        with self._content.open_writer(NAMESPACE, ref, lease=lease) as writer:
            try:
                yield writer
            except BaseException:
                writer.close()
                with suppress(NotFound):
                    self._content.abort(NAMESPACE, ref)
                raise


class _Content(io.RawIOBase):
    """The content of an archive's entry, as tarfile reads it."""

    def __init__(self, pieces: Iterator[memoryview]) -> None:
        super().__init__()
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int = -1, /) -> bytes:
        while len(self._rest) < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._rest += bytes(piece)
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def _blob(writer: Writer, media_type: str) -> Descriptor:
    """Make an ingest a blob, unless there is the same one: then the lease has that."""
    digest, size = writer.digest(), writer.offset
    with suppress(AlreadyExists):
        writer.commit(size, digest)
    return Descriptor(media_type, digest, size)


def _open(location: str) -> int:
    try:
        fd = os.open(location, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(f"checkpoint {location}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidArgument(f"checkpoint {location} is not a regular file")
    return fd


def _name(entry: Entry) -> str:
    """Return an entry's name; what is no plain file has a name that means nothing."""
    name = os.fsdecode(entry.name).removeprefix("./")
    if entry.kind != REGULAR or entry.segments is not None:
        if name in {"config.dump", "rootfs-diff.tar"} or (name.startswith(_PROCESSES) and name != _PROCESSES):
            raise ArchiveError(f"{name!r} is not a plain file")
        return f"./{name}"
    inside = name.removeprefix(_PROCESSES)
    if name.startswith(_PROCESSES) and ("/" in inside or inside in {"", ".", ".."}):
        raise ArchiveError(f"{name!r} is not the name of a file in {_PROCESSES} itself")
    return name


def _small(reader: TarReader, entry: Entry) -> bytes:
    if entry.size > _MOST_IDENTITY:
        raise ArchiveError(f"config.dump has {entry.size} bytes")
    return bytes(reader.whole())


def _image_of(data: bytes) -> str:
    """Return the image that the saved container was made of: its id, which nobody else's can have, or its name."""
    try:
        identity: Any = load_json(data, "config.dump")
    except (json.JSONDecodeError, InvalidArgument) as error:
        raise ArchiveError(f"config.dump: {error}") from error
    found = [identity.get(key) for key in ("rootfsImageRef", "rootfsImage")] if isinstance(identity, dict) else []
    named = next((one for one in found if isinstance(one, str) and one and not is_path(one)), "")
    if not named:
        raise ArchiveError("config.dump names no image")
    return named
