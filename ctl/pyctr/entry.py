"""Runs the command and turns errors into a line and an exit code."""

import os
import signal
import sys
from typing import Final

import click

from pyctr import completing, exit_codes
from pyctr.cli import root
from pyctr.errors import tell
from pyctr.interrupts import Terminated
from pyctr_wire.errors import ApiError

_DOCKERS: Final = ("pyctr run", "pyctr create", "pyctr exec")  # what was wrong with these ends with docker's code


def run() -> int:
    """Run `pyctr` with the process's arguments and return its exit code."""
    if completing.VARIABLE in os.environ:
        completing.register_bash()
    try:
        code = root.main(standalone_mode=False, prog_name="pyctr")
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        error.show()
        ran = error.ctx is not None and error.ctx.command_path in _DOCKERS
        return exit_codes.OURS if ran else error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SystemExit as end:  # click's end of a completion, or its way to say that our reader has seen enough
        return exit_codes.SIGNALLED + signal.SIGPIPE if end.code else 0
    except click.Abort as abort:
        print("pyctr: interrupted", file=sys.stderr)
        cause = abort.__cause__
        return exit_codes.SIGNALLED + (cause.number if isinstance(cause, Terminated) else signal.SIGINT)
    except UnicodeEncodeError as error:  # an argument's bytes, on their way into a message
        print(f"pyctr: {error.object!r} is not UTF-8", file=sys.stderr)
        return exit_codes.USAGE
    except ApiError as error:
        tell(error)
        return exit_codes.FAILURE
    return code if isinstance(code, int) else 0
