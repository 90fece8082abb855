"""Volumes that have no name but a random one, each made for one container, which has it bind mounted.

    <root>/<namespace>/<container>/volumes.json   what is here, and whether it stays when the container goes
    <root>/<namespace>/<container>/<volume>/      what the container sees

The order, and what a crash leaves behind:

    the volumes, filled     without a volumes.json that says `kept`: go with their container, which never came to be
    the container's record
    `kept`                  unless the container was started with --rm
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from pyctr_sys.sync import syncfs
from pyctr_wire.errors import AlreadyExists, FailedPrecondition, NotFound
from pyctrd.core.values import dataclass
from pyctrd.metadata.durable import naming_full_disk, replacing
from pyctrd.runtime.container_folders import ContainerFolders, directories, doomed, opened, remove
from pyctrd.runtime.copy_up import copy_up
from pyctrd.runtime.presence import Presence
from pyctrd.snapshots.usage import measure

_MANIFEST: Final = "volumes.json"


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

    def __init__(self, root: Path, presence: Presence) -> None:
        """Use `root`, which is made with the first volume."""
        self._folders = ContainerFolders(root, presence)
        self._presence = presence

    def make(self, ns: str, container: str, target: str, layers: Sequence[int]) -> Path:
        """Make a volume that starts as the directory `layers` (O_PATH fds, borrowed) make up; empty without any.

        The container is being made. Raises AlreadyExists if an earlier container of that id left volumes,
        ResourceExhausted for a full disk, FailedPrecondition as `copy_up`.
        """
        if (self._folders.of(ns, container) / _MANIFEST).exists():
            raise AlreadyExists(f"volumes of an earlier container {container} are still there: pyctr volume prune")
        with naming_full_disk(f"the volume for {target}"):
            path = self._folders.make(ns, container) / secrets.token_hex(32)
            path.mkdir()
            path.chmod(0o755)
            if layers:
                with opened(path) as fd:
                    copy_up(layers, fd)
        return path

    def sync(self, ns: str, container: str) -> None:
        """Wait until volumes are on disk: what they start with, nobody would copy again after a power cut."""
        with naming_full_disk("the container's volumes"), opened(self._folders.of(ns, container)) as fd:
            syncfs(fd)

    def keep(self, ns: str, container: str, targets: Mapping[str, str]) -> None:
        """Let volumes stay when the container goes; `targets` has all of them, by name."""
        _write(self._folders.of(ns, container), targets)

    def has(self, ns: str, container: str) -> bool:
        """Return whether there is anything of a container's."""
        return self._folders.has(ns, container)

    def container_gone(self, ns: str, container: str) -> None:
        """Remove what goes with a container; without effect while that is there."""
        if not (self._folders.of(ns, container) / _MANIFEST).exists():
            self._folders.remove(ns, container)

    def sweep(self) -> None:
        """Remove what went with containers that are gone, and what was being removed."""
        for ns, container in self._folders.sweep():
            self.container_gone(ns, container)

    def list(self, ns: str) -> list[Volume]:
        """Return the volumes of a namespace."""
        found = []
        for folder in self._folders.list(ns):
            used = self._presence.has(ns, folder.name)
            targets = _read(folder)
            found += [
                Volume(path.name, folder.name, targets.get(path.name, ""), path, used) for path in directories(folder)
            ]
        return found

    def remove(self, ns: str, name: str) -> None:
        """Remove a volume. Raises NotFound, FailedPrecondition while its container is there."""
        volume = next((one for one in self.list(ns) if one.name == name), None)
        if volume is None:
            raise NotFound(f"volume {name}")
        folder = volume.path.parent
        rubbish = doomed(folder)
        with self._presence.lock:
            if self._presence.has(ns, volume.container):
                raise FailedPrecondition(f"volume {name} is in use by container {volume.container}")
            with suppress(FileNotFoundError):  # somebody else removes it
                volume.path.rename(rubbish)
                targets = _read(folder)
                if targets.pop(name, None) is not None:
                    _write(folder, targets)
        remove(rubbish)
        if not directories(folder):
            self._folders.remove(ns, volume.container)

    def remove_of(self, ns: str, container: str) -> None:
        """Remove all volumes of a container. Raises FailedPrecondition while it is there."""
        if not self._folders.remove(ns, container):
            raise FailedPrecondition(f"container {container} still has its volumes")

    def size(self, ns: str) -> tuple[int, int, int, int]:
        """Return how many volumes there are, how many of them are in use, all bytes and those of unused ones."""
        volumes = self.list(ns)
        sizes = [(measure(volume.path).size, volume.used) for volume in volumes]
        used = sum(volume.used for volume in volumes)
        return len(volumes), used, sum(size for size, _ in sizes), sum(size for size, in_use in sizes if not in_use)


def _read(folder: Path) -> dict[str, str]:
    """Return the targets of kept volumes by name, as far as they are known."""
    try:
        return dict(json.loads((folder / _MANIFEST).read_bytes())["kept"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write(folder: Path, targets: Mapping[str, str]) -> None:
    with replacing(folder / _MANIFEST) as file:
        file.write_text(json.dumps({"version": 1, "kept": dict(targets)}))
