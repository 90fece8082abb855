"""Programs of a few instructions, put together in memory. Source: elf(5)."""

import struct
from typing import Final

CODE: Final = 0x400000
"""Where the file is mapped, headers and all."""
MEMORY: Final = 0x600000
"""Where the program's memory begins."""

_HEADER_BYTES: Final = 64
_SEGMENT_BYTES: Final = 56
_EXECUTABLE, _X86_64, _VERSION = 2, 62, 1
_LOAD, _STACK = 1, 0x6474E551  # without a word on the stack, kernels before 5.8 make all memory executable
_READ_EXECUTE, _READ_WRITE = 5, 6
_PAGE: Final = 0x1000


def headers_size(memory_size: int = 0) -> int:
    """Return the size of all headers, and so what lies before a program's body."""
    return _HEADER_BYTES + _SEGMENT_BYTES * (3 if memory_size else 2)


def program(body: bytes, entry: int = 0, memory_size: int = 0) -> bytes:
    """Return an executable for x86-64 whose code and constants are `body`, and which begins `entry` bytes into that.

    It lies at CODE plus the size of the headers; `memory_size` bytes of memory, zeros at first, at MEMORY.
    """
    before = headers_size(memory_size)
    size = before + len(body)
    segments = struct.pack("<IIQQQQQQ", _LOAD, _READ_EXECUTE, 0, CODE, CODE, size, size, _PAGE)
    segments += struct.pack("<IIQQQQQQ", _STACK, _READ_WRITE, 0, 0, 0, 0, 0, 0x10)
    if memory_size:
        segments += struct.pack("<IIQQQQQQ", _LOAD, _READ_WRITE, 0, MEMORY, MEMORY, 0, memory_size, _PAGE)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    fields = (_EXECUTABLE, _X86_64, _VERSION, CODE + before + entry, _HEADER_BYTES, 0, 0, _HEADER_BYTES, _SEGMENT_BYTES)
    header = ident + struct.pack("<HHIQQQIHHHHHH", *fields, len(segments) // _SEGMENT_BYTES, 0, 0, 0)
    return header + segments + body
