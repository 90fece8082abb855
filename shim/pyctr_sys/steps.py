"""System calls prepared before a fork, to be made after it, or by another process.

A forked child pays for each page that it writes to, and running Python writes to many. What a child is to do is
therefore worked out by its parent, down to numbers and buffers, and the child runs through a list.
"""

import errno
import os
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pyctr_sys.calls import NUMBERS, address, ffi, libc

STEP_BYTES: Final = 48
"""The size of a step in a table: six words, number and arguments."""
_WORDS: Final = 6
_WORD: Final = 8
_END: Final = -1
# What fills up a step's words, and an object's last one, by how much is there. Made once, as all below is Python that
# each start of a container waits for.
_NO_ARGUMENTS: Final = tuple((0,) * (_WORDS - 1 - count) for count in range(_WORDS))
_NO_BYTES: Final = tuple(bytes(-count % _WORD) for count in range(_WORD))


class StepFailed(OSError):
    """A step's system call failed; `str` begins with what the step was for."""


class Steps:
    """A list of system calls; each belongs to something that a person would name."""

    def __init__(self) -> None:
        """Start empty."""
        self._purposes: list[str] = []
        self._words: list[int] = []  # of each step its number and five arguments, as C's signed words
        self._buffers: dict[int, Any] = {}  # C objects by their address
        self._pointers: list[tuple[int, int, int]] = []  # of a buffer, at an offset, to a buffer

    def call(self, purpose: str, name: str, *arguments: int) -> None:
        """Add a call by its name in section 2 of the manual, with at most five arguments."""
        self._purposes.append(purpose)
        self._words += (NUMBERS[name], *arguments, *_NO_ARGUMENTS[len(arguments)])

    def buffer(self, kind: str, value: Any, pointers: Mapping[int, int] | None = None) -> int:
        """Return the address of a new C object that lives as long as the list.

        `pointers` are the addresses of others of its buffers that it holds, by their offsets in it.
        """
        made = self.keep(ffi.new(kind, value))
        if pointers:
            self._pointers += [(made, offset, target) for offset, target in pointers.items()]
        return made

    def keep(self, made: Any) -> int:
        """Return the address of a C object that shall live as long as the list."""
        where = address(made)
        self._buffers[where] = made
        return where

    def strings(self, texts: Sequence[str]) -> int:
        """Return the address of a C array of these strings, ended by a null pointer."""
        made = [self.buffer("char[]", os.fsencode(text)) for text in texts]
        return self.buffer("uintptr_t[]", [*made, 0], {place * _WORD: one for place, one in enumerate(made)})

    def add(self, others: "Steps") -> None:
        """Append the calls of another list."""
        self._purposes += others._purposes  # noqa: SLF001 - our own kind
        self._words += others._words  # noqa: SLF001
        self._buffers |= others._buffers  # noqa: SLF001
        self._pointers += others._pointers  # noqa: SLF001

    def table(self) -> Any:
        """Return the calls as a C array, six words each: number and arguments. It lives as long as the list."""
        made = ffi.new("intptr_t[]", self._words)
        self.keep(made)
        return made

    def image(self, base: int) -> bytes:
        """Return the calls as a table for another process, which a word of ones ends, and all buffers behind it.

        It is meant for the address `base` there.
        """
        data = bytearray(len(self._purposes) * STEP_BYTES + STEP_BYTES)
        there: dict[int, int] = {}
        for where, made in self._buffers.items():
            there[where] = base + len(data)
            data += ffi.buffer(made)
            data += _NO_BYTES[len(data) % _WORD]
        for holder, offset, target in self._pointers:
            struct.pack_into("=Q", data, there[holder] - base + offset, there[target])
        words = map(there.get, self._words, self._words)  # themselves where they are no addresses
        struct.pack_into(f"={len(self._words) + 1}q", data, 0, *words, _END)
        return bytes(data)

    def purpose(self, index: int) -> str:
        """Return what a call is for."""
        return self._purposes[index]

    def purposes(self) -> tuple[str, ...]:
        """Return what each call is for."""
        return tuple(self._purposes)

    def run(self) -> None:
        """Make the calls, again if interrupted. Raises StepFailed at the first that fails."""
        syscall, words = libc.syscall, self._words
        for index, purpose in enumerate(self._purposes):
            step = words[index * _WORDS : (index + 1) * _WORDS]
            while syscall(*step, 0) < 0:
                reason = ffi.errno
                if reason == errno.EINTR:
                    continue
                raise StepFailed(reason, f"{purpose}: {os.strerror(reason)}")
