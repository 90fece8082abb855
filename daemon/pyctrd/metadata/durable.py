"""Files are claims about disk: write under a temporary name, fsync, rename, fsync the directory."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pyctr_wire.errors import ResourceExhausted

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def naming_full_disk(what: str) -> Iterator[None]:
    """Raise ResourceExhausted, naming `what`, for an OSError in the block that means a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise ResourceExhausted(f"{what}: {error.strerror}") from error


def fsync(path: Path) -> None:
    """Wait until the file's bytes, or the directory's entries, are on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name to write a file under; on leaving the block it becomes `path`, durable and 0600, in one step.

    An exception in the block leaves `path` as it was.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    yield temporary
    temporary.chmod(0o600)
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)
