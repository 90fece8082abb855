"""System calls prepared before a fork, to be made after it.

A forked child pays for each page that it writes to, and running Python writes to many. What a child is to do is
therefore worked out by its parent, down to numbers and buffers, and the child runs through a list.
"""

import errno
import os
from collections.abc import Sequence
from typing import Any, Final

from pyctr_sys.calls import NUMBERS, address, ffi, libc

_MASK: Final = (1 << 64) - 1


class StepFailed(OSError):
    """A step's system call failed; `str` begins with what the step was for."""


class Steps:
    """A list of system calls; each belongs to something that a person would name."""

    def __init__(self) -> None:
        """Start empty."""
        self._steps: list[tuple[str, int, int, int, int, int, int]] = []
        self._buffers: list[Any] = []

    def call(self, purpose: str, name: str, *arguments: int) -> None:
        """Add a call by its name in section 2 of the manual, with at most five arguments."""
        words = [argument & _MASK for argument in arguments]
        words += [0] * (5 - len(words))
        first, second, third, fourth, fifth = words
        self._steps.append((purpose, NUMBERS[name], first, second, third, fourth, fifth))

    def buffer(self, kind: str, value: Any) -> int:
        """Return the address of a new C object that lives as long as the list."""
        return self.keep(ffi.new(kind, value))

    def keep(self, made: Any) -> int:
        """Return the address of a C object that shall live as long as the list."""
        self._buffers.append(made)
        return address(made)

    def strings(self, texts: Sequence[str]) -> int:
        """Return the address of a C array of these strings, ended by a null pointer."""
        made = [ffi.new("char[]", os.fsencode(text)) for text in texts]
        self._buffers += made
        return self.buffer("char *[]", [*made, ffi.NULL])

    def add(self, others: "Steps") -> None:
        """Append the calls of another list."""
        self._steps += others._steps  # noqa: SLF001 - our own kind
        self._buffers += others._buffers  # noqa: SLF001

    def table(self) -> Any:
        """Return the calls as a C array, six words each: number and arguments. It lives as long as the list."""
        words = [word for step in self._steps for word in step[1:]]
        made = ffi.new("uintptr_t[]", words)
        self._buffers.append(made)
        return made

    def purpose(self, index: int) -> str:
        """Return what a call is for."""
        return self._steps[index][0]

    def run(self) -> None:
        """Make the calls, again if interrupted. Raises StepFailed at the first that fails."""
        syscall = libc.syscall
        for purpose, number, first, second, third, fourth, fifth in self._steps:
            while syscall(number, first, second, third, fourth, fifth, 0) < 0:
                reason = ffi.errno
                if reason == errno.EINTR:
                    continue
                raise StepFailed(reason, f"{purpose}: {os.strerror(reason)}")
