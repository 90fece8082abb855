"""A directory for each container, which goes when that goes: <root>/<namespace>/<container>/.

What is being removed has a name with a dot in front, which no container can have. The next sweep goes on with it.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyctrd.log import Logger
from pyctrd.runtime.presence import Presence
from pyctrd.snapshots.removal import remove_tree

_log = Logger("pyctrd.runtime")


class ContainerFolders:
    """Owns its root and the folders in it, not what is in those; synchronous, thread-safe."""

    def __init__(self, root: Path, presence: Presence) -> None:
        """Use `root`, which is made with the first folder."""
        self._root = root
        self._presence = presence

    def of(self, ns: str, container: str) -> Path:
        """Return a container's folder, which need not be there."""
        return self._root / ns / container

    def has(self, ns: str, container: str) -> bool:
        """Return whether a container's folder is there."""
        return os.path.exists(f"{self._root}/{ns}/{container}")

    def list(self, ns: str) -> list[Path]:
        """Return the folders of a namespace."""
        return [path for path in directories(self._root / ns) if not path.name.startswith(".")]

    def make(self, ns: str, container: str) -> Path:
        """Make a container's folder if it is not there. Raises OSError."""
        folder = self.of(ns, container)
        with self._presence.lock:  # against who removes the namespace's folder with the last one in it
            for directory in (self._root, folder.parent, folder):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def remove(self, ns: str, container: str) -> bool:
        """Remove a container's folder unless the container is there, or about to be; return whether it is gone."""
        folder = self.of(ns, container)
        if not folder.exists():
            return True
        rubbish = doomed(folder)
        with self._presence.lock:
            if self._presence.has(ns, container):
                return False
            with suppress(FileNotFoundError):  # somebody else removes it
                folder.rename(rubbish)
        remove(rubbish)
        with self._presence.lock, suppress(OSError):  # others' folders are in it
            folder.parent.rmdir()
        return True

    def sweep(self) -> Iterator[tuple[str, str]]:
        """Go on with what was being removed, and yield namespace and container of each folder that is left."""
        for namespace in directories(self._root):
            for folder in directories(namespace):
                if folder.name.startswith("."):
                    remove(folder)
                else:
                    yield namespace.name, folder.name


def directories(folder: Path) -> list[Path]:
    """Return the directories in `folder`, none if that is not there."""
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []


@contextmanager
def opened(directory: Path) -> Iterator[int]:
    """Yield an fd of a directory."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def doomed(folder: Path) -> Path:
    """Return a new name beside `folder` for what is being removed."""
    return folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")


def remove(path: Path) -> None:
    """Remove a directory with all that is in it, as far as that goes; none is fine."""
    try:
        remove_tree(path)
    except OSError as error:  # an immutable file, say: the next sweep tries again
        _log.warning("folder.not_removed", path=str(path), error=str(error))
