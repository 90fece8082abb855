"""Reading the small files of a cgroup directory. What is not there, or goes away meanwhile, is empty."""

import os
from typing import Final

UNLIMITED: Final = (1 << 64) - 1
"""The number that stands for "max"."""
_SMALL: Final = 4096


def read(path: str) -> str:
    """Return a file's text, "" if it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    try:
        chunks = [os.read(fd, _SMALL)]
        while len(chunks[-1]) == _SMALL:
            chunks.append(os.read(fd, _SMALL))
    except OSError:  # ENODEV: the cgroup went away; EOPNOTSUPP: not accounted here
        return ""
    finally:
        os.close(fd)
    return b"".join(chunks).decode()


def number(path: str) -> int:
    """Return a file's number; "max" is the largest unsigned one, a missing file 0."""
    text = read(path).strip()
    if text == "max":
        return UNLIMITED
    return int(text) if text.lstrip("-").isdigit() else 0


def device_values(path: str) -> dict[str, dict[str, int]]:
    """Return a file of `device name=value name=value` lines, as io.stat is, by device."""
    found = {}
    for line in read(path).splitlines():
        words = [word.partition("=") for word in line.split()]
        # Some kernels before 6.6 put devices in front of which there is nothing.
        *_, device = "", *(name for name, separator, _ in words if not separator)
        found[device] = {name: int(value) for name, _, value in words if value.isdigit()}
    return found


def fields(path: str) -> dict[str, int]:
    """Return a flat-keyed file (`name value` lines) as a dictionary."""
    found = {}
    for line in read(path).splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            found[name] = int(value)
    return found
