"""A client that runs beside a test, and no longer than it."""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO


@contextmanager
def background(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.STDOUT,
) -> Iterator["subprocess.Popen[str]"]:
    """Run a command while the context lasts, and kill it if it has not ended by then; its pipes carry text."""
    with subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()
