"""Arguments and options that several commands share, and what their help says of exit codes."""

import itertools
from collections.abc import Mapping
from typing import Any, Final

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
env = click.option("--env", "-e", multiple=True, metavar="NAME[=VALUE]", help="Set an environment variable.")
env_file = click.option(
    "--env-file",
    multiple=True,
    metavar="FILE",
    shell_complete=completing.files,
    help="Read environment variables from a file.",
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


def truth(word: str) -> bool | None:
    """Return what docker takes a word for, None if for neither. Source: Go's strconv.ParseBool."""
    if word in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    return False if word in ("0", "f", "F", "false", "FALSE", "False") else None


_OFF: Final = ":off"  # what the parser knows `--flag=false` by


class DockerLike(click.Command):
    """A command whose users come from docker: flags can be spelled `--flag=true`, and it says why an option is missing.

    Whatever is wrong with its command line is told as this command's error.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Add the reason to the error. Raises click.UsageError."""
        try:
            return super().parse_args(ctx, self._with_plain_flags(ctx, args))
        except click.NoSuchOption as error:
            reason = _reason(error.option_name)
            if reason:
                raise click.UsageError(f"There is no {error.option_name} here: {reason}.", ctx) from None
            near = [name for name in error.possibilities or () if not name.endswith(_OFF)]
            raise click.NoSuchOption(error.option_name, possibilities=near, ctx=ctx) from None
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # click's parser leaves it out
            raise

    def make_parser(self, ctx: click.Context) -> Any:
        """Have an option that turns off for each that turns on: the last one on the command line counts."""
        parser = super().make_parser(ctx)
        for name, flag in self._flags(ctx).items():
            parser.add_option(flag, [name + _OFF], flag.name, action="store_const", const=False)
        return parser

    def _flags(self, ctx: click.Context) -> dict[str, click.Option]:
        """Return the options that are true or false, by their long names; not --help."""
        return {
            name: option
            for option in self.get_params(ctx)
            if isinstance(option, click.Option) and option.is_flag and option.expose_value
            for name in option.opts
            if name.startswith("--")
        }

    def _with_plain_flags(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Return `args` with flags as the parser knows them. What is a value, or behind the options, stays as it is."""
        flags = self._flags(ctx)
        options = {name: option for option in self.get_params(ctx) for name in (*option.opts, *option.secondary_opts)}
        result: list[str] = []
        words = iter(args)
        for word in words:
            is_option = word.startswith("-") and word != "-"
            if word == "--" or not (is_option or ctx.allow_interspersed_args):
                return [*result, word, *words]
            name, separator, value = word.partition("=")
            on = truth(value) if separator and name in flags else None
            result.append(word if on is None else name if on else name + _OFF)
            if is_option and _lacks_value(word, options):
                result.extend(itertools.islice(words, 1))
        return result


def _lacks_value(word: str, options: Mapping[str, click.Parameter]) -> bool:
    """Tell whether the value of an option is the next word: "--env", "-e", "-ite", but not "-eA=1"."""
    names = [word] if word.startswith("--") else [f"-{letter}" for letter in word[1:]]
    for at, name in enumerate(names, 1):
        option = options.get(name)
        if isinstance(option, click.Option) and not option.is_flag:
            return at == len(names)
    return False


def _reason(option: str) -> str:
    return next((reason for names, reason in _MISSING.items() if option in names), "")
