"""What was asked of a network's plugins and what they answered, on disk: a DEL needs it, whatever happened meanwhile.

    <directory>/<network>-<container>-<interface>.json

A record is written before the first plugin of an ADD runs, without a result, and again with it; it goes when a DEL
has succeeded. So whatever a crash or a reboot leaves behind has a record by which it is undone. It is not fsynced,
as each pod would wait for that: what a power cut takes of the records, CNI's GC makes up for.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pyctrd.log import Logger
from pyctrd.network.configuration import Network
from pyctrd.network.configuration import parse as parse_network

_SUFFIX: Final = ".json"
_UNFINISHED: Final = ".new"
_FORMAT: Final = 1

_log = Logger("pyctrd.network")


class Attachment(NamedTuple):
    """An interface of a container, by CNI's words: `result` is None until the ADD has succeeded.

    `in_process` are the types of plugins that did not run as programs; `runtime` is what capabilities may give to
    plugins (CNI conventions), each plugin those that it asks for.
    """

    network: Network
    container: str
    interface: str
    netns: str
    arguments: str
    runtime: Mapping[str, Any]
    in_process: tuple[str, ...]
    result: Mapping[str, Any] | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What CNI knows it by, within its network."""
        return self.container, self.interface


class Records:
    """The records in a directory."""

    def __init__(self, directory: Path) -> None:
        """Keep them in `directory`, which is made when it is needed."""
        self._directory = directory

    def write(self, attachment: Attachment) -> None:
        """Write a record, or write it anew."""
        document = attachment._asdict() | {"network": attachment.network.document(), "format": _FORMAT}
        path = self._path(attachment)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged = path.with_name(path.name + _UNFINISHED)
        staged.write_text(json.dumps(document))
        staged.replace(path)

    def remove(self, attachment: Attachment) -> None:
        """Remove a record that may not be there."""
        self._path(attachment).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what a crash left half written; while nobody writes."""
        for path in self._directory.glob(f"*{_UNFINISHED}"):
            path.unlink()

    def of(self, container: str) -> list[Attachment]:
        """Return a container's attachments."""
        return [one for one in self._read(f"-{container}-") if one.container == container]

    def __iter__(self) -> Iterator[Attachment]:
        """Return all of them that can be read; those of a power cut, which cannot, are removed."""
        return self._read("")

    def _read(self, part: str) -> Iterator[Attachment]:
        """Return those whose file's name has `part` in it."""
        try:
            names = sorted(name for name in os.listdir(self._directory) if part in name and name.endswith(_SUFFIX))
        except FileNotFoundError:
            return
        for name in names:
            path = self._directory / name
            try:
                yield _parse(path.read_bytes())
            except FileNotFoundError:  # gone meanwhile
                continue
            except (ValueError, KeyError, TypeError) as error:
                _log.warning("network.record_unreadable", file=str(path), error=str(error))
                path.unlink(missing_ok=True)

    def _path(self, attachment: Attachment) -> Path:
        return self._directory / f"{attachment.network.name}-{attachment.container}-{attachment.interface}{_SUFFIX}"


def _parse(data: bytes) -> Attachment:
    document = json.loads(data)
    if document.pop("format") != _FORMAT:
        raise ValueError("it is of another version")
    document["network"] = parse_network(json.dumps(document["network"]))
    document["in_process"] = tuple(document["in_process"])
    return Attachment(**document)
