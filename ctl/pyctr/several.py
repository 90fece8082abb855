"""Commands that take several objects: each is tried, one failure does not hide the others."""

from collections.abc import Callable, Iterable

import click

from pyctr import exit_codes
from pyctr.errors import CommandError, tell
from pyctr_wire.errors import ApiError


def each(references: Iterable[str], act: Callable[[str], None], done: Callable[[str], object] = click.echo) -> int:
    """Call `act` with every reference and `done` with those that worked: it prints them, as docker does.

    Returns the exit code: that of the last failure, 0 if there was none.
    """
    code = 0
    for reference in references:
        try:
            act(reference)
        except CommandError as error:
            error.show()
            code = error.exit_code
        except ApiError as error:
            tell(f"{reference}: {error}")
            code = exit_codes.FAILURE
        else:
            done(reference)
    return code
