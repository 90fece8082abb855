"""CheckpointContainer: a running container as one archive, in the form that kubelets and checkpointctl know.

    checkpoint/       CRIU's images           dump.log, stats-dump    what CRIU says of its work
    config.dump       which container         spec.dump               its OCI spec
    status.dump       CRI's status            status                  the same as containerd notes it
    rootfs-diff.tar   a layer: what it has changed of its image       container.log

Nothing of it has a name before it is complete. Source: BEHAVIOUR of containerd's CRI; KEP-2008.
"""

import io
import json
import os
import secrets
import stat
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Protocol

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.json_format import MessageToJson

from pyctr_wire.containerd.types.runc.options import oci_pb2
from pyctr_wire.cri import runtime_pb2
from pyctr_wire.errors import FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from pyctrd.core.containers import Container
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.leases import for_a_call
from pyctrd.core.mounts import Mount
from pyctrd.cri import convert
from pyctrd.cri.creation import SNAPSHOTTER
from pyctrd.cri.records import NAMESPACE, PodContainer
from pyctrd.diff import media_types
from pyctrd.offload import Offload
from pyctrd.runtime.creation import LeaseRows
from pyctrd.snapshots.manager import SnapshotManager

_MOST_LOG: Final = 64 << 20  # bytes: the end of a longer one


class Saver(Protocol):
    """What saves processes."""

    def folder(self) -> AbstractAsyncContextManager[Path]: ...
    async def save_in(self, namespace: str, id: str, path: str, options: AnyMessage, /) -> None: ...


class Differ(Protocol):
    """What compares file systems."""

    async def diff(
        self, ns: str, left: Sequence[Mount], right: Sequence[Mount], *, media_type: str, ref: str, lease: str
    ) -> Descriptor: ...


class Blobs(Protocol):
    """Content."""

    def open_blob(self, ns: str, digest: str, /) -> tuple[int, int]: ...


class _Saved(NamedTuple):
    """A container's parts: CRIU's files are in `folder`, in checkpoint/ and work/."""

    container: PodContainer
    row: Container
    folder: Path
    rootfs: str  # the digest of the layer


class ContainerCheckpoints:
    """Saves pods' containers, which go on meanwhile."""

    def __init__(
        self,
        saver: Callable[[], Saver],
        differ: Differ,
        snapshots: SnapshotManager,
        leases: LeaseRows,
        blobs: Blobs,
        find: Callable[[str, str], Container],
        threads: Offload,
    ) -> None:
        """Use these; `find` returns a container's row, and `saver` is made when it is needed."""
        self._saver = saver
        self._differ = differ
        self._snapshots = snapshots
        self._leases = leases
        self._blobs = blobs
        self._find = find
        self._threads = threads

    async def save(self, container: PodContainer, location: str) -> None:
        """Write an archive at `location`, a path of this machine. If cancelled, nothing is there and it goes on.

        Raises FailedPrecondition unless it runs and if there is such a file, Unimplemented for another shim's,
        InvalidArgument naming the location, and what the runtime says.
        """
        if container.state != runtime_pb2.CONTAINER_RUNNING:
            raise FailedPrecondition(f"container is in {container.state_name} state")
        if container.pod.has_task:
            raise Unimplemented(
                f'container "{container.id}" cannot be saved: its runtime handler "{container.pod.handler}" is a shim'
                " of another make; run it by a handler without `shim`"
            )
        await self._threads.run(_check, location)
        options = AnyMessage()
        async with self._saver().folder() as folder, self._lease(container.id) as lease:
            (folder / "work").mkdir(mode=0o700)
            options.Pack(oci_pb2.CheckpointOptions(work_path=str(folder / "work")))
            await self._saver().save_in(NAMESPACE, container.id, str(folder / "checkpoint"), options)
            rootfs = await self._changes(container, lease)
            row = await self._threads.run(self._find, NAMESPACE, container.id)
            saved = _Saved(container, row, folder, rootfs.digest)
            await self._threads.run(self._write, saved, location)

    @asynccontextmanager
    async def _lease(self, id: str) -> AsyncIterator[str]:
        """Yield a lease that keeps what is made in between."""
        name = f"cri-checkpoint-{id}-{secrets.token_hex(4)}"

        def make() -> None:
            self._leases.create(NAMESPACE, for_a_call(name))

        async with self._threads.holding(make, lambda _: self._leases.delete(NAMESPACE, name)):
            yield name

    async def _changes(self, container: PodContainer, lease: str) -> Descriptor:
        """Return the layer that the container has made of its image."""
        snapshotter = self._snapshots.named(SNAPSHOTTER)
        parent = (await self._threads.run(snapshotter.stat, NAMESPACE, container.id)).parent
        below = await self._threads.run(snapshotter.view, NAMESPACE, lease, parent, lease=lease)
        try:
            above = await self._threads.run(snapshotter.mounts, NAMESPACE, container.id)
            return await self._differ.diff(
                NAMESPACE, below, above, media_type=media_types.LAYER, ref=lease, lease=lease
            )
        finally:
            with suppress(NotFound):
                await self._threads.run(snapshotter.remove, NAMESPACE, lease)

    def _write(self, saved: _Saved, location: str) -> None:
        try:
            parent_fd = os.open(os.path.dirname(location), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _refusal(location, error) from error
        try:
            # Without a name until it is whole: a crash leaves nothing.
            fd = os.open(os.path.dirname(location), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            with open(fd, "w+b") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                    self._fill(archive, saved)
                file.flush()
                os.fsync(fd)
                # A directory of the source, which is not looked at, has Python call linkat, which follows the link.
                os.link(f"/proc/self/fd/{fd}", os.path.basename(location), src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
        except OSError as error:
            raise _refusal(location, error) from error
        finally:
            os.close(parent_fd)

    def _fill(self, archive: tarfile.TarFile, saved: _Saved) -> None:
        for folder, prefix in (("checkpoint", "checkpoint/"), ("work", "")):
            for path in sorted((saved.folder / folder).iterdir()):
                if stat.S_ISREG(path.lstat().st_mode):
                    # CRIU puts its figures beside its images or beside its log, from version to version.
                    name = path.name if path.name == "stats-dump" else prefix + path.name
                    archive.add(path, name, recursive=False)
        assert saved.row.spec is not None
        _add(archive, "config.dump", _encode(_identity(saved)))
        _add(archive, "spec.dump", saved.row.spec.value)
        status = convert.container_status(saved.container)
        _add(archive, "status.dump", MessageToJson(status, preserving_proto_field_name=True).encode())
        _add(archive, "status", _encode(_notes(saved.container)))
        fd, size = self._blobs.open_blob(NAMESPACE, saved.rootfs)
        with open(fd, "rb") as layer:
            _add_file(archive, "rootfs-diff.tar", layer, size)
        for log in _log(saved.container.log_path):
            _add(archive, "container.log", log)


def _check(location: str) -> None:
    """Raise InvalidArgument or FailedPrecondition if nothing can be written at `location`."""
    if not location.startswith("/") or not os.path.basename(location) or "\0" in location:
        raise InvalidArgument(f"location {location[:200]!r} is not the full path of a file")
    if not os.path.isdir(os.path.dirname(location)):
        raise InvalidArgument(f"location {location}: there is no directory {os.path.dirname(location)}")
    if os.path.lexists(location):
        raise FailedPrecondition(f"location {location}: it is there already")


def _refusal(location: str, error: OSError) -> Exception:
    if isinstance(error, FileExistsError):
        return FailedPrecondition(f"location {location}: it is there already")
    return FailedPrecondition(f"the checkpoint cannot be written to {location}: {error.strerror or error}")


def _identity(saved: _Saved) -> dict[str, Any]:
    container = saved.container
    created = datetime.fromtimestamp(container.created_at / 1e9, UTC)
    return {
        "id": container.id,
        "name": container.config.metadata.name,
        "rootfsImage": container.config.image.image,
        "rootfsImageRef": container.image.id,
        "rootfsImageName": container.image.tag,
        "runtime": saved.row.runtime_name,
        "createdTime": created.isoformat(),
        "checkpointedTime": datetime.now(UTC).isoformat(),
        "restoredTime": "0001-01-01T00:00:00Z",  # never
        "restored": False,
    }


def _notes(container: PodContainer) -> dict[str, Any]:
    return {
        "Version": "v1",
        "CreatedAt": container.created_at,
        "StartedAt": container.started_at,
        "FinishedAt": container.finished_at,
        "ExitCode": container.exit_code,
        "Reason": container.reason,
        "Message": container.message,
    }


def _log(path: str) -> Iterator[bytes]:
    """Yield the log's end, if it is a plain file: whoever may write beside it must not have us read another one."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode):
                file.seek(max(0, status.st_size - _MOST_LOG))
                yield file.read(_MOST_LOG)


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    _add_file(archive, name, io.BytesIO(data), len(data))


def _add_file(archive: tarfile.TarFile, name: str, file: IO[bytes], size: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o600, int(datetime.now(UTC).timestamp())
    archive.addfile(entry, file)
