"""As much of ELF as it takes to know what a program needs to start. Source: elf(5)."""

import os
import struct
import subprocess
from pathlib import Path
from typing import BinaryIO, Final

from pyctr.errors import CommandError

_MAGIC: Final = b"\x7fELF"
_PT_INTERP: Final = 3
_LIST_TIMEOUT: Final = 30.0  # seconds
_MAX_INTERPRETER: Final = 4096
# How the paths of dynamic linkers begin; only root can put something there.
_LINKERS: Final = ("/lib", "/usr/lib", "/usr/local/lib", "/nix/store/", "/gnu/store/")


def interpreter(path: Path) -> str | None:
    """Return what must be there to run the file at `path`: its dynamic linker, or a script's interpreter.

    None for a static program. Raises CommandError for a file that is not a program.
    """
    with path.open("rb") as file:
        head = file.read(64)
        if head.startswith(b"#!"):
            file.seek(2)
            words = file.readline(_MAX_INTERPRETER).decode(errors="replace").split()
            if not words:
                raise CommandError(f"{path}: its first line names no interpreter")
            return words[0]
        if not head.startswith(_MAGIC) or len(head) < 52:
            raise CommandError(f"{path} is neither an ELF program nor a script")
        try:
            return _requested(file, head)
        except (struct.error, ValueError, OSError) as error:  # it names places that are not there
            raise CommandError(f"{path} is a damaged ELF program: {error}") from None


def _requested(file: BinaryIO, head: bytes) -> str | None:
    """Return the dynamic linker that an ELF program asks for. Raises struct.error, ValueError and OSError."""
    wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
    if wide:
        (offset,) = struct.unpack_from(f"{order}Q", head, 32)
        size, count = struct.unpack_from(f"{order}HH", head, 54)
    else:
        (offset,) = struct.unpack_from(f"{order}I", head, 28)
        size, count = struct.unpack_from(f"{order}HH", head, 42)
    for number in range(count):
        file.seek(offset + number * size)
        header = file.read(size)
        (kind,) = struct.unpack_from(f"{order}I", header)
        if kind != _PT_INTERP:
            continue
        if wide:
            (start,), (length,) = (
                struct.unpack_from(f"{order}Q", header, 8),
                struct.unpack_from(f"{order}Q", header, 32),
            )
        else:
            (start,), (length,) = (
                struct.unpack_from(f"{order}I", header, 4),
                struct.unpack_from(f"{order}I", header, 16),
            )
        file.seek(start)
        name = file.read(min(length, _MAX_INTERPRETER)).rstrip(b"\0").decode()
        if not name.isprintable():
            raise ValueError(f"no linker is called {name!r}")
        return name
    return None


def is_elf(path: Path) -> bool:
    """Tell whether a file is in ELF format."""
    with path.open("rb") as file:
        return file.read(4) == _MAGIC


def libraries(path: Path, linker: str) -> list[str]:
    """Return the paths of the libraries that the dynamic linker would load for a program, without running it.

    Raises CommandError naming what is missing, and for a linker that is none of the machine's: the file names it, and
    who wrote the file may have written that too.
    """
    if not os.path.realpath(linker).startswith(_LINKERS):
        raise CommandError(f"{path}: {linker}, which would have to be run, is none of this machine's dynamic linkers")
    done = subprocess.run(
        [linker, "--list", str(path)], capture_output=True, text=True, timeout=_LIST_TIMEOUT, check=False
    )
    if done.returncode != 0:
        raise CommandError(f"{path}: {linker} --list: {(done.stderr or done.stdout).strip()}")
    found = []
    for line in done.stdout.splitlines():
        name, arrow, target = line.strip().partition(" => ")
        if target.startswith("not found"):
            raise CommandError(f"{path} needs {name}, which is not on this machine")
        place = (target if arrow else name).split(" (")[0].strip()
        if place.startswith("/"):
            found.append(place)
    return found
