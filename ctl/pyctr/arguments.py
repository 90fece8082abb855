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
_NETWORK: Final = "containers have no network of their own yet"
# Options of docker's that people try: why they are not there, or what to do instead.
_MISSING: Final = {
    ("-p", "--publish", "-P", "--publish-all", "--expose"): f"{_NETWORK}, so there is nothing to publish; with"
    " --network host their ports are this machine's",
    ("--ip", "--ip6", "--link", "--mac-address", "--network-alias"): _NETWORK,
    ("--dns", "--dns-search", "--dns-option", "--add-host"): "mount a file of your own:"
    " -v FILE:/etc/resolv.conf:ro, or /etc/hosts",
    ("--shm-size",): "say --mount type=tmpfs,target=/dev/shm,tmpfs-size=SIZE",
    ("--pull",): "an image that is not here is pulled; for a newer one: pyctr pull IMAGE",
    ("--gpus",): "say --device VENDOR/CLASS=NAME, as the driver's CDI file calls it",
    ("--stop-timeout",): "say it when you stop it: pyctr stop --time SECONDS",
    ("--health-cmd", "--health-interval", "--no-healthcheck"): "nobody looks after the health of containers",
}


def network(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """Return a container's network; of those that docker's users name, there are two. Raises click.BadParameter."""
    if value not in (None, "none", "host"):
        raise click.BadParameter(f"{value!r} is neither none nor host: {_NETWORK}")
    return value


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
