"""What a directory tree takes on disk."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from pyctrd.core.snapshots import Usage

_BLOCK: Final = 512  # bytes; st_blocks counts in these whatever the file system's own are. Source: stat(2).


def measure(root: Path) -> Usage:
    """Return the allocated bytes and the inodes below `root`, itself included; a hard link counts once.

    What vanishes meanwhile, or cannot be reached, does not count. Other file systems are not entered.
    """
    size, seen = 0, set[int]()
    with suppress(OSError):
        top = root.lstat()
        pending, device = [os.fspath(root)], top.st_dev
        seen.add(top.st_ino)
        size = top.st_blocks * _BLOCK
        while pending:
            with suppress(OSError), os.scandir(pending.pop()) as entries:
                for entry in entries:
                    with suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        if status.st_dev != device or status.st_ino in seen:
                            continue
                        seen.add(status.st_ino)
                        size += status.st_blocks * _BLOCK
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(entry.path)
    return Usage(size, len(seen))
