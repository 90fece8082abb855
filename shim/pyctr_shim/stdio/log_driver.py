"""Container logs, written by the shim so that no daemon's absence can stall or lose them.

    json-file:///PATH?max-size=10m&max-file=3   docker's JSON lines, rotated
    cri:///PATH       kubelet's lines: time, stream, P(artial) or F(ull), text; rotated by kubelet
                      with ?below=DIRECTORY no link in that directory is followed on the way to the file
    file:///PATH      the bytes as they are; both streams in one file
    journald:         one entry a line; journald.py

A line longer than 16 KiB is written in parts. When the disk refuses, the container goes on: lines wait in a
bounded ring, then the oldest are dropped and counted, and a marker line says how many once writing works again.
Source: docker's json-file driver; Kubernetes' CRI log format.
"""

import errno
import os
import stat
import time
from collections import deque
from collections.abc import Callable
from json.encoder import encode_basestring as quote
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import SplitResult, parse_qsl, unquote

from pyctr_shim import journal
from pyctr_shim.loop import Loop, Timer
from pyctr_shim.stdio.relay import Sink
from pyctr_sys.openat2 import Resolve, make_directories, openat2
from pyctr_wire.errors import InvalidArgument, UnknownError

MAX_LINE: Final = 16 << 10
_RING: Final = 256 << 10
_RETRY: Final = 1.0
# Of a FIFO, nobody waits for a reader, or for one that reads.
_OPEN_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_UNITS: Final = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

Format = Callable[[str, list[tuple[bytes, bool]]], bytes]
"""A format turns a stream's name and its lines (text, whether its newline was there) into a file's bytes."""


class LineCutter:
    """Cuts a byte stream into lines, and lines longer than MAX_LINE into parts."""

    def __init__(self) -> None:
        """Start at the beginning of a line."""
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[bytes, bool]]:
        """Return the lines that `data` completes, as (text, whether the line ends there)."""
        texts = (self._rest + data).split(b"\n")
        self._rest = texts.pop()
        lines: list[tuple[bytes, bool]] = []
        for text in texts:
            start = 0
            if len(text) > MAX_LINE:
                start = self._cut(text, lines)
            lines.append((text[start:], True))
        if len(self._rest) >= MAX_LINE:
            self._rest = self._rest[self._cut(self._rest, lines) :]
        return lines

    def end(self) -> list[tuple[bytes, bool]]:
        """Return what stands behind the last newline, if anything does."""
        rest, self._rest = self._rest, b""
        return [(rest, False)] if rest else []

    @staticmethod
    def _cut(text: bytes, lines: list[tuple[bytes, bool]]) -> int:
        """Append full parts of `text` to `lines` and return where the rest begins; no UTF-8 character is cut."""
        start = 0
        while len(text) - start > MAX_LINE:
            end = start + MAX_LINE
            for step_back in range(4):
                if text[end - step_back] & 0xC0 != 0x80:
                    end -= step_back
                    break
            lines.append((text[start:end], False))
            start = end
        return start


def format_json(stream: str, lines: list[tuple[bytes, bool]]) -> bytes:
    """Docker's json-file; what is not UTF-8 becomes U+FFFD, as docker has it."""
    tail = f',"stream":"{stream}","time":"{_now()}"}}\n'
    return "".join(
        '{"log":' + quote(text.decode(errors="replace") + "\n" * ended) + tail for text, ended in lines
    ).encode()


def format_cri(stream: str, lines: list[tuple[bytes, bool]]) -> bytes:
    """Kubelet's format."""
    full = f"{_now()} {stream} F ".encode()
    partial = f"{_now()} {stream} P ".encode()
    return b"".join((full if ended else partial) + text + b"\n" for text, ended in lines)


def format_raw(_stream: str, lines: list[tuple[bytes, bool]]) -> bytes:
    """The bytes as they came."""
    return b"".join(text + b"\n" if ended else text for text, ended in lines)


class Log(Protocol):
    """A log that several streams write to."""

    def stream(self, name: str) -> Sink:
        """Return the sink of one stream; the log closes with its last sink."""
        ...

    def reopen(self) -> None:
        """Somebody else has renamed the file: write to a new one from now on."""
        ...

    def close(self) -> None:
        """Write what waits, if the disk lets us, and close."""
        ...


class _Lines(Protocol):
    """Where a stream's lines go."""

    def append(self, stream: str, lines: list[tuple[bytes, bool]], /) -> None: ...
    def stream_ended(self) -> None: ...


class LogStream:
    """The sink of one stream: it cuts it into a log's lines."""

    fd: int | None = None

    def __init__(self, log: _Lines, name: str) -> None:
        """Write lines of the stream `name` to `log`."""
        self._log = log
        self._name = name
        self._cutter = LineCutter()

    def write(self, data: bytes) -> int:
        """Take all of it."""
        self._log.append(self._name, self._cutter.feed(data))
        return len(data)

    def end(self) -> None:
        """Write the last line, though it has no newline."""
        self._log.append(self._name, self._cutter.end())
        self._log.stream_ended()


class LogFile:
    """A log file: its size, its rotation, and what waits while it cannot be written."""

    def __init__(self, loop: Loop, path: Path, form: Format, *, max_size: int, max_file: int, below: str = "") -> None:
        """Open `path` for appending; a `max_size` of 0 means no rotation.

        Rotation keeps `max_file` files: PATH, PATH.1, …; raises UnknownError if the file cannot be opened, and if a
        link leads to it from the directory `below`.
        """
        self._loop = loop
        self._path = path
        self._below = below
        self._format = form
        self._max_size = max_size
        self._max_file = max_file
        self._fd: int | None = None
        self._size = 0
        self._ring: deque[bytes] = deque()
        self._ring_size = 0
        self._torn = False
        self._dropped = 0
        self._reason = ""
        self._retry: Timer | None = None
        self._streams = 0
        try:
            self._open()
        except OSError as error:
            raise UnknownError(f"log file {path}: {error.strerror}") from error

    def stream(self, name: str) -> Sink:
        """Return the sink of one stream."""
        self._streams += 1
        return LogStream(self, name)

    def append(self, stream: str, lines: list[tuple[bytes, bool]]) -> None:
        """Write lines, or keep them until writing works again."""
        if not lines:
            return
        self._keep(self._format(stream, lines))
        if self._retry is None:
            self._write_ring()

    def stream_ended(self) -> None:
        """One of the streams has ended."""
        self._streams -= 1
        if self._streams == 0:
            self.close()

    def reopen(self) -> None:
        """Write to a new file at the path; if that fails, to the old one."""
        old = self._fd
        try:
            self._open()
        except OSError as error:
            self._fd = old
            journal.log("log not reopened", path=str(self._path), error=str(error))
            return
        if old is not None:
            os.close(old)

    def close(self) -> None:
        """Write what waits, if the disk lets us, and close."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._ring:
            self._write_ring()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
            journal.log("log lines lost", path=str(self._path), error=self._reason)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> None:
        if self._below:
            self._fd = _open_below(Path(self._below), self._path.relative_to(self._below))
        else:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(self._path, _OPEN_FLAGS, 0o640)
        self._size = os.fstat(self._fd).st_size

    def _keep(self, data: bytes) -> None:
        """Put bytes behind what waits; drop the oldest whole entries beyond the ring's size."""
        self._ring.append(data)
        self._ring_size += len(data)
        # The rest of a line that is half written stays in front: the file would have a torn line for ever.
        victim = 1 if self._torn else 0
        while self._ring_size > _RING and len(self._ring) > 1 + victim:
            dropped = self._ring[victim]
            del self._ring[victim]
            self._ring_size -= len(dropped)
            self._dropped += dropped.count(b"\n")

    def _write_ring(self) -> None:
        try:
            if self._fd is None:
                self._open()
            while self._ring:
                if not self._torn:
                    self._write_marker()
                data = self._ring[0]
                if not self._torn:
                    self._rotate_before(data)
                wanted = self._fitting(data)
                written = os.write(self._open_fd(), data[:wanted])
                self._size += written
                self._ring_size -= written
                self._ring.popleft()
                if written < len(data):
                    self._put_back(data[written:], torn=written < wanted and not data[:written].endswith(b"\n"))
                else:
                    self._torn = False
        except OSError as error:
            self._failed(error)

    def _put_back(self, rest: bytes, *, torn: bool) -> None:
        """Let the rest of an entry, whose bytes count already, wait in front; of a torn line, by itself."""
        self._torn = torn
        end = rest.find(b"\n") + 1 if torn else 0
        if rest[end:]:
            self._ring.appendleft(rest[end:])
        if end:
            self._ring.appendleft(rest[:end])

    def _fitting(self, data: bytes) -> int:
        """Return how much of `data` goes into this file before the next rotation: whole lines, one at least."""
        room = self._max_size - self._size
        if not self._max_size or len(data) <= room:
            return len(data)
        return data.rfind(b"\n", 0, max(room, 0)) + 1 or _first_line(data)

    def _write_marker(self) -> None:
        if self._dropped:
            text = f"[pyctr: {self._dropped} log lines dropped: {self._reason}]".encode()
            data = self._format("stderr", [(text, True)])
            self._rotate_before(data)
            written = os.write(self._open_fd(), data)
            self._size += written
            self._dropped = 0
            if written < len(data):
                self._ring_size += len(data) - written
                self._put_back(data[written:], torn=True)

    def _rotate_before(self, data: bytes) -> None:
        """Rotate if the first line of `data` does not fit: PATH.1 becomes PATH.2 and so on, PATH becomes PATH.1.

        With one file the old lines go. A line that fits into no file has one to itself.
        """
        if not self._max_size or not self._size or self._size + _first_line(data) <= self._max_size:
            return
        if self._max_file < 2:
            os.unlink(self._path)  # not truncated: who follows it could not tell, and would wait for what is past
        else:
            for number in range(self._free_number() - 1, -1, -1):
                os.replace(self._numbered(number), self._numbered(number + 1))
        old = self._open_fd()
        self._open()
        os.close(old)

    def _free_number(self) -> int:
        """Return the first number without a file, or the last one: nobody looks for thousands that may be wanted."""
        for number in range(1, self._max_file - 1):
            if not self._numbered(number).exists():
                return number
        return self._max_file - 1

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path

    def _failed(self, error: OSError) -> None:
        """Try again in a second, with the file opened anew: its directory may come back under another inode."""
        if not self._reason:
            journal.log("log write failed", path=str(self._path), error=str(error))
        self._reason = error.strerror or str(error)
        if self._fd is not None and not self._torn:
            os.close(self._fd)
            self._fd = None
        self._retry = self._loop.call_later(_RETRY, self._again)

    def _again(self) -> None:
        self._retry = None
        self._write_ring()
        if self._retry is None:
            self._reason = ""

    def _open_fd(self) -> int:
        assert self._fd is not None
        return self._fd


def _open_below(directory: Path, name: Path) -> int:
    """Open a log in a directory that others may write to as well: their links lead nowhere."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    root_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(make_directories(root_fd, str(name.parent), 0o700))
        resolve = Resolve.BENEATH | Resolve.NO_SYMLINKS
        fd = openat2(root_fd, str(name), _OPEN_FLAGS, resolve, 0o640)
    finally:
        os.close(root_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a file", f"{directory}/{name}")
    return fd


def _first_line(data: bytes) -> int:
    """Return the length of the first line, its newline included."""
    return data.find(b"\n") + 1 or len(data)


def open_file_log(loop: Loop, uri: SplitResult) -> LogFile:
    """Open the log that a `json-file`, `cri` or `file` URI names.

    Raises InvalidArgument for an option or value that is not known, UnknownError if the file cannot be opened.
    """
    form, options = {
        "json-file": (format_json, {"max-size": "0", "max-file": "1"}),
        "cri": (format_cri, {"below": ""}),
        "file": (format_raw, {"maxsize": "0"}),
    }[uri.scheme]
    path = Path(unquote(uri.path))
    if uri.netloc or not path.is_absolute():
        raise InvalidArgument(f"log {uri.geturl()}: the path must be absolute")
    values: dict[str, str] = dict(options)
    for key, value in parse_qsl(uri.query, keep_blank_values=True):
        if key not in options:
            raise InvalidArgument(f"log {uri.geturl()}: unknown option {key}")
        values[key] = value
    below = values.get("below", "")
    if below and (".." in path.parts or not path.is_relative_to(below) or path == Path(below)):
        raise InvalidArgument(f"log {uri.geturl()}: the path must be below {below}")
    max_size = parse_size(values.get("max-size", values.get("maxsize", "0")))
    # A raw file with a limit keeps one predecessor: its last lines must not vanish with the rotation.
    max_file = values.get("max-file", "2")
    if not max_file.isdecimal() or int(max_file) < 1:
        raise InvalidArgument(f"log option max-file={max_file}")
    return LogFile(loop, path, form, max_size=max_size, max_file=int(max_file), below=below)


def parse_size(text: str) -> int:
    """Return the bytes that docker's `10m`, `64k` or `1g` stand for; -1 and 0 mean no limit."""
    if text == "-1":
        return 0
    digits = text.rstrip("bBkKmMgG")
    unit = text[len(digits) :].lower()
    unit = unit.removesuffix("b") or unit
    if not digits.isdecimal() or unit not in _UNITS:
        raise InvalidArgument(f"log size {text!r}")
    return int(digits) * _UNITS[unit]


def _now() -> str:
    """Return the time of day as RFC 3339 with nanoseconds, in UTC."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09d}Z"
