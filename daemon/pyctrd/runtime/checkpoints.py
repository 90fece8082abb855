"""Checkpoints on their way between a shim and the content store.

    <root>/checkpoints/<random>   CRIU's files, while a shim writes or reads them; all swept at the daemon's start

A checkpoint in the content store is a tar archive, and whoever imported it says what is in it. Only plain files
are taken out of it, each directly in the directory; the container's own record says what it may do.
"""

import io
import os
import shutil
import stat
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, Final, Protocol

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as shim
from pyctr_wire.errors import InvalidArgument
from pyctrd.content.writer import Writer
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.digests import Digest
from pyctrd.diff.errors import ArchiveError
from pyctrd.diff.tar_stream import DIRECTORY, REGULAR, ByteStream, Entry, TarReader
from pyctrd.offload import Offload
from pyctrd.runtime.tasks import Tasks

PROCESSES: Final = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
CONFIG: Final = "application/vnd.containerd.container.checkpoint.config.v1+proto"
TIMEOUT: Final = 600.0  # seconds: all of a container's memory is written
MOST_FILES: Final = 100_000

_CHUNK: Final = 1 << 20


class Content(Protocol):
    """What is needed of the content store."""

    def open_blob(self, ns: str, digest: str, /) -> tuple[int, int]: ...
    def open_writer(self, ns: str, ref: str, /, *, lease: str = "") -> Writer: ...
    def write_blob(self, ns: str, ref: str, data: bytes, /, *, lease: str = "") -> Digest: ...


class Checkpoints:
    """Saves tasks, and hands out what was saved."""

    def __init__(self, directory: Path, content: Content, tasks: Tasks, bulk: Offload) -> None:
        """Use `directory`, which is made and owned by us, for files in between."""
        self._directory = directory
        self._content = content
        self._tasks = tasks
        self._bulk = bulk
        directory.mkdir(mode=0o700, exist_ok=True)

    async def save_in(self, namespace: str, id: str, path: str, options: AnyMessage) -> None:
        """Save a task's processes into a directory of the caller's. Raises NotFound, and what the runtime says."""
        task = self._tasks.find(namespace, id)
        request = shim.CheckpointTaskRequest(id=id, path=path, options=options)
        await self._tasks.call(task, "Checkpoint", request, Empty, TIMEOUT)

    async def save(
        self, namespace: str, id: str, spec: AnyMessage, options: AnyMessage, lease: str
    ) -> list[Descriptor]:
        """Save a task's processes and its container's spec as content, and return their descriptors.

        If the caller is cancelled meanwhile, nothing is stored and the container goes on: a shim that finds its
        directory gone does not let the container end. Raises NotFound, and what the runtime says.
        """
        async with self.folder() as folder:
            images = folder / "checkpoint"
            await self.save_in(namespace, id, str(images), options)
            processes = await self._bulk.run(self._store, namespace, images, lease)
            data = spec.SerializeToString()
            digest = await self._bulk.run(self._content.write_blob, namespace, f"{folder}/spec", data, lease=lease)
        return [processes, Descriptor(CONFIG, digest, len(data))]

    @asynccontextmanager
    async def unpacked(self, namespace: str, descriptor: Descriptor) -> AsyncIterator[str]:
        """Yield a directory with what a checkpoint in the content store holds.

        Raises NotFound if it is not there, InvalidArgument for another media type and for what is no checkpoint.
        """
        if descriptor.media_type != PROCESSES:
            raise InvalidArgument(f"checkpoint {descriptor.digest} is {descriptor.media_type}, not {PROCESSES}")
        async with self.folder() as folder:
            await self._bulk.run(self._unpack, namespace, descriptor.digest, folder)
            yield str(folder)

    @asynccontextmanager
    async def folder(self) -> AsyncIterator[Path]:
        """Yield the path of a directory that is gone afterwards: a shim that comes too late can make nothing in it."""
        folder = self._directory / token_hex(8)
        folder.mkdir(mode=0o700, parents=True)
        try:
            yield folder
        finally:
            # Renamed at once, whatever becomes of us: its name says that somebody waits for what is in it.
            gone = folder.with_name(f".{folder.name}")
            with suppress(FileNotFoundError):
                folder.rename(gone)
                await self._bulk.run(shutil.rmtree, gone, ignore_errors=True)

    def _store(self, namespace: str, folder: Path, lease: str) -> Descriptor:
        with self._content.open_writer(namespace, str(folder), lease=lease) as writer:
            with tarfile.open(fileobj=Sink(writer), mode="w|", bufsize=_CHUNK, format=tarfile.PAX_FORMAT) as archive:
                for path in sorted(folder.iterdir()):
                    if stat.S_ISREG(path.lstat().st_mode):
                        archive.add(path, path.name, recursive=False)
            size = writer.offset
            return Descriptor(PROCESSES, writer.commit(size), size)

    def _unpack(self, namespace: str, digest: str, folder: Path) -> None:
        fd, _size = self._content.open_blob(namespace, digest)
        with open(fd, "rb", buffering=0) as blob:
            try:
                unpack(blob_chunks(blob.fileno()), folder)
            except ArchiveError as error:
                raise InvalidArgument(f"checkpoint {digest}: {error}") from error


class Sink(io.RawIOBase):
    """A file to write to, for tarfile."""

    def __init__(self, writer: Writer) -> None:
        """Write to content."""
        super().__init__()
        self._writer = writer

    def write(self, data: Any) -> int:
        """Take all of it."""
        self._writer.write(data)
        return len(data)


def blob_chunks(fd: int) -> Iterator[bytes]:
    """Yield a file's bytes."""
    while chunk := os.read(fd, _CHUNK):
        yield chunk


def unpack(chunks: Iterator[bytes], folder: Path) -> None:
    """Write an archive's files into a directory. Raises ArchiveError for whatever is not a plain file in it.

    They are no larger than the archive is, so its size is the limit.
    """
    reader = TarReader(ByteStream(chunks))
    for number, entry in enumerate(reader):
        if number >= MOST_FILES:
            raise ArchiveError(f"more than {MOST_FILES} files")
        name = _name(entry)
        if not name:
            continue
        try:
            fd = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise ArchiveError(f"{name} comes twice") from None
        with open(fd, "wb") as file:
            for piece in reader.content():
                file.write(piece)


def _name(entry: Entry) -> str:
    """Return the name of the file that an entry is, "" for the directory of them all."""
    name = os.fsdecode(entry.name).removeprefix("./").rstrip("/")
    if entry.kind == DIRECTORY and name in {"", "."}:
        return ""
    if entry.kind != REGULAR or entry.segments is not None:
        raise ArchiveError(f"{name!r} is not a plain file")
    if "/" in name or name in {"", ".", ".."}:
        raise ArchiveError(f"{name!r} is not the name of a file in the directory itself")
    return name
