"""The command's entry point: runs it and turns errors into a line and an exit code."""

import os
import signal
import sys

import click

from pyctr import exit_codes
from pyctr.cli import root
from pyctr_wire.errors import ApiError


def main() -> None:
    """Run `pyctr` with the process's arguments and exit."""
    try:
        code = root.main(standalone_mode=False, prog_name="pyctr")
    except click.exceptions.Exit as end:
        code = end.exit_code
    except click.UsageError as error:
        error.show()
        ran = error.ctx is not None and error.ctx.command.name in ("run", "create", "exec")
        code = exit_codes.OURS if ran else error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        print("pyctr: interrupted", file=sys.stderr)
        code = exit_codes.SIGNALLED + signal.SIGINT
    except ApiError as error:
        print(f"pyctr: {error}", file=sys.stderr)
        code = exit_codes.FAILURE
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = exit_codes.SIGNALLED + signal.SIGPIPE
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
