"""Errors that end a command with one plain line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

import click

from pyctr import exit_codes

_LAYOUT: Final = "\n\t"


def plain(text: str, keep: str = "") -> str:
    """Return `text` without what a terminal would obey, `keep` excepted: it may come from an image or a registry."""
    return "".join(one if one.isprintable() or one in keep else "?" for one in text)


def tell(text: object) -> None:
    """Print something about what we do, in one or more lines, on standard error."""
    print(f"pyctr: {plain(str(text), keep=_LAYOUT)}", file=sys.stderr)


class CommandError(click.ClickException):
    """What went wrong and, where there is one, the remedy."""

    def __init__(self, message: str, exit_code: int = exit_codes.FAILURE) -> None:
        """Keep the exit code that the process ends with."""
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click lets instances differ

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        print(f"pyctr: {plain(self.message, keep=_LAYOUT)}", file=file or sys.stderr)


def not_running(container: str) -> CommandError:
    """Return what is said of a container that was to run and does not."""
    return CommandError(f"container {container} is not running")


@contextmanager
def as_ours() -> Iterator[None]:
    """Have a refusal of the machine's (a full disk below stdout, say) end a command with docker's code for pyctr's own.

    Raises CommandError. A reader that has seen enough is none.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise CommandError(f"{place}{error.strerror or error}", exit_codes.OURS) from None
