"""Where CDI devices are found: the files of some directories, of which a later one's count more.

A file that cannot be used takes only its own devices away, and is named when one is asked for that nobody describes.
Source: CDI specification 1.1.0, "How does CDI work?" and "Error Handling".
"""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from pyctr_wire.errors import FailedPrecondition, InvalidArgument
from pyctr_wire.oci.image_spec import load_json
from pyctrd.cdi.documents import DocumentError, Edits, Kind, parse
from pyctrd.cdi.names import DeviceName

_JSON, _YAML = ".json", ".yaml"
_LARGEST: Final = 4 << 20  # bytes of a file


class _File(NamedTuple):
    """A file as it was read: its devices, or why it cannot be used."""

    path: Path
    version: tuple[int, int, int]  # inode, size, time of its last change: another one is to be read anew
    kind: Kind | None
    problem: str = ""


class Registry:
    """What drivers have described; looked at anew whenever somebody asks, and read only if it has changed."""

    def __init__(self, directories: Sequence[Path]) -> None:
        """Use these, the last one first; none of them means that there are no such devices here."""
        self._directories = directories
        self._lock = threading.Lock()
        self._read: dict[Path, _File] = {}

    def edits(self, wanted: Iterable[DeviceName]) -> list[Edits]:
        """Return what is to be done for these devices, in order; what is of all devices in a file comes once.

        Raises FailedPrecondition naming the device, where it was looked for, and what can be done.
        """
        devices = list(wanted)
        if not devices:
            return []
        with self._lock:
            groups = [list(self._files(directory)) for directory in reversed(self._directories)]
            self._read = {file.path: file for group in groups for file in group}
        result: list[Edits] = []
        used: set[Path] = set()
        for device in devices:
            file, edits = self._find(device, groups)
            assert file.kind is not None
            if file.path not in used:
                used.add(file.path)
                result.append(file.kind.edits)
            result.append(edits)
        return result

    def _find(self, device: DeviceName, groups: Sequence[Sequence[_File]]) -> tuple[_File, Edits]:
        for files in groups:
            found = [
                (file, file.kind.devices[device.name])
                for file in files
                if file.kind is not None and file.kind.kind == device.kind and device.name in file.kind.devices
            ]
            if len(found) > 1:
                paths = " and ".join(str(file.path) for file, _ in found)
                raise FailedPrecondition(f"CDI device {device}: {paths} both describe it: take it out of one of them")
            if found:
                return found[0]
        raise FailedPrecondition(self._not_found(device, [file for files in groups for file in files]))

    def _not_found(self, device: DeviceName, files: Sequence[_File]) -> str:
        if not self._directories:
            return f"CDI device {device}: there are none on this machine, as cdi.directories is empty"
        places = ", ".join(map(str, self._directories))
        text = f"CDI device {device}: no file in {places} describes it; its driver's installation writes one"
        of_kind = {name for file in files if file.kind and file.kind.kind == device.kind for name in file.kind.devices}
        if of_kind:
            text += f"; of {device.kind} there are {', '.join(sorted(of_kind))}"
        for file in files:
            if file.problem:
                text += f"; {file.path} cannot be used: {file.problem}"
        return text

    def _files(self, directory: Path) -> Iterator[_File]:
        try:
            paths = sorted(path for path in directory.iterdir() if path.suffix in (_JSON, _YAML))
        except FileNotFoundError:
            return
        except OSError as error:
            yield _File(directory, (0, 0, 0), None, error.strerror or str(error))
            return
        for path in paths:
            try:
                status = path.stat()
            except OSError as error:  # gone meanwhile, or a link that leads nowhere
                yield _File(path, (0, 0, 0), None, error.strerror or str(error))
                continue
            version = (status.st_ino, status.st_size, status.st_mtime_ns)
            known = self._read.get(path)
            yield known if known is not None and known.version == version else _read(path, version)


def _read(path: Path, version: tuple[int, int, int]) -> _File:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            data = file.read(_LARGEST + 1)
        return _File(path, version, parse(_load(path, data)))
    except (DocumentError, InvalidArgument) as error:
        return _File(path, version, None, str(error))
    except OSError as error:
        return _File(path, version, None, error.strerror or str(error))


def _load(path: Path, data: bytes) -> Any:
    if len(data) > _LARGEST:
        raise DocumentError(f"it is larger than {_LARGEST} bytes")
    if path.suffix == _JSON:
        return load_json(data, "it")
    import yaml  # not needed, and not loaded, where drivers write JSON

    try:
        return yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DocumentError(f"it is not valid YAML: {' '.join(str(error).split())}") from error
