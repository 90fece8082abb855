"""What attackers bring along: a process that swaps names, programs without a library, a look at what came of it."""

import contextlib
import ctypes
import mmap
import os
import platform
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL
from typing import Any, Final

import pytest

from pyctr_sys.process import set_parent_death_signal

# How often a container is started under a racer's eyes: enough to hit what is wide open, and enough for all else.
STARTS: Final = [15, pytest.param(1000, marks=[pytest.mark.full, pytest.mark.timeout(900)])]
X86_ONLY: Final = pytest.mark.skipif(platform.machine() != "x86_64", reason="the attacking program is machine code")
_EXCHANGE: Final = 2
_HERE: Final = -100
_BASE: Final = 0x400000


@contextlib.contextmanager
def exchanging(one: Path, other: Path) -> Iterator[None]:
    """Exchange two names over and over, each time in one step, while the body runs; fail if it did not come to that.

    The racer is a process: the runtime forks, and only does so from a process of one thread.
    """
    count = mmap.mmap(-1, 8)
    exchange = ctypes.CDLL(None, use_errno=True).renameat2
    names = (_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
    pid = os.fork()
    if pid == 0:
        try:
            set_parent_death_signal(SIGKILL)
            done = 0
            while True:
                done += exchange(*names) == 0
                count[:] = struct.pack("=q", done)
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(pid, SIGKILL)
        os.waitpid(pid, 0)
        (swaps,) = struct.unpack("=q", count[:])
        count.close()
    assert swaps > 0, f"{one} and {other} were never exchanged"


def snapshot(directory: Path) -> dict[str, tuple[Any, ...]]:
    """Return all that a directory of the host's holds, itself included, in a form that can be compared."""
    mounted = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    found = {}
    for path in (directory, *sorted(directory.rglob("*"))):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        owner = (status.st_mode, status.st_uid, status.st_gid)
        link = os.readlink(path) if path.is_symlink() else ""
        found[str(path)] = (*owner, status.st_rdev, content, link, str(path) in mounted)
    return found


def program(code: bytes) -> bytes:
    """Return an executable of x86-64 that is this code and nothing else, at 0x400078, with a page to write to.

    Source: elf(5).
    """
    size = 64 + 56 + len(code)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", 2, 62, 1, _BASE + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, 7, 0, _BASE, _BASE, size, size + 4096, 4096)
    return header + segment + code


def loader(shell: str, script: str) -> bytes:
    """Return a dynamic linker that keeps /proc/self/exe open as fd 9 and becomes `shell script`.

    The kernel runs it in the place of the real one for whatever is executed dynamically linked, be it the host's.
    """
    # Code, then the data that it names by its address.
    data_at = _BASE + 120 + 100
    texts = [b"/proc/self/exe\0", os.fsencode(shell) + b"\0", os.fsencode(script) + b"\0"]
    at = [data_at + sum(map(len, texts[:number])) for number in range(3)]
    vector_at = (data_at + sum(map(len, texts)) + 7) & ~7
    code = b"".join(
        [
            _load(0, 2), _load(7, at[0]), _load(6, 0o10000000), b"\x0f\x05",  # open(exe, O_PATH)
            b"\x48\x89\xc7", _load(6, 9), _load(0, 33), b"\x0f\x05",  # dup2(that, 9)
            _load(0, 59), _load(7, at[1]), _load(6, vector_at), _load(2, 0), b"\x0f\x05",  # execve(shell, vector, 0)
            _load(7, 99), _load(0, 60), b"\x0f\x05",  # exit(99)
        ]
    )  # fmt: skip
    assert len(code) <= 100
    data = b"".join(texts)
    vector = struct.pack("<QQQ", at[1], at[2], 0)
    return program(code.ljust(100, b"\x90") + data.ljust(vector_at - data_at, b"\0") + vector)


def _load(register: int, value: int) -> bytes:
    """Return `mov register, value` for rax (0), rdx (2), rsi (6) or rdi (7), which all fit 32 bits."""
    return bytes([0xB8 + register]) + struct.pack("<I", value)


def socketcall(family: int) -> bytes:
    """Return a program that asks for a socket as programs of 32 bits do: it ends with the errno, 0 if it got one."""
    # Three arguments of socket(2), whose address socketcall(2) gets.
    arguments_at = _BASE + 120 + 40
    code = b"".join(
        [
            b"\xb8\x66\0\0\0", b"\xbb\x01\0\0\0", b"\xb9" + struct.pack("<I", arguments_at), b"\xcd\x80",
            b"\xf7\xd8",  # neg eax: the errno, or less than nothing
            b"\x31\xff", b"\x85\xc0", b"\x0f\x4f\xf8",  # edi = eax if it is more than 0, else 0
            b"\xb8\x3c\0\0\0", b"\x0f\x05",  # exit(edi), of 64 bits again
        ]
    )  # fmt: skip
    assert len(code) <= 40
    return program(code.ljust(40, b"\x90") + struct.pack("<III", family, 5, 0))


def private_interpreter(directory: Path) -> Path:
    """Return an interpreter like ours that may be overwritten: a copy, in a virtual environment like ours."""
    environment = Path(sys.prefix)
    (directory / "bin").mkdir(parents=True)
    shutil.copy(os.path.realpath(sys.executable), directory / "bin/python")
    if sys.prefix == sys.base_prefix:  # ours is in none, and has the packages of the machine
        settings = f"home = {environment / 'bin'}\ninclude-system-site-packages = true\n"
        (directory / "pyvenv.cfg").write_text(settings)
    else:
        shutil.copy(environment / "pyvenv.cfg", directory)
        (directory / "lib").symlink_to(environment / "lib")
    return directory / "bin/python"


def elf_interpreter(path: Path) -> str:
    """Return which dynamic linker a program names. Source: elf(5), PT_INTERP."""
    data = path.read_bytes()
    table, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    for number in range(count):
        kind, _flags, offset, _va, _pa, length = struct.unpack_from("<IIQQQQ", data, table + number * size)
        if kind == 3:
            return data[offset : offset + length].rstrip(b"\0").decode()
    raise AssertionError(f"{path} is statically linked")
