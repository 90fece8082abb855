"""Files that a command writes: whole, or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from pyctr.errors import CommandError


@contextmanager
def written(path: str) -> Iterator[IO[bytes]]:
    """Yield a file that takes the place of `path` once all is in it; what is no regular file is written to directly.

    Raises CommandError if there can be no such file, or no more of it.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            with open(path, "wb") as file:
                yield file
            return
        target = os.path.realpath(path)  # a link stays a link
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(target), prefix=".pyctr-", delete=False) as file:
            try:
                yield file
                file.flush()
                os.fchmod(file.fileno(), _mode(target))
                os.rename(file.name, target)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from None


def _mode(path: str) -> int:
    """Return the mode that a file at `path` has, or that a new one would get."""
    try:
        return os.stat(path).st_mode & 0o7777
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask
