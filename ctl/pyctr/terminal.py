"""This process's terminal: raw mode, its size, and the keys that detach."""

import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import click

from pyctr.errors import CommandError

DEFAULT_DETACH_KEYS: Final = "ctrl-p,ctrl-q"
_NAMED_KEYS: Final = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def parse_detach_keys(text: str) -> bytes:
    """Return the bytes of a key sequence such as "ctrl-p,ctrl-q" or "a,b". Raises click.BadParameter."""
    keys = bytearray()
    for part in filter(None, text.split(",")):
        name = part.lower().removeprefix("ctrl-") if part.lower().startswith("ctrl-") else ""
        if len(part) == 1 and part.isascii():
            keys.append(ord(part))
        elif len(name) == 1 and name.isascii() and name.isalpha():
            keys.append(ord(name) & 0x1F)
        elif name in _NAMED_KEYS:
            keys.append(_NAMED_KEYS[name])
        else:
            raise click.BadParameter(f"detach keys {text!r}: {part!r} is neither a character nor ctrl- and a letter")
    return bytes(keys)


class DetachKeys:
    """Finds the key sequence in what is typed; keys that only began it are passed on late."""

    def __init__(self, keys: bytes) -> None:
        """An empty sequence never detaches."""
        self._keys = keys
        self._matched = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Return what to pass on, and whether the sequence is complete."""
        if not self._keys:
            return data, False
        passed = bytearray()
        for byte in data:
            if byte == self._keys[self._matched]:
                self._matched += 1
                if self._matched == len(self._keys):
                    return bytes(passed), True
                continue
            passed += self._keys[: self._matched]
            self._matched = int(byte == self._keys[0])
            if not self._matched:
                passed.append(byte)
        return bytes(passed), False


def size() -> tuple[int, int]:
    """Return columns and rows of the terminal, (80, 24) if there is none."""
    for stream in (sys.stdout, sys.stdin, sys.stderr):
        try:
            columns, rows = os.get_terminal_size(stream.fileno())
            return columns, rows
        except (OSError, ValueError):
            continue
    return 80, 24


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """Put the terminal at `fd` into raw mode for a while; whatever happens, its settings come back."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSANOW)
        yield
    finally:
        with suppress(termios.error):  # it has gone
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def check(*, tty: bool, interactive: bool) -> None:
    """Refuse `-t` where stdin is not a terminal but would be passed on. Raises CommandError."""
    if tty and interactive and not sys.stdin.isatty():
        raise CommandError("the input device is not a TTY: leave out -t, or -i")
