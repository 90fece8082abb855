"""Containers' logs: <root>/<namespace>/<id>/, made and written by shims, removed by the daemon."""

import os
import re
import shutil
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
    """Decides what lies below its root."""

    def __init__(self, root: Path) -> None:
        """Use `root`, which is there from the first log on."""
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

    def has(self, namespace: str, container_id: str) -> bool:
        """Return whether a container has a log."""
        return os.path.exists(f"{self._root}/{namespace}/{container_id}")

    def remove(self, namespace: str, container_id: str) -> None:
        """Remove a container's logs; those that never were are fine."""
        folder = self._folder(namespace, container_id)
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # others' logs are in it
            folder.parent.rmdir()

    def list(self) -> list[tuple[str, str]]:
        """Return namespace and id of the containers that have a log; each had a record before it had that."""
        return [(folder.parent.name, folder.name) for folder in self._root.glob("*/*")]

    def size(self, namespace: str) -> tuple[int, int]:
        """Return how many logs a namespace has, and their size in bytes."""
        count = total = 0
        for folder in (self._root / namespace).glob("*"):
            count += 1
            for file in folder.glob("*"):
                with suppress(FileNotFoundError):  # it was rotated away
                    total += file.stat().st_size
        return count, total
