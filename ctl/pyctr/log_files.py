"""Log files that a shim writes and rotates: PATH is the newest, PATH.1 the one before, and so on."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pyctr.times import parse_stamp

_BLOCK: Final = 1 << 16
_POLL: Final = 0.05  # seconds between looks at a file that has no more
_ASK_EVERY: Final = 20  # looks between questions whether the container has ended


@dataclass(frozen=True, slots=True)
class Entry:
    """What was written at once: a line, or a part of one without its newline."""

    stamp: str
    stream: str
    text: str

    @property
    def time(self) -> datetime:
        """When it was written."""
        return parse_stamp(self.stamp)


Parser = Callable[[bytes], Entry | None]


def parse_json_line(line: bytes) -> Entry | None:
    """Return the entry in a line of a json-file log, None if the line is damaged."""
    try:
        fields = json.loads(line)
        entry = Entry(fields["time"], fields["stream"], fields["log"])
        parse_stamp(entry.stamp)
    except (ValueError, KeyError, TypeError):
        return None
    return entry


def parse_cri_line(line: bytes) -> Entry | None:
    """Return the entry in a line of a CRI log, None if the line is damaged."""
    parts = line.decode(errors="surrogateescape").split(" ", 3)
    if len(parts) != 4:
        return None
    stamp, stream, tags, text = parts
    try:
        parse_stamp(stamp)
    except ValueError:
        return None
    return Entry(stamp, stream, text.removesuffix("\n") if tags.split(":")[0] == "P" else text)


READERS: Final[Mapping[str, Parser]] = {"json-file": parse_json_line, "cri": parse_cri_line}


class LogReader:
    """Reads a log from its beginning or its last lines, then what is added, across rotations."""

    def __init__(self, path: Path, parse: Parser) -> None:
        """Opens the oldest file that is there; a log that nobody has written yet is empty."""
        self._path = path
        self._parse = parse
        self._file: BufferedReader | None = None
        self._partial = b""

    def __enter__(self) -> Self:
        """Return this reader."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _rotated(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path

    def seek(self, lines: int | None) -> None:
        """Go to where the last `lines` lines begin, to the oldest that there is for None."""
        number = 0
        left = lines
        while True:
            try:
                file = self._rotated(number).open("rb")
            except FileNotFoundError:
                return
            if self._file is not None:
                self._file.close()
            self._file = file
            if left is not None:
                left -= _seek_lines(file, left)
                if left <= 0:
                    return
            number += 1

    def read(self) -> Iterator[Entry]:
        """Yield what is there now, up to the end of the newest file."""
        while True:
            if self._file is None:
                try:
                    self._file = self._path.open("rb")
                except FileNotFoundError:
                    return
            yield from self._rest()
            following = self._next()
            if following is None:
                return
            yield from self._rest()  # written between our look and the rotation
            self._file.close()
            self._file, self._partial = following, b""

    def _rest(self) -> Iterator[Entry]:
        assert self._file is not None
        while line := self._file.readline():
            line = self._partial + line
            self._partial = b""
            if not line.endswith(b"\n"):
                self._partial = line
                return
            entry = self._parse(line)
            if entry is not None:
                yield entry

    def _next(self) -> BufferedReader | None:
        """Return the file after the one that is open, None if that is the newest."""
        assert self._file is not None
        ours = _identity(self._file)
        number = 0
        following = None
        while True:
            try:
                file = self._rotated(number).open("rb")
            except FileNotFoundError:
                return following  # ours was rotated away: go on with the oldest that is left
            if _identity(file) == ours:
                file.close()
                return following
            if following is not None:
                following.close()
            following = file
            number += 1

    def follow(self, ended: Callable[[], bool]) -> Iterator[Entry]:
        """Yield what is added until `ended` says that nothing will be."""
        looks = 0
        while True:
            over = looks % _ASK_EVERY == 0 and ended()
            looks += 1
            for entry in self.read():
                yield entry
                looks = 1
            if over:
                return
            time.sleep(_POLL)


def _identity(file: BufferedReader) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino


def _seek_lines(file: BufferedReader, lines: int) -> int:
    """Go to where the last `lines` lines of a file begin; return how many there are, at most `lines`."""
    position = file.seek(0, os.SEEK_END)
    if lines == 0:
        return 0
    found = 0
    at_end = True
    while position > 0:
        start = max(0, position - _BLOCK)
        file.seek(start)
        block = file.read(position - start)
        end = len(block)
        if at_end and block.endswith(b"\n"):
            end -= 1
        at_end = False
        while (newline := block.rfind(b"\n", 0, end)) >= 0:
            found += 1
            if found == lines:
                file.seek(start + newline + 1)
                return found
            end = newline
        position = start
    file.seek(0)
    return found + (0 if at_end else 1)
