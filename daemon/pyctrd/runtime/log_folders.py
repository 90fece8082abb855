"""Containers' logs: <root>/<namespace>/<id>/, written by shims, made and removed by the daemon."""

import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode

from pyctr_wire.errors import InvalidArgument

DEFAULT_DRIVER: Final = "json-file"
_OPTIONS: Final = {
    "json-file": frozenset({"max-size", "max-file"}),
    "cri": frozenset[str](),
    "journald": frozenset[str](),
    "none": frozenset[str](),
}
# As the shim reads them: it could only refuse the container's start.
_VALUES: Final = {"max-size": re.compile(r"-1|[0-9]+[bkmg]?b?", re.IGNORECASE), "max-file": re.compile(r"[1-9][0-9]*")}
_FILE_NAMES: Final = {"json-file": "json.log", "cri": "cri.log"}


class LogFolders:
    """Owns everything below its root."""

    def __init__(self, root: Path) -> None:
        """Use `root`, which is made when the first log is."""
        self._root = root

    def _folder(self, namespace: str, container_id: str) -> Path:
        return self._root / namespace / container_id

    def choose(self, namespace: str, container_id: str, driver: str, options: dict[str, str]) -> tuple[str, str, str]:
        """Return driver, log URI and path of a container's log; nothing is made. Raises InvalidArgument."""
        driver = driver or DEFAULT_DRIVER
        if driver not in _OPTIONS:
            raise InvalidArgument(f"log driver {driver!r} is not there; these are: {', '.join(_OPTIONS)}")
        unknown = options.keys() - _OPTIONS[driver]
        if unknown:
            raise InvalidArgument(f"log driver {driver} has no option {', '.join(sorted(unknown))}")
        for name, value in options.items():
            if not _VALUES[name].fullmatch(value):
                raise InvalidArgument(f"log option {name}={value}: a size is like 10m, a number of files 1 or more")
        if driver == "none":
            return driver, "attach:", ""  # only for whoever is attached
        if driver == "journald":
            return driver, "journald:", ""
        path = self._folder(namespace, container_id) / _FILE_NAMES[driver]
        query = f"?{urlencode(options)}" if options else ""
        return driver, f"{driver}://{quote(str(path))}{query}", str(path)

    def make(self, namespace: str, container_id: str) -> None:
        """Make the folder of a container's log."""
        folder = self._folder(namespace, container_id)
        for path in (self._root, folder.parent, folder):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def remove(self, namespace: str, container_id: str) -> None:
        """Remove a container's logs; those that never were are fine."""
        folder = self._folder(namespace, container_id)
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # others' logs are in it
            folder.parent.rmdir()

    def sweep(self, known: Collection[tuple[str, str]]) -> None:
        """Remove the logs of containers, (namespace, id), that are not `known`: a crash may have left some."""
        if not self._root.is_dir():
            return
        for namespace in self._root.iterdir():
            for folder in namespace.iterdir() if namespace.is_dir() else ():
                if (namespace.name, folder.name) not in known:
                    self.remove(namespace.name, folder.name)

    def size(self, namespace: str) -> tuple[int, int]:
        """Return how many logs a namespace has, and their size in bytes."""
        count = total = 0
        for folder in (self._root / namespace).glob("*"):
            count += 1
            for file in folder.glob("*"):
                with suppress(FileNotFoundError):  # it was rotated away
                    total += file.stat().st_size
        return count, total
