"""Volumes that have no name but a random one, each made for one container, which has it bind mounted.

    <root>/<namespace>/<container>/volumes.json   what is here, and whether it stays when the container goes
    <root>/<namespace>/<container>/<volume>/      what the container sees

The order, and what a crash leaves behind:

    the volumes, filled     without a volumes.json that says `kept`: go with their container, which never came to be
    the container's record
    `kept`                  unless the container was started with --rm
"""

import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from pyctr_sys.sync import syncfs
from pyctr_wire.errors import AlreadyExists, FailedPrecondition, NotFound
from pyctrd.metadata.durable import naming_full_disk, replacing
from pyctrd.runtime.copy_up import copy_up
from pyctrd.snapshots.removal import remove_tree
from pyctrd.snapshots.usage import measure

_MANIFEST: Final = "volumes.json"
_log = structlog.stdlib.get_logger("pyctrd.runtime")


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume; `used` says whether the container that it was made for is still there."""

    name: str
    container: str
    target: str  # path in the container
    path: Path
    used: bool


class Volumes:
    """Owns everything below its root; synchronous, thread-safe."""

    def __init__(self, root: Path, container_exists: Callable[[str, str], bool]) -> None:
        """Use `root`, which is made with the first volume; `container_exists` is given namespace and id."""
        self._root = root
        self._exists = container_exists
        # Held to decide whether a container's volumes may go, and until they are out of sight.
        self._lock = threading.Lock()
        self._making: set[tuple[str, str]] = set()

    @contextmanager
    def making(self, ns: str, container: str) -> Iterator[None]:
        """Leave alone, in the block, the volumes of a container that has no record yet; after an error they go.

        Raises AlreadyExists if one of that id is being made.
        """
        key = (ns, container)
        self.container_gone(ns, container)  # an earlier one of that id, if there was one
        with self._lock:
            if key in self._making:
                raise AlreadyExists(f'container "{container}"')
            self._making.add(key)
        try:
            yield
        finally:
            with self._lock:
                self._making.discard(key)
            self.container_gone(ns, container)  # unless it has its record by now

    def make(self, ns: str, container: str, target: str, layers: Sequence[int]) -> Path:
        """Make a volume that starts as the directory `layers` (O_PATH fds, borrowed) make up; empty without any.

        Called in `making`. Raises AlreadyExists if an earlier container of that id left volumes,
        ResourceExhausted for a full disk, FailedPrecondition as `copy_up`.
        """
        folder = self._root / ns / container
        if (folder / _MANIFEST).exists():
            raise AlreadyExists(f"volumes of an earlier container {container} are still there: pyctr volume prune")
        path = folder / secrets.token_hex(32)
        with naming_full_disk(f"the volume for {target}"):
            with self._lock:  # against who removes the namespace's folder with the last volume in it
                for directory in (self._root, folder.parent, folder):
                    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.mkdir()
            path.chmod(0o755)
            if layers:
                with _opened(path) as fd:
                    copy_up(layers, fd)
        return path

    def sync(self, ns: str, container: str) -> None:
        """Wait until volumes are on disk: what they start with, nobody would copy again after a power cut."""
        with naming_full_disk("the container's volumes"), _opened(self._root / ns / container) as fd:
            syncfs(fd)

    def keep(self, ns: str, container: str, targets: Mapping[str, str]) -> None:
        """Let volumes stay when the container goes; `targets` has all of them, by name."""
        _write(self._root / ns / container, targets)

    def container_gone(self, ns: str, container: str) -> None:
        """Remove what goes with a container; without effect while that is there."""
        if not (self._root / ns / container / _MANIFEST).exists():
            self._remove_unused(ns, container)

    def sweep(self) -> None:
        """Remove what went with containers that are gone, and what was being removed."""
        for namespace in _directories(self._root):
            for folder in _directories(namespace):
                if folder.name.startswith("."):
                    _remove(folder)
                else:
                    self.container_gone(namespace.name, folder.name)

    def list(self, ns: str) -> list[Volume]:
        """Return the volumes of a namespace."""
        found = []
        for folder in _directories(self._root / ns):
            if not folder.name.startswith("."):
                used = self._in_use(ns, folder.name)
                targets = _read(folder)
                found += [
                    Volume(path.name, folder.name, targets.get(path.name, ""), path, used)
                    for path in _directories(folder)
                ]
        return found

    def remove(self, ns: str, name: str) -> None:
        """Remove a volume. Raises NotFound, FailedPrecondition while its container is there."""
        volume = next((one for one in self.list(ns) if one.name == name), None)
        if volume is None:
            raise NotFound(f"volume {name}")
        folder = volume.path.parent
        doomed = _doomed(folder)
        with self._lock:
            if self._in_use(ns, volume.container):
                raise FailedPrecondition(f"volume {name} is in use by container {volume.container}")
            with suppress(FileNotFoundError):  # somebody else removes it
                volume.path.rename(doomed)
                targets = _read(folder)
                if targets.pop(name, None) is not None:
                    _write(folder, targets)
        _remove(doomed)
        if not _directories(folder):
            self._remove_unused(ns, volume.container)

    def remove_of(self, ns: str, container: str) -> None:
        """Remove all volumes of a container. Raises FailedPrecondition while it is there."""
        if not self._remove_unused(ns, container):
            raise FailedPrecondition(f"container {container} still has its volumes")

    def size(self, ns: str) -> tuple[int, int, int, int]:
        """Return how many volumes there are, how many of them are in use, all bytes and those of unused ones."""
        volumes = self.list(ns)
        sizes = [(measure(volume.path).size, volume.used) for volume in volumes]
        used = sum(volume.used for volume in volumes)
        return len(volumes), used, sum(size for size, _ in sizes), sum(size for size, in_use in sizes if not in_use)

    def _in_use(self, ns: str, container: str) -> bool:
        # In this order: the record is there before the making ends.
        return (ns, container) in self._making or self._exists(ns, container)

    def _remove_unused(self, ns: str, container: str) -> bool:
        """Remove the volumes of a container unless it is there, or about to be; return whether they are gone."""
        folder = self._root / ns / container
        if not folder.exists():
            return True
        doomed = _doomed(folder)
        with self._lock:
            if self._in_use(ns, container):
                return False
            with suppress(FileNotFoundError):  # somebody else removes it
                folder.rename(doomed)
        _remove(doomed)
        with self._lock, suppress(OSError):  # others' volumes are in it
            folder.parent.rmdir()
        return True


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _directories(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []


def _doomed(folder: Path) -> Path:
    """Return a new name beside a container's folder for what is being removed; no container can have it."""
    return folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")


def _remove(path: Path) -> None:
    try:
        remove_tree(path)
    except OSError as error:  # an immutable file, say: the next sweep tries again
        _log.warning("volume.not_removed", path=str(path), error=str(error))


def _read(folder: Path) -> dict[str, str]:
    """Return the targets of kept volumes by name, as far as they are known."""
    try:
        return dict(json.loads((folder / _MANIFEST).read_bytes())["kept"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write(folder: Path, targets: Mapping[str, str]) -> None:
    with replacing(folder / _MANIFEST) as file:
        file.write_text(json.dumps({"version": 1, "kept": dict(targets)}))
