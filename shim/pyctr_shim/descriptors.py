"""This process's open descriptors, by number."""

import os
from collections.abc import Set
from contextlib import suppress


def opened() -> set[int]:
    """Return those that are open."""
    return {fd for fd in map(int, os.listdir("/proc/self/fd")) if _is_open(fd)}


def close_all_but(kept: Set[int]) -> None:
    """Close all others. Objects that own one of them must be gone, or they would close its successor."""
    for fd in opened() - kept:
        with suppress(OSError):
            os.close(fd)


def _is_open(fd: int) -> bool:
    """False of the one that took the listing."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
