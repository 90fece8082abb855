"""`completion`: what makes a shell complete our commands."""

import click
from click.shell_completion import get_completion_class

from pyctr import completing
from pyctr.errors import CommandError


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, *, shell: str) -> None:
    """Print a completion script for a shell.

    \b
    For bash: pyctr completion bash > /etc/bash_completion.d/pyctr
    For zsh:  pyctr completion zsh > "${fpath[1]}/_pyctr"
    For fish: pyctr completion fish > ~/.config/fish/completions/pyctr.fish
    """
    completing.register_bash()
    kind = get_completion_class(shell)
    if kind is None:
        raise CommandError(f"there is no completion for {shell}")
    click.echo(kind(ctx.find_root().command, {}, "pyctr", completing.VARIABLE).source())
