"""Images that are a container's volumes: for each a view of its layers, mounted read-only while the container is there.

    <state>/pods/<sandbox>/images/<container>/<number of its mount>

The container's record refers to the views, which keep the layers whatever becomes of the image's names.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from pyctr_sys.openat2 import O_PATH, Resolve, openat2
from pyctr_wire.cri import runtime_pb2
from pyctr_wire.errors import InvalidArgument, NotFound, UnknownError
from pyctrd.core.labels import Labels
from pyctrd.core.mounts import Mount
from pyctrd.cri.records import NAMESPACE, Pod
from pyctrd.sandbox import views
from pyctrd.sandbox.files import SandboxFiles, unmount

# What a kubelet knows the failure by.
FAILED: Final = "ImageVolumeMountFailed"
_BENEATH: Final = int(Resolve.BENEATH | Resolve.NO_MAGICLINKS | Resolve.NO_XDEV)


class Image(Protocol):
    """An image whose layers are here."""

    @property
    def chain_id(self) -> str:
        """The snapshot of its uppermost layer."""


class Snapshotter(Protocol):
    """Snapshots of one kind."""

    def view(self, ns: str, key: str, parent: str, labels: Labels, lease: str = "") -> Sequence[Mount]: ...
    def remove(self, ns: str, key: str) -> None: ...


class Wanted(NamedTuple):
    """An image to be mounted; `number` is that of its mount in the container's configuration."""

    number: int
    image: Image
    sub_path: str


def asked_for(config: runtime_pb2.ContainerConfig) -> Iterator[tuple[int, runtime_pb2.Mount]]:
    """Yield the mounts of images, with their numbers. Raises InvalidArgument for one that cannot be."""
    for number, mount in enumerate(config.mounts):
        if not mount.image.image:
            continue
        where = f"{FAILED}: mount of {mount.image.image} at {mount.container_path}"
        if mount.host_path:
            raise InvalidArgument(f"{where}: it has a host_path too")
        if not mount.readonly:
            raise InvalidArgument(f"{where}: it must be read-only")
        if "\0" in mount.image_sub_path or mount.image_sub_path.startswith("/"):
            raise InvalidArgument(f"{where}: image_sub_path {mount.image_sub_path!r} must be a relative path")
        yield number, mount


class ImageVolumes:
    """Synchronous, called in threads."""

    def __init__(self, snapshotter: Snapshotter, name: str, files: SandboxFiles) -> None:
        """Make views with this snapshotter, which has that name, and mount them among the pods' files."""
        self._snapshotter = snapshotter
        self._reference = f"containerd.io/gc.ref.snapshot.{name}"
        self._files = files

    def labels(self, container: str, wanted: Iterable[Wanted]) -> Labels:
        """Return what the container's record says of its views."""
        return {f"{self._reference}/{one.number}": _key(container, one.number) for one in wanted}

    def attach(self, pod: Pod, container: str, wanted: Iterable[Wanted], lease: str) -> Mapping[int, str]:
        """Mount them and return the paths to bind, by number.

        Raises InvalidArgument for a path that the image does not have or that leaves it, UnknownError. What is there
        by then is `release`'s to take down.
        """
        return {one.number: self._attach(pod, container, one, lease) for one in wanted}

    def release(self, pod: str, container: str, numbers: Iterable[int]) -> None:
        """Take down what a container has, which has ended; repeatable."""
        folder = self._files.images(pod) / container
        for number in numbers:
            unmount(folder / str(number))
            with suppress(NotFound):
                self._snapshotter.remove(NAMESPACE, _key(container, number))
        with suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()

    def release_strays(self, pod: str, containers: Collection[str]) -> None:
        """Take down what a crash has left of containers without a record."""
        folder = self._files.images(pod)
        with suppress(FileNotFoundError):
            for container in set(os.listdir(folder)) - set(containers):
                self.release(pod, container, map(int, os.listdir(folder / container)))

    def _attach(self, pod: Pod, container: str, wanted: Wanted, lease: str) -> str:
        target = self._files.images(pod.id) / container / str(wanted.number)
        target.mkdir(mode=0o700, parents=True)
        mounts = self._snapshotter.view(
            NAMESPACE, _key(container, wanted.number), wanted.image.chain_id, {}, lease=lease
        )
        namespace = self._files.namespaces(pod.id) / "user" if pod.maps else None
        try:
            views.attach(mounts, target, namespace)
        except OSError as error:
            raise UnknownError(f"{FAILED}: {error.strerror or error}") from error
        return _inside(target, wanted.sub_path) if wanted.sub_path else str(target)


def _key(container: str, number: int) -> str:
    return f"{container}-image-{number}"


def _inside(root: Path, sub_path: str) -> str:
    """Return where a path below `root` leads, which nobody can write to. Raises InvalidArgument."""
    root_fd = os.open(root, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = openat2(root_fd, sub_path, O_PATH, _BENEATH)
    except OSError as error:
        raise InvalidArgument(f"{FAILED}: image_sub_path {sub_path!r}: {error.strerror}") from error
    finally:
        os.close(root_fd)
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
