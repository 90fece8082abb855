"""Arguments and options that several commands share, and what their help says of exit codes."""

from typing import Final

import click

from pyctr import completing, terminal

containers = click.argument(
    "containers", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=completing.containers
)
detach_keys = click.option(
    "--detach-keys",
    default=terminal.DEFAULT_DETACH_KEYS,
    show_default=True,
    metavar="KEYS",
    help="The keys that detach.",
)
grace = click.option(
    "--time",
    "-t",
    "grace",
    type=click.FloatRange(min=0),
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="How long until SIGKILL.",
)
EXIT_CODES: Final = (
    "Exit code: COMMAND's own, 128 and more if a signal ended it; 125 if pyctr or its daemon failed, 126 if COMMAND"
    " cannot be executed, 127 if it is not there."
)
# Options of docker's that people try, and why they are not there.
_MISSING: Final = {
    ("-p", "--publish", "-P", "--publish-all", "--expose"): "containers have no network of their own yet, so there is"
    " nothing to publish; with --network host their ports are this machine's",
}


class DockerLike(click.Command):
    """A command whose users come from docker: it says why an option is not there."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Add the reason to the error. Raises click.UsageError."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            reason = _reason(error.option_name)
            if reason:
                raise click.UsageError(f"There is no {error.option_name} here: {reason}.", ctx) from None
            raise


def _reason(option: str) -> str:
    return next((reason for names, reason in _MISSING.items() if option in names), "")
