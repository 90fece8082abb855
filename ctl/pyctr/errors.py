"""Errors that end a command with one plain line."""

import sys
from typing import IO, Any

import click

from pyctr import exit_codes


class CommandError(click.ClickException):
    """What went wrong and, where there is one, the remedy."""

    def __init__(self, message: str, exit_code: int = exit_codes.FAILURE) -> None:
        """Keep the exit code that the process ends with."""
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click lets instances differ

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        print(f"pyctr: {self.message}", file=file or sys.stderr)
